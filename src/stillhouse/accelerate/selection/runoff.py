"""The final: candidates whose intervals overlap the fastest one's are timed once more, all in the same rounds."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic

from stillhouse.accelerate.evaluation.candidate_process import CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.evaluate import BaselineRun, EvaluationContext, process_timer
from stillhouse.accelerate.evaluation.latency import Timer, TimingBudget, calibrate_calls
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.measure.clock import paired_ratio

MAX_FINALISTS = 4
_MAX_FINALS = 3
BASELINE_KEY = ""
"""The reference's key among the seconds of a contest."""
FINAL_BUDGET = TimingBudget(min_rounds=18, max_rounds=48, interval_width=0.02, seconds=120.0)
_OPENINGS = 3
_SLOW_OPEN_SECONDS = 5.0
"""Seconds of an opening that is not repeated."""
_MIN_ROUNDS = 3
"""Rounds of networks so slow that no more fit into the time."""

CompareFunction = Callable[[Sequence[Trial]], Mapping[str, Sequence[float]]]
"""Seconds of one call of the baseline and of each trial's candidate that could be opened, by key; nothing where there
is no time for it."""


def select_finalists(trials: Sequence[Trial], memory_limit: int | None = None) -> list[Trial]:
    """Accepted trials that may be the fastest, as far as their intervals tell; no more than fit into the memory."""
    best = best_trial(trials, "latency")
    if best is None or best.ratio is None:
        return []
    near = [
        trial
        for trial in trials
        if trial.status == "accepted"
        and trial.ratio
        and trial.ratio.high >= min(best.ratio.low, 0.95 * best.ratio.value)
    ]
    near = sorted(near, key=lambda trial: -(trial.ratio.value if trial.ratio else 0.0))[:MAX_FINALISTS]
    if memory_limit is not None:
        while len(near) > 1 and sum(trial.peak_bytes or 0 for trial in near) > memory_limit:
            near.pop()
    return near


def run_final(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, budget: TimingBudget = FINAL_BUDGET
) -> list[Trial]:
    """The finalists' trials with ratios that were taken side by side; none where there is nothing to decide."""
    memory = None if context.memory_limit is None else context.memory_limit - baseline.process.memory_bytes
    began = monotonic()

    def compare(finalists: Sequence[Trial]) -> Mapping[str, Sequence[float]]:
        left = budget.seconds - (monotonic() - began)
        return time_side_by_side(finalists, context, baseline, replace(budget, seconds=left)) if left > 0 else {}

    return repeat_finals(trials, compare, memory)


def repeat_finals(trials: Sequence[Trial], compare: CompareFunction, memory_limit: int | None = None) -> list[Trial]:
    """Finals until the fastest was in one: the trials that were, with the ratios of their last.

    The fastest of many short races is not as fast as it looked (the winner's curse), and falls back in its final.
    Whoever leads then has a final with those beside it, too, up to `_FINALS` in all.
    """
    standing = {trial.candidate.key: trial for trial in trials}
    timed: dict[str, Trial] = {}
    seen: set[str] = set()
    for _ in range(_MAX_FINALS):
        near = select_finalists(list(standing.values()), memory_limit)
        if len(near) < 2 or near[0].candidate.key in seen:
            break
        seen.update(trial.candidate.key for trial in near)
        try:
            seconds = compare(near)
        except CandidateError:
            break
        if not seconds:
            break
        for trial in near:
            if taken := seconds.get(trial.candidate.key):
                timed[trial.candidate.key] = trial.with_timings(taken, baseline_seconds=seconds[BASELINE_KEY])
        standing |= timed
    return list(timed.values())


def time_side_by_side(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, budget: TimingBudget = FINAL_BUDGET
) -> dict[str, list[float]]:
    """Seconds of one call, by candidate key and of the baseline, all taken in the same rounds; each in its own process.

    Processes that open quickly are opened `_OPENINGS` times: one that has its threads and its memory in lucky places
    is faster than its like for as long as it lives.

    Raises:
        SubjectFailed: one that was opened did not answer. What cannot be opened is left out.
    """
    is_slow = any((trial.open_seconds or 0) + (trial.first_seconds or 0) > _SLOW_OPEN_SECONDS for trial in trials)
    openings = 1 if is_slow else _OPENINGS
    least, most = (math.ceil(rounds / openings) for rounds in (budget.min_rounds, budget.max_rounds))
    share = replace(budget, min_rounds=least, max_rounds=most, seconds=budget.seconds / openings)
    parts = [_time_in_processes(trials, context, baseline, share) for _ in range(openings)]
    return {key: [lap for part in parts for lap in part[key]] for key in parts[0] if all(key in part for part in parts)}


def _time_in_processes(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, budget: TimingBudget
) -> dict[str, list[float]]:
    with ExitStack() as stack:
        laps = {BASELINE_KEY: process_timer(baseline.process, context.timeout)}
        for trial in trials:
            if trial.candidate == baseline.process.task.candidate:
                continue
            try:
                subject = stack.enter_context(
                    CandidateProcess(context.make_task(trial.candidate), context.memory_limit, (baseline.process,))
                )
                if trial.artifact and trial.graph:
                    subject.call("use_graph", str(context.root / trial.graph), timeout=context.timeout)
                subject.call("open", timeout=context.timeout)
            except CandidateError:
                continue
            laps[trial.candidate.key] = process_timer(subject, context.timeout)
        return time_rounds(laps, budget)


def time_rounds(
    timers: Mapping[str, Timer], budget: TimingBudget, clock: Callable[[], float] = monotonic
) -> dict[str, list[float]]:
    """Seconds of one call of each, in rounds, until no rival of the fastest can be faster by more than `effort.width`.

    >>> time_rounds({"": lambda calls: 2.0 * calls, "one": lambda calls: 1.0 * calls}, TimingBudget(min_rounds=2, max_rounds=8))
    {'': [2.0, 2.0], 'one': [1.0, 1.0]}
    """
    began = clock()
    calls = {key: calibrate_calls(lap) for key, lap in timers.items()}
    seconds: dict[str, list[float]] = {key: [] for key in timers}
    while (rounds := len(seconds[BASELINE_KEY])) < budget.max_rounds:
        for key in list(timers)[:: -1 if rounds % 2 else 1]:
            seconds[key].append(timers[key](calls[key]) / calls[key])
        late = clock() - began > budget.seconds
        if (rounds + 1 >= budget.min_rounds and _is_decided(seconds, budget.interval_width)) or (
            late and rounds + 1 >= _MIN_ROUNDS
        ):
            break
    return seconds


def _is_decided(seconds: Mapping[str, list[float]], width: float) -> bool:
    """Whether no rival of the fastest is faster by more than `width`, with 95 % certainty."""
    fastest = max(seconds, key=lambda key: paired_ratio(seconds[BASELINE_KEY], seconds[key]).value)
    return all(paired_ratio(taken, seconds[fastest]).low >= 1 - width for taken in seconds.values())
