"""The training loop: trains one network with checkpoints, evaluations and logs."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from stillhouse.fit.log import TrainingLog
from stillhouse.fit.processes import current_process_group
from stillhouse.fit.rate import decay_start
from stillhouse.fit.stage import FitResult, Stage, UpdateLog
from stillhouse.fit.trainer import BEFORE_DECAY, Trainer


def fit(
    stage: Stage,
    folder: Path,
    report: Callable[[UpdateLog], None],
    deadline: float | None = None,
    save_every: float = 120.0,
) -> FitResult:
    """Train a stage (network, loss and evaluation) until its last update or the deadline, resuming from its checkpoint.

    A killed run loses at most the last `save_every` seconds. On return the stage's network contains the EMA weights,
    or the weights of the best evaluation where the recipe allows early stopping (`patience`).

    Args:
        stage: network, loss and evaluation.
        folder: folder of checkpoints, the CSV log and TensorBoard events, created where it does not exist.
        report: receives the progress every `report_every` updates and after each evaluation, in the main process only.
        deadline: time of `time.monotonic` in seconds after which no update starts; None: no limit.
        save_every: seconds between two checkpoints.

    Returns:
        number of updates, duration, scores, and whether the training is complete.

    Raises:
        FitFailed: the loss or its gradient is not finite, a checkpoint cannot be written, or the existing checkpoint
            was trained with other data or settings (fingerprint) or with more updates than the recipe has. The last
            checkpoint stays unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = current_process_group()
    trainer = Trainer(stage, folder, processes)
    recipe, saved, smooth = stage.recipe, monotonic(), None
    if decay_start(recipe) <= trainer.update < recipe.updates and not trainer.resumed_in_decay:
        trainer.save(BEFORE_DECAY)
    with TrainingLog(folder, stage.name, processes.is_main_process) as log:
        while not trainer.is_done and not processes.broadcast_flag(deadline is not None and monotonic() > deadline):
            loss = trainer.step()
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            update = trainer.update
            is_evaluated = update == recipe.updates or update % recipe.eval_every == 0
            if is_evaluated or update % recipe.report_every == 0:
                scores = trainer.evaluate() if is_evaluated else {}
                update_log = UpdateLog(stage.name, update, recipe.updates, smooth, scores)
                log.write(update_log)
                if processes.is_main_process:
                    report(update_log)
            if update == decay_start(recipe):
                trainer.save(BEFORE_DECAY)
            if monotonic() - saved > save_every:
                trainer.save()
                saved = monotonic()
    trainer.save()
    trainer.load_ema_weights()
    return FitResult(trainer.is_done, trainer.update, trainer.seconds, trainer.scores, trainer.recipe)
