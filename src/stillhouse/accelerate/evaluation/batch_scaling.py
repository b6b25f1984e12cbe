"""Throughput by batch size: which batch sizes of a candidate are timed, and its seconds per row at each."""

from collections.abc import Callable, Sequence

from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.records.trial import Trial
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from stillhouse.pipelines.runners import reopens_per_batch_size

CPU_BATCH_SIZES = (1, 2, 4, 8)
"""Batch sizes that are timed on a CPU and by which candidates are compared. A GPU is timed up to the sizes of
DEFAULT_SIZES.
"""
LONG_CALL_SECONDS, SATURATION_RATIO = 1.0, 0.95
"""Timing of larger batches ends once a batch needs more than SATURATION_RATIO times the least seconds per row so far.
On a CPU, this rule holds only where a call takes more than LONG_CALL_SECONDS.
"""
_MAX_BATCH_GAIN = 2.0
"""Assumed maximum factor by which batching helps a candidate more than another one."""
_QUICK_OPEN_SECONDS, _QUICK_OPEN_SECONDS_GPU = 3.0, 60.0
"""Limits on the seconds to open a component and run it once, on a CPU and on a GPU. Up to the limit, the component is
reopened for another batch size. The limit of a GPU is higher because its candidates depend on batching and compile
longer.
"""


def measure_batch_curve(trial: Trial, time_batch: Callable[[int, int], float]) -> dict[str, float]:
    """Return seconds per row by batch size ("1", "2", ...), up to the size that fails or no longer improves.

    Args:
        trial: the candidate's timed trial. The trial's own batch size is not timed again where a call is long.
        time_batch: takes a batch size and the number of repetitions, returns seconds per row. Raises CandidateError.
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
    """Return the batch sizes to time.

    Where the network is opened or compiled again for every size, this is the largest size, or none if opening is slow.
    """
    if not reopens_per_batch_size(candidate_component(trial.candidate, "", "")):
        return DEFAULT_SIZES if trial.candidate.is_on_gpu else CPU_BATCH_SIZES
    return CPU_BATCH_SIZES[-1:] if opens_quickly(trial) else ()


def may_win_at_larger_batch(trial: Trial, early_stop_ratio: float) -> bool:
    """Return whether a candidate timed at a small batch may be the best at a larger batch.

    Args:
        trial: the candidate's timed trial.
        early_stop_ratio: see `latency.TimingBudget`.
    """
    assert trial.seconds and trial.ratio
    return (1.0 if trial.seconds.median > LONG_CALL_SECONDS else _MAX_BATCH_GAIN) * trial.ratio.high >= early_stop_ratio


def opens_quickly(trial: Trial) -> bool:
    """Return whether opening the candidate and its first call are quick enough to be repeated."""
    call_seconds = max(trial.first_seconds or 0.0, trial.seconds.median if trial.seconds else 0.0)
    return (trial.open_seconds or 0.0) + call_seconds < (
        _QUICK_OPEN_SECONDS_GPU if trial.candidate.is_on_gpu else _QUICK_OPEN_SECONDS
    )
