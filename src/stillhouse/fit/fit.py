"""The loop that every stage shares: resumable, seeded, logged."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from stillhouse.fit.learner import Learner
from stillhouse.fit.log import Log
from stillhouse.fit.processes import launched
from stillhouse.fit.rate import fall_begins
from stillhouse.fit.stage import Fitted, Stage, Tick


def fit(
    stage: Stage,
    folder: Path,
    report: Callable[[Tick], None],
    deadline: float | None = None,
    save_every: float = 120.0,
) -> Fitted:
    """Run a stage to its end, or until `deadline` (seconds of `time.monotonic`); goes on from its checkpoint.

    A run that is killed loses at most the last `save_every` seconds. The stage's network holds the averaged weights
    when it returns.

    Raises:
        FitFailed: the loss or its gradient is not finite, a checkpoint cannot be written, or fewer updates are planned
            than lie behind. The last checkpoint stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = launched()
    learner = Learner(stage, folder, processes)
    recipe, saved, smooth = stage.recipe, monotonic(), None
    if fall_begins(recipe) <= learner.update < recipe.updates and not learner.fell:
        learner.save("stable")
    with Log(folder, stage.name, processes.is_first) as log:
        while not learner.is_done and not processes.agreed(deadline is not None and monotonic() > deadline):
            loss = learner.step()
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            done = learner.update
            judged = done == recipe.updates or done % recipe.judge_every == 0
            if judged or done % recipe.report_every == 0:
                tick = Tick(stage.name, done, recipe.updates, smooth, learner.judge() if judged else {})
                log.write(tick)
                if processes.is_first:
                    report(tick)
            if done == fall_begins(recipe):
                learner.save("stable")
            if monotonic() - saved > save_every:
                learner.save()
                saved = monotonic()
    learner.save()
    learner.adopt_average()
    return Fitted(learner.is_done, learner.update, learner.seconds, learner.scores, learner.recipe)
