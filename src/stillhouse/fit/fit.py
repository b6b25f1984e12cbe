"""The loop that every stage shares: resumable, seeded, logged."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from stillhouse.fit.learner import Trainer
from stillhouse.fit.log import TrainingLog
from stillhouse.fit.processes import current_process_group
from stillhouse.fit.rate import decay_start
from stillhouse.fit.stage import FitResult, Stage, UpdateLog


def fit(
    stage: Stage,
    folder: Path,
    report: Callable[[UpdateLog], None],
    deadline: float | None = None,
    save_every: float = 120.0,
) -> FitResult:
    """Run a stage to its end, or until `deadline` (seconds of `time.monotonic`); goes on from its checkpoint.

    A run that is killed loses at most the last `save_every` seconds. The stage's network holds the averaged weights
    when it returns.

    Raises:
        FitFailed: the loss or its gradient is not finite, a checkpoint cannot be written, or fewer updates are planned
            than lie behind. The last checkpoint stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = current_process_group()
    learner = Trainer(stage, folder, processes)
    recipe, saved, smooth = stage.recipe, monotonic(), None
    if decay_start(recipe) <= learner.update < recipe.updates and not learner.resumed_in_decay:
        learner.save("stable")
    with TrainingLog(folder, stage.name, processes.is_main_process) as log:
        while not learner.is_done and not processes.broadcast_flag(deadline is not None and monotonic() > deadline):
            loss = learner.step()
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            done = learner.update
            judged = done == recipe.updates or done % recipe.eval_every == 0
            if judged or done % recipe.report_every == 0:
                tick = UpdateLog(stage.name, done, recipe.updates, smooth, learner.evaluate() if judged else {})
                log.write(tick)
                if processes.is_main_process:
                    report(tick)
            if done == decay_start(recipe):
                learner.save("stable")
            if monotonic() - saved > save_every:
                learner.save()
                saved = monotonic()
    learner.save()
    learner.load_ema_weights()
    return FitResult(learner.is_done, learner.update, learner.seconds, learner.scores, learner.recipe)
