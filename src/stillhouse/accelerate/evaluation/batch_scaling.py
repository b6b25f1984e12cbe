"""Batches: which sizes of them a candidate is timed with, and what a row of each takes."""

from collections.abc import Callable, Sequence

from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.records.trial import Trial
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from stillhouse.pipelines.runners import reopens_per_batch_size

CPU_BATCH_SIZES = (1, 2, 4, 8)
"""Rows of the batches that are timed on a processor, which is soon full, and by which candidates are compared; on a GPU
they go up to those of `ROWS`."""
LONG_CALL_SECONDS, SATURATION_RATIO = 1.0, 0.95
"""Seconds of a call from which a processor is taken to be full once a larger batch gains less than a twentieth; a GPU
is, however short its call."""
_MAX_BATCH_GAIN = 2.0
"""How much more a row may gain by a batch than a row of another candidate does."""
_QUICK_OPEN_SECONDS, _QUICK_OPEN_SECONDS_GPU = 3.0, 60.0
"""Seconds to open a network and to run it once up to which it is asked for a batch that it must be opened for. A GPU is
bought for batches, and compilers take their time for it; some build an engine for minutes."""


def measure_batch_curve(trial: Trial, time_batch: Callable[[int, int], float]) -> dict[str, float]:
    """Seconds a row by the size of the batch ("1", "2", ...), up to one that fails or is worth no more than the others.

    Args:
        trial: of the candidate, which was raced; where a call takes long, that size is not timed again.
        ask: takes the rows of a batch and how often it is timed, and tells the seconds of a row; or SubjectFailed.
    """
    assert trial.seconds
    is_long = trial.seconds.median > LONG_CALL_SECONDS
    found: dict[str, float] = {}
    for rows in _batch_sizes(trial):
        raced = trial.batch.get(str(rows)) if is_long else None
        try:
            row = time_batch(rows, 1 if is_long else 3) if raced is None else raced
        except CandidateError:
            break
        least = min(found.values(), default=float("inf"))
        found[str(rows)] = row
        if (is_long or trial.candidate.is_on_gpu) and row > SATURATION_RATIO * least:
            break
    return {**trial.batch, **found}


def _batch_sizes(trial: Trial) -> Sequence[int]:
    """Of what is opened or compiled anew for each the largest alone, where that is soon done."""
    if not reopens_per_batch_size(candidate_component(trial.candidate, "", "")):
        return DEFAULT_SIZES if trial.candidate.is_on_gpu else CPU_BATCH_SIZES
    return CPU_BATCH_SIZES[-1:] if opens_quickly(trial) else ()


def may_win_at_larger_batch(trial: Trial, early_stop_ratio: float) -> bool:
    """Whether a candidate that was raced at few rows may be the better one at many: if it is not too far behind, where
    calls are short and it is soon known.

    Args:
        hopeless: see `race.Effort`.
    """
    assert trial.seconds and trial.ratio
    return (1.0 if trial.seconds.median > LONG_CALL_SECONDS else _MAX_BATCH_GAIN) * trial.ratio.high >= early_stop_ratio


def opens_quickly(trial: Trial) -> bool:
    """Whether it takes little to open the candidate once more, and to run it for the first time."""
    once = max(trial.first_seconds or 0.0, trial.seconds.median if trial.seconds else 0.0)
    return (trial.open_seconds or 0.0) + once < (
        _QUICK_OPEN_SECONDS_GPU if trial.candidate.is_on_gpu else _QUICK_OPEN_SECONDS
    )
