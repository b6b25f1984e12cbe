"""The choice: of what was measured, the best that keeps the bounds. Pure, so that it can be made again at any time."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from stillhouse.accelerate.evaluation.accuracy import is_visually_exact, judge_trial
from stillhouse.accelerate.evaluation.batch_scaling import CPU_BATCH_SIZES
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Bounds, Goal, Report
from stillhouse.accelerate.records.trial import Trial

_TIE_MARGIN = 0.03
_MEMORY_TIE_BYTES = 64 << 20
"""Bytes within which two ways to make a whole picture take the same memory."""


def judge_trials(trials: Iterable[Trial], bounds: Bounds) -> tuple[Trial, ...]:
    """The trials with their verdicts under these bounds; what did not run to its end stays as it was."""
    return tuple(judge_trial(trial, bounds) if _was_measured(trial) else trial for trial in trials)


def choose_trials(report: Report, goal: Goal, bounds: Bounds) -> Report:
    """The report with its verdicts and its choice made for this goal and these bounds.

    Nothing is chosen of networks that keep their bounds one by one and, drawing together, do not.
    """
    trials = judge_trials(report.trials, bounds)
    decided = replace(report, trials=trials, goal=goal, bounds=bounds)
    components = dict.fromkeys(trial.candidate.component for trial in trials)
    chosen = {}
    for component in components:
        # The plain loops are there to compare with; they run on other networks than those that are chosen.
        own = [trial for trial in decided.trials_of(component) if trial.candidate.recipe != "baseline"]
        if report.exact_only and component != PIPELINE:
            own = [trial for trial in own if is_visually_exact(trial)]
        best = best_trial(own, goal)
        if best:
            chosen[component] = best.candidate.key
    return replace(decided, chosen={} if _fails_together(decided, chosen) else chosen)


def _fails_together(report: Report, chosen: Mapping[str, str]) -> bool:
    """Whether whole pictures were drawn with these very networks, and no way to walk with them was accepted."""
    walks = [trial for trial in report.trials_of(PIPELINE) if trial.candidate.recipe == "sampling"]
    drawn = [trial for trial in walks if trial.status in ("accepted", "rejected", "failed")]
    networks = {name: key for name, key in chosen.items() if name != PIPELINE}
    return bool(drawn) and PIPELINE not in chosen and report.evaluated_with == networks


def best_trial(trials: Iterable[Trial], goal: Goal) -> Trial | None:
    """The accepted trial that serves the goal best; None where none was accepted.

    Of those whose time is the least to within `_EVEN`, the one that errs least: so little no race can tell apart.
    """
    accepted = [trial for trial in trials if trial.status == "accepted" and trial.ratio is not None]
    best = min(accepted, key=_SORT_KEYS[goal], default=None)
    if best is None or best.ratio is None or goal != "latency":
        return best
    even = [one for one in accepted if one.ratio and one.ratio.value >= (1 - _TIE_MARGIN) * best.ratio.value]
    return max(even, key=lambda one: (_quality(one), one.ratio.value if one.ratio else 0.0))


def _was_measured(trial: Trial) -> bool:
    return trial.status in ("accepted", "rejected", "skipped") and trial.ratio is not None


def pareto_front(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Accepted trials that no other accepted one beats in speed, quality and memory at once (Pareto), fastest first."""
    accepted = [trial for trial in trials if trial.status == "accepted" and trial.ratio is not None]
    kept = [one for one in accepted if not any(_dominates(other, one) for other in accepted)]
    return tuple(sorted(kept, key=_latency))


def _dominates(trial: Trial, other: Trial) -> bool:
    ours, theirs = _objectives(trial), _objectives(other)
    return all(a >= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def _objectives(trial: Trial) -> tuple[float, float, float]:
    assert trial.ratio is not None
    return trial.ratio.value, _quality(trial), -float(trial.peak_bytes or 0)


def _quality(trial: Trial) -> float:
    """dB of the worst probe; of a way to walk its score or, where nobody reads its pictures, their PSNR."""
    if trial.candidate.component == PIPELINE and trial.pictures:
        return trial.pictures.psnr if trial.pictures.score is None else trial.pictures.score
    return trial.worst_fidelity.sqnr if trial.worst_fidelity else 0.0


def _latency(trial: Trial) -> float:
    assert trial.ratio is not None
    return 1 / trial.ratio.value


def _throughput(trial: Trial) -> tuple[float, float]:
    """Seconds a row at the best batch size that all are timed with; paired ratios order those that were not measured in
    batches."""
    alike = (row for rows, row in trial.batch.items() if int(rows) <= CPU_BATCH_SIZES[-1])
    best = min(alike, default=float("inf"))
    return best, _latency(trial)


def _memory(trial: Trial) -> tuple[float, float]:
    peak = float(trial.peak_bytes or float("inf"))
    if trial.candidate.component == PIPELINE:
        peak = (
            math.ceil(peak / _MEMORY_TIE_BYTES) if math.isfinite(peak) else peak
        )  # ways to walk run the same networks
    return peak, _latency(trial)


_SORT_KEYS: Mapping[Goal, Callable[[Trial], float | tuple[float, float]]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "cost": _throughput,
}
