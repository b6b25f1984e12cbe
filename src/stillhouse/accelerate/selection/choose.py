"""The choice of the best measured candidate (backend, precision, options) within the bounds, from a report's values."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from stillhouse.accelerate.evaluation.accuracy import is_visually_exact, judge_trial
from stillhouse.accelerate.evaluation.batch_scaling import CPU_BATCH_SIZES
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Bounds, Goal, Report
from stillhouse.accelerate.records.trial import Trial

_TIE_MARGIN = 0.03
"""Share of the highest speed-up by which a candidate may be slower and still count as equally fast."""
_MEMORY_TIE_BYTES = 64 << 20
"""Peak memory of whole pipelines is rounded up to a multiple of these bytes before pipelines are compared."""


def judge_trials(trials: Iterable[Trial], bounds: Bounds) -> tuple[Trial, ...]:
    """Return copies of trials (measured candidates) with verdicts for the given bounds, in the same order.

    Trials that failed, were excluded or were not timed are returned unchanged.
    """
    return tuple(judge_trial(trial, bounds) if _was_measured(trial) else trial for trial in trials)


def choose_trials(report: Report, goal: Goal, bounds: Bounds) -> Report:
    """Return a copy of a report with verdicts on all candidates and a choice, for a goal and bounds.

    Nothing is chosen where pictures of the networks that would be chosen were measured and not accepted.
    """
    trials = judge_trials(report.trials, bounds)
    decided = replace(report, trials=trials, goal=goal, bounds=bounds)
    components = dict.fromkeys(trial.candidate.component for trial in trials)
    chosen = {}
    for component in components:
        # The recipe "baseline" marks measurements of the original pipeline, which are references and cannot be chosen.
        eligible = [trial for trial in decided.trials_of(component) if trial.candidate.recipe != "baseline"]
        if report.exact_only and component != PIPELINE:
            eligible = [trial for trial in eligible if is_visually_exact(trial)]
        best = best_trial(eligible, goal)
        if best:
            chosen[component] = best.candidate.key
    return replace(decided, chosen={} if _fails_together(decided, chosen) else chosen)


def _fails_together(report: Report, chosen: Mapping[str, str]) -> bool:
    """Return whether pictures were generated with exactly the chosen networks, but were not accepted.

    Args:
        report: report with the measurements of whole pipelines.
        chosen: key of the chosen candidate by network.
    """
    variants = [trial for trial in report.trials_of(PIPELINE) if trial.candidate.recipe == "sampling"]
    measured = [trial for trial in variants if trial.status in ("accepted", "rejected", "failed")]
    components = {name: key for name, key in chosen.items() if name != PIPELINE}
    return bool(measured) and PIPELINE not in chosen and report.evaluated_with == components


def best_trial(trials: Iterable[Trial], goal: Goal) -> Trial | None:
    """Return the trial of the best accepted candidate for a goal; None where no timed candidate was accepted.

    For the goal latency, the most accurate of the candidates within `_TIE_MARGIN` of the highest speed-up is returned.
    """
    accepted = [trial for trial in trials if trial.status == "accepted" and trial.ratio is not None]
    best = min(accepted, key=_SORT_KEYS[goal], default=None)
    if best is None or best.ratio is None or goal != "latency":
        return best
    ties = [trial for trial in accepted if trial.ratio and trial.ratio.value >= (1 - _TIE_MARGIN) * best.ratio.value]
    return max(ties, key=lambda trial: (_quality(trial), trial.ratio.value if trial.ratio else 0.0))


def _was_measured(trial: Trial) -> bool:
    return trial.status in ("accepted", "rejected", "skipped") and trial.ratio is not None


def pareto_front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return the accepted trials on the Pareto front of speed, accuracy and peak memory, fastest first.

    No other accepted trial is at least as good in all three and better in one.
    """
    accepted = [trial for trial in trials if trial.status == "accepted" and trial.ratio is not None]
    front = [trial for trial in accepted if not any(_dominates(other, trial) for other in accepted)]
    return tuple(sorted(front, key=_latency))


def _dominates(trial: Trial, other: Trial) -> bool:
    own, others = _objectives(trial), _objectives(other)
    return all(a >= b for a, b in zip(own, others, strict=True)) and own != others


def _objectives(trial: Trial) -> tuple[float, float, float]:
    assert trial.ratio is not None
    return trial.ratio.value, _quality(trial), -float(trial.peak_bytes or 0)


def _quality(trial: Trial) -> float:
    """Return a measure of a trial's accuracy by which trials of one network or of whole pipelines are compared.

    The measure is the lowest SQNR of the outputs in dB. For a whole pipeline, the measure is the share of correct
    pictures, or the mean PSNR in dB where no program scores the pictures.
    """
    if trial.candidate.component == PIPELINE and trial.pictures:
        return trial.pictures.psnr if trial.pictures.score is None else trial.pictures.score
    return trial.worst_fidelity.sqnr if trial.worst_fidelity else 0.0


def _latency(trial: Trial) -> float:
    assert trial.ratio is not None
    return 1 / trial.ratio.value


def _throughput(trial: Trial) -> tuple[float, float]:
    """Return a sort key for the goal throughput: seconds per row at the best batch size, then the inverse speed-up.

    Only batch sizes up to the largest of CPU_BATCH_SIZES count, because larger ones are timed on GPUs only. The second
    value orders candidates that were not timed in batches.
    """
    seconds = (row_seconds for rows, row_seconds in trial.batch.items() if int(rows) <= CPU_BATCH_SIZES[-1])
    best = min(seconds, default=float("inf"))
    return best, _latency(trial)


def _memory(trial: Trial) -> tuple[float, float]:
    peak = float(trial.peak_bytes or float("inf"))
    if trial.candidate.component == PIPELINE:
        # The peak is rounded up to whole units of _MEMORY_TIE_BYTES, so that peaks that differ only by noise become
        # equal: pipelines that differ only in sampling options run the same networks.
        peak = math.ceil(peak / _MEMORY_TIE_BYTES) if math.isfinite(peak) else peak
    return peak, _latency(trial)


_SORT_KEYS: Mapping[Goal, Callable[[Trial], float | tuple[float, float]]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "cost": _throughput,
}
