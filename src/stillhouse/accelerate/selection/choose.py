"""The choice of the best measured candidate (backend, precision, options) within the bounds, from a report's values.

The baseline stays the choice unless a candidate is better for the goal beyond doubt.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from stillhouse.accelerate.evaluation.accuracy import find_violation, is_visually_exact, judge_trial
from stillhouse.accelerate.records.candidate import PIPELINE, SAMPLING
from stillhouse.accelerate.records.report import Bounds, Goal, Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.gain import beats_baseline, best_batch, rounded_peak

_TIE_MARGIN = 0.03
"""Share of the highest speed-up by which a candidate may be slower and still count as equally fast."""


def judge_trials(trials: Iterable[Trial], bounds: Bounds) -> tuple[Trial, ...]:
    """Return copies of trials (measured candidates) with verdicts for the given bounds, in the same order.

    Trials that failed, were excluded or were not timed are returned unchanged.
    """
    return tuple(judge_trial(trial, bounds) if _was_measured(trial) else trial for trial in trials)


def choose_trials(report: Report, goal: Goal, bounds: Bounds) -> Report:
    """Return a copy of a report with verdicts on all candidates and a choice, for a goal and bounds.

    A candidate replaces the baseline of its component only where it is better for the goal beyond doubt, see
    `beats_baseline`. Otherwise the baseline is the choice. Components without a baseline have no choice.

    Where whole pictures were measured, these decide: a chosen pipeline comes with the networks that it was measured
    with. If no pipeline is better than the original one, the whole original pipeline is the choice, and every network
    keeps its original.
    """
    decided = choose_networks(report, goal, bounds)
    baseline = _baseline_trial(decided, PIPELINE)
    pipelines = [trial for trial in decided.trials_of(PIPELINE) if trial.candidate.recipe != "baseline"]
    if baseline is None or not any(trial.status in ("accepted", "rejected", "failed") for trial in pipelines):
        return decided
    best = choose_trial(_with_accepted_networks(decided, pipelines), baseline, goal, bounds)
    if best is None:
        return replace(decided, chosen={})
    if best is baseline:
        return replace(decided, chosen=dict(decided.baselines))
    networks = {**decided.chosen, **_networks_of(decided, best), PIPELINE: best.candidate.key}
    return replace(decided, chosen=networks)


def choose_networks(report: Report, goal: Goal, bounds: Bounds) -> Report:
    """Return a copy of a report with verdicts on all candidates and a choice for each network by itself.

    Whole pipelines are judged, but not chosen: the search for the best pipeline begins with these networks.
    """
    decided = replace(report, trials=judge_trials(report.trials, bounds), goal=goal, bounds=bounds)
    chosen = {}
    for component in dict.fromkeys(trial.candidate.component for trial in decided.trials):
        baseline = _baseline_trial(decided, component)
        if component == PIPELINE or baseline is None:
            continue
        trials = decided.trials_of(component)
        if report.exact_only:
            trials = tuple(trial for trial in trials if is_visually_exact(trial))
        choose = choose_accurate if component in report.careful else choose_trial
        if best := choose(trials, baseline, goal, bounds):
            chosen[component] = best.candidate.key
    return replace(decided, chosen=chosen)


def choose_trial(trials: Iterable[Trial], baseline: Trial, goal: Goal, bounds: Bounds) -> Trial | None:
    """Return the trial of the best accepted candidate that beats the baseline for a goal, else the baseline.

    Where the baseline itself violates a bound, candidates need not beat it: the best accepted one is returned, or None
    if there is none.

    Args:
        trials: measurements of the candidates of one component, with verdicts.
        baseline: measurements of the baseline of the component.
        goal: what the choice optimizes.
        bounds: limits on accuracy and memory.
    """
    others = [trial for trial in trials if trial.candidate != baseline.candidate]
    if not keeps_bounds(baseline, bounds):
        return best_trial(others, goal)
    return best_trial((trial for trial in others if beats_baseline(trial, baseline, goal)), goal) or baseline


def choose_accurate(trials: Iterable[Trial], baseline: Trial, goal: Goal, bounds: Bounds) -> Trial | None:
    """Return the trial of the most accurate accepted candidate that beats the baseline for a goal, else the baseline.

    The arguments are those of `choose_trial`, which returns the best candidate for the goal.
    """
    better = [trial for trial in trials if trial.status == "accepted" and beats_baseline(trial, baseline, goal)]
    better = [trial for trial in better if trial.candidate != baseline.candidate]
    return max(better, key=_quality) if better else choose_trial((), baseline, goal, bounds)


def keeps_bounds(baseline: Trial, bounds: Bounds) -> bool:
    """Return whether a baseline satisfies the bounds, so that it may be the choice."""
    # Few pictures of the original pipeline are scored, too few for the bound min_score.
    return baseline.status == "accepted" and not find_violation(baseline, replace(bounds, min_score=None))


def _baseline_trial(report: Report, component: str) -> Trial | None:
    key = report.baselines.get(component)
    return next((trial for trial in report.trials_of(component) if trial.candidate.key == key), None)


def _networks_of(report: Report, pipeline: Trial) -> Mapping[str, str]:
    """Return the key of each network, by component, with which a pipeline was measured; a student has its own."""
    if pipeline.candidate.recipe != SAMPLING:
        return {}
    return {**report.evaluated_with, **report.networks_of(pipeline.candidate)}


def _with_accepted_networks(report: Report, pipelines: Iterable[Trial]) -> list[Trial]:
    """Return the pipelines whose networks are all accepted; a distilled student brings networks of its own."""
    return [
        pipeline
        for pipeline in pipelines
        if all(report.trial(name, key).status == "accepted" for name, key in _networks_of(report, pipeline).items())
    ]


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
    """Return a sort key for the goal throughput: seconds per sample at the best batch size, then the inverse speed-up.

    The second value orders candidates that were not timed in batches.
    """
    best = best_batch(trial)
    return best[1] if best else float("inf"), _latency(trial)


def _memory(trial: Trial) -> tuple[float, float]:
    return rounded_peak(trial), _latency(trial)


_SORT_KEYS: Mapping[Goal, Callable[[Trial], float | tuple[float, float]]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "cost": _throughput,
}
