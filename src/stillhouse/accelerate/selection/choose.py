"""The choice: the best measured candidate within the bounds. The choice depends on the report only."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from stillhouse.accelerate.evaluation.accuracy import is_visually_exact, judge_trial
from stillhouse.accelerate.evaluation.batch_scaling import CPU_BATCH_SIZES
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Bounds, Goal, Report
from stillhouse.accelerate.records.trial import Trial

_TIE_MARGIN = 0.03
"""Share of the best speed-up within which candidates count as equally fast."""
_MEMORY_TIE_BYTES = 64 << 20
"""Bytes within which two pipeline candidates count as equal in memory."""


def judge_trials(trials: Iterable[Trial], bounds: Bounds) -> tuple[Trial, ...]:
    """Return the trials with verdicts for these bounds; failed, excluded and untimed trials are unchanged."""
    return tuple(judge_trial(trial, bounds) if _was_measured(trial) else trial for trial in trials)


def choose_trials(report: Report, goal: Goal, bounds: Bounds) -> Report:
    """Return the report with verdicts and a choice for this goal and these bounds.

    Nothing is chosen where the individually accepted components together violate a bound.
    """
    trials = judge_trials(report.trials, bounds)
    decided = replace(report, trials=trials, goal=goal, bounds=bounds)
    components = dict.fromkeys(trial.candidate.component for trial in trials)
    chosen = {}
    for component in components:
        # Baseline pipelines cannot be chosen, because they do not run on the chosen components.
        eligible = [trial for trial in decided.trials_of(component) if trial.candidate.recipe != "baseline"]
        if report.exact_only and component != PIPELINE:
            eligible = [trial for trial in eligible if is_visually_exact(trial)]
        best = best_trial(eligible, goal)
        if best:
            chosen[component] = best.candidate.key
    return replace(decided, chosen={} if _fails_together(decided, chosen) else chosen)


def _fails_together(report: Report, chosen: Mapping[str, str]) -> bool:
    """Return whether pictures were generated with exactly these components, but no sampling variant was accepted."""
    variants = [trial for trial in report.trials_of(PIPELINE) if trial.candidate.recipe == "sampling"]
    measured = [trial for trial in variants if trial.status in ("accepted", "rejected", "failed")]
    components = {name: key for name, key in chosen.items() if name != PIPELINE}
    return bool(measured) and PIPELINE not in chosen and report.evaluated_with == components


def best_trial(trials: Iterable[Trial], goal: Goal) -> Trial | None:
    """Return the best accepted trial for the goal; None where none was accepted.

    For latency, trials within `_TIE_MARGIN` of the fastest count as equal, and the most accurate one wins.
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
    """Return the accepted trials that no other trial dominates in speed, quality and memory, fastest first."""
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
    """Return the SQNR in dB of the worst probe; for a pipeline candidate, the score or, without an oracle, the PSNR."""
    if trial.candidate.component == PIPELINE and trial.pictures:
        return trial.pictures.psnr if trial.pictures.score is None else trial.pictures.score
    return trial.worst_fidelity.sqnr if trial.worst_fidelity else 0.0


def _latency(trial: Trial) -> float:
    assert trial.ratio is not None
    return 1 / trial.ratio.value


def _throughput(trial: Trial) -> tuple[float, float]:
    """Return seconds per row at the best batch size that all candidates are timed with, then the inverse speed-up.

    The second value orders candidates that were not timed in batches.
    """
    seconds = (row_seconds for rows, row_seconds in trial.batch.items() if int(rows) <= CPU_BATCH_SIZES[-1])
    best = min(seconds, default=float("inf"))
    return best, _latency(trial)


def _memory(trial: Trial) -> tuple[float, float]:
    peak = float(trial.peak_bytes or float("inf"))
    if trial.candidate.component == PIPELINE:
        # Sampling variants run the same components, so small differences in memory are noise.
        peak = math.ceil(peak / _MEMORY_TIE_BYTES) if math.isfinite(peak) else peak
    return peak, _latency(trial)


_SORT_KEYS: Mapping[Goal, Callable[[Trial], float | tuple[float, float]]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "cost": _throughput,
}
