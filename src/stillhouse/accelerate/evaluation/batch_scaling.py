"""Throughput by batch size: which batch sizes a candidate is timed at, and its seconds per row at each of them."""

from collections.abc import Callable, Sequence

from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.evaluation.latency import LONG_CALL_SECONDS
from stillhouse.accelerate.records.trial import Trial
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from stillhouse.pipelines.runners import reopens_per_batch_size

CPU_BATCH_SIZES = (1, 2, 4, 8)
"""Batch sizes at which candidates on a CPU are timed. Candidates on a GPU are timed at the sizes of DEFAULT_SIZES."""
SATURATION_RATIO = 0.95
"""When timing of larger batches ends: once a batch needs more than SATURATION_RATIO times the least seconds per row of
the smaller batches. On a CPU this rule applies only where a call takes more than LONG_CALL_SECONDS.
"""
_MAX_BATCH_GAIN = 2.0
"""Assumed maximum factor by which a larger batch may improve a candidate's speed relative to the other candidates."""
_QUICK_OPEN_SECONDS, _QUICK_OPEN_SECONDS_GPU = 3.0, 60.0
"""A network is opened again for another batch size only if opening it and running it once takes less than these
seconds, on a CPU and on a GPU. The limit for a GPU is higher because networks compile longer there, and batches matter
more.
"""


def measure_batch_curve(trial: Trial, time_batch: Callable[[int, int], float]) -> dict[str, float]:
    """Time a candidate at rising batch sizes, and return the seconds per row by batch size ("1", "2", ...).

    Timing ends at a size that fails or is hardly faster per row. Timings in `trial` are kept, and not repeated if calls
    take over LONG_CALL_SECONDS. `time_batch(rows, repetitions)` returns seconds per row or raises CandidateError.
    """
    assert trial.seconds
    is_long = trial.seconds.median > LONG_CALL_SECONDS
    curve: dict[str, float] = {}
    for rows in _batch_sizes(trial):
        timed = trial.batch.get(str(rows)) if is_long else None
        try:
            seconds = time_batch(rows, 1 if is_long else 3) if timed is None else timed
        except CandidateError:
            break
        best = min(curve.values(), default=float("inf"))
        curve[str(rows)] = seconds
        if (is_long or trial.candidate.is_on_gpu) and seconds > SATURATION_RATIO * best:
            break
    return {**trial.batch, **curve}


def _batch_sizes(trial: Trial) -> Sequence[int]:
    """Return the batch sizes at which a candidate is to be timed.

    If the network has to be opened or compiled again for every size, the result is only the largest size, or empty if
    opening is slow.
    """
    if not reopens_per_batch_size(candidate_component(trial.candidate, "", "")):
        return DEFAULT_SIZES if trial.candidate.is_on_gpu else CPU_BATCH_SIZES
    return CPU_BATCH_SIZES[-1:] if opens_quickly(trial) else ()


def may_win_at_larger_batch(trial: Trial, early_stop_ratio: float) -> bool:
    """Return whether a candidate that was timed at a small batch may be the fastest at a larger batch.

    Args:
        trial: measurements of the candidate.
        early_stop_ratio: speed-up over the baseline that the candidate must be able to reach.
    """
    assert trial.seconds and trial.ratio
    return (1.0 if trial.seconds.median > LONG_CALL_SECONDS else _MAX_BATCH_GAIN) * trial.ratio.high >= early_stop_ratio


def opens_quickly(trial: Trial) -> bool:
    """Return whether opening a candidate's network and calling it once is quick enough to be repeated.

    The limits are `_QUICK_OPEN_SECONDS` and, on a GPU, `_QUICK_OPEN_SECONDS_GPU`.

    Args:
        trial: measurements of the candidate.
    """
    call_seconds = max(trial.first_seconds or 0.0, trial.seconds.median if trial.seconds else 0.0)
    return (trial.open_seconds or 0.0) + call_seconds < (
        _QUICK_OPEN_SECONDS_GPU if trial.candidate.is_on_gpu else _QUICK_OPEN_SECONDS
    )
