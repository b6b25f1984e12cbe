"""The runoff: time the fastest candidates again, side by side, to decide which is the fastest.

The earlier speed-ups of these candidates have overlapping 95 % intervals. One side-by-side timing is called a final,
its candidates finalists.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic

from stillhouse.accelerate.evaluation.candidate_messages import Open, UseGraph
from stillhouse.accelerate.evaluation.candidate_process import CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.latency import FINAL_BUDGET, Timer, TimingBudget, calibrate_calls
from stillhouse.accelerate.evaluation.measure import process_timer
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.measure.clock import paired_ratio

MAX_FINALISTS = 4
_MAX_FINALS = 3
BASELINE_KEY = ""
"""Key of the baseline in mappings of timings; other keys are those of candidates."""
_SLOW_OPEN_SECONDS = 5.0
"""If opening and first calling a candidate's network takes more than these seconds, all candidates of a side-by-side
timing are opened only once, not `TimingBudget.openings` times."""
_MIN_ROUNDS = 3
"""Minimum number of timing rounds, even if the time budget has ended."""

CompareFunction = Callable[[Sequence[Trial]], Mapping[str, Sequence[float]]]
"""Function that times candidates and the baseline side by side. It takes the trials (earlier measurements) of the
candidates, and returns the seconds per call of each round by candidate key, with the baseline under BASELINE_KEY.
Candidates that cannot be opened are missing; the result is empty where no time is left.
"""


def select_finalists(trials: Sequence[Trial], memory_limit: int | None = None) -> list[Trial]:
    """Return up to MAX_FINALISTS accepted trials that may be the fastest by their 95 % intervals, fastest first.

    The slowest are left out until the rest fit into `memory_limit` bytes (None: no limit), but at least one stays.
    """
    best = best_trial(trials, "latency")
    if best is None or best.ratio is None:
        return []
    finalists = [
        trial
        for trial in trials
        if trial.status == "accepted"
        and trial.ratio
        and trial.ratio.high >= min(best.ratio.low, 0.95 * best.ratio.value)
    ]
    finalists = sorted(finalists, key=lambda trial: -(trial.ratio.value if trial.ratio else 0.0))[:MAX_FINALISTS]
    if memory_limit is not None:
        while len(finalists) > 1 and sum(trial.peak_bytes or 0 for trial in finalists) > memory_limit:
            finalists.pop()
    return finalists


def final_seconds(trials: Sequence[Trial], memory_limit: int | None = None) -> float:
    """Return the least seconds of a final: opening its candidates, and `_MIN_ROUNDS` rounds with the baseline.

    The result is 0 where fewer than two candidates may be the fastest.
    """
    finalists = select_finalists(trials, memory_limit)
    if len(finalists) < 2:
        return 0.0
    calls = [trial.seconds.median for trial in finalists if trial.seconds]
    baseline = max((trial.baseline_seconds.median for trial in finalists if trial.baseline_seconds), default=0.0)
    opening = sum((trial.open_seconds or 0.0) + (trial.first_seconds or 0.0) for trial in finalists)
    return opening + (1 + _MIN_ROUNDS) * (sum(calls) + baseline)


def run_final(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, budget: TimingBudget = FINAL_BUDGET
) -> list[Trial]:
    """Time again, side by side, those candidates of a network that may be the fastest; return their updated trials.

    The result is empty where fewer than two candidates may be the fastest.

    Args:
        context: inputs and limits of the processes.
        baseline: the open baseline that speed-ups refer to.
        budget: limits on rounds and time of all side-by-side timings together.
    """
    memory_limit = None if context.memory_limit is None else context.memory_limit - baseline.process.memory_bytes
    start = monotonic()

    def compare(finalists: Sequence[Trial]) -> Mapping[str, Sequence[float]]:
        seconds = budget.seconds - (monotonic() - start)
        return time_side_by_side(finalists, context, baseline, replace(budget, seconds=seconds)) if seconds > 0 else {}

    return repeat_finals(trials, compare, memory_limit)


def repeat_finals(trials: Sequence[Trial], compare: CompareFunction, memory_limit: int | None = None) -> list[Trial]:
    """Time again, side by side, the candidates that may be the fastest, until the fastest has been timed in this way.

    One such timing is called a final. Its candidates are those that may be the fastest by all timings so far. The
    fastest of many short timings is overestimated (winner's curse), and may turn out slower in its final. Another
    candidate is then the fastest; if this candidate has not been in a final, the next final includes it. There are at
    most _MAX_FINALS finals.

    Args:
        trials: measurements of all candidates of a network.
        compare: function that times a group of candidates side by side.
        memory_limit: bytes for all candidates of a final together; None: no limit.

    Returns:
        the trials of all candidates that were in a final, with their latest timings.
    """
    latest = {trial.candidate.key: trial for trial in trials}
    timed: dict[str, Trial] = {}
    finalist_keys: set[str] = set()
    for _ in range(_MAX_FINALS):
        finalists = select_finalists(list(latest.values()), memory_limit)
        if len(finalists) < 2 or finalists[0].candidate.key in finalist_keys:
            break
        finalist_keys.update(trial.candidate.key for trial in finalists)
        try:
            seconds = compare(finalists)
        except CandidateError:
            break
        if not seconds:
            break
        for trial in finalists:
            if timings := seconds.get(trial.candidate.key):
                timed[trial.candidate.key] = trial.with_timings(timings, baseline_seconds=seconds[BASELINE_KEY])
        latest |= timed
    return list(timed.values())


def time_side_by_side(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, budget: TimingBudget = FINAL_BUDGET
) -> dict[str, list[float]]:
    """Time several candidates and the baseline in the same rounds, with a process for each candidate.

    Networks that open quickly are opened and timed `budget.openings` times in new processes, because thread placement
    and memory layout make a process faster or slower for its whole lifetime.

    Args:
        trials: earlier measurements of the candidates.
        context: inputs and limits of the processes.
        baseline: the open baseline.
        budget: limits on rounds and time, which the openings share.

    Returns:
        seconds per call of each round by candidate key, with the baseline under BASELINE_KEY. Candidates that could not
        be opened are missing.

    Raises:
        CandidateError: an open process did not reply.
    """
    is_slow = any((trial.open_seconds or 0) + (trial.first_seconds or 0) > _SLOW_OPEN_SECONDS for trial in trials)
    openings = 1 if is_slow else budget.openings
    min_rounds, max_rounds = (math.ceil(rounds / openings) for rounds in (budget.min_rounds, budget.max_rounds))
    budget_per_opening = replace(
        budget, min_rounds=min_rounds, max_rounds=max_rounds, seconds=budget.seconds / openings
    )
    parts = [_time_in_processes(trials, context, baseline, budget_per_opening) for _ in range(openings)]
    return {
        key: [seconds for part in parts for seconds in part[key]]
        for key in parts[0]
        if all(key in part for part in parts)
    }


def _time_in_processes(
    trials: Sequence[Trial], context: EvaluationContext, baseline: BaselineRun, budget: TimingBudget
) -> dict[str, list[float]]:
    with ExitStack() as stack:
        timers = {BASELINE_KEY: process_timer(baseline.process, context.timeout)}
        for trial in trials:
            if trial.candidate == baseline.process.task.candidate:
                continue
            try:
                process = stack.enter_context(
                    CandidateProcess(context.make_task(trial.candidate), context.memory_limit, (baseline.process,))
                )
                if trial.artifact and trial.graph:
                    process.call(UseGraph(str(context.root / trial.graph)), timeout=context.timeout)
                process.call(Open(), timeout=context.timeout)
            except CandidateError:
                continue
            timers[trial.candidate.key] = process_timer(process, context.timeout)
        return time_rounds(timers, budget)


def time_rounds(
    timers: Mapping[str, Timer], budget: TimingBudget, clock: Callable[[], float] = monotonic
) -> dict[str, list[float]]:
    """Run timers in the same rounds until the fastest is known; return the seconds per call of each round by key.

    The fastest is known once no other timer is faster than it by more than the share `budget.interval_width`, with 95 %
    confidence. Timing ends earlier where rounds or time of the budget end.

    Args:
        timers: functions that run a number of calls and return their total seconds, by key, with the baseline under
            BASELINE_KEY.
        budget: limits on rounds and time.
        clock: returns the present time in seconds.

    >>> budget = TimingBudget(min_rounds=2, max_rounds=8)
    >>> time_rounds({BASELINE_KEY: lambda calls: 2.0 * calls, "fast": lambda calls: 1.0 * calls}, budget)
    {'': [2.0, 2.0], 'fast': [1.0, 1.0]}
    """
    start = clock()
    calls = {key: calibrate_calls(timer, budget.round_seconds) for key, timer in timers.items()}
    seconds: dict[str, list[float]] = {key: [] for key in timers}
    while (rounds := len(seconds[BASELINE_KEY])) < budget.max_rounds:
        for key in list(timers)[:: -1 if rounds % 2 else 1]:
            seconds[key].append(timers[key](calls[key]) / calls[key])
        is_decided = rounds + 1 >= budget.min_rounds and _is_decided(seconds, budget.interval_width)
        if is_decided or (rounds + 1 >= _MIN_ROUNDS and clock() - start > budget.seconds):
            break
    return seconds


def _is_decided(seconds: Mapping[str, list[float]], width: float) -> bool:
    """Return whether the fastest candidate is known well enough to end the timing.

    This is the case where, with 95 % confidence, no other candidate is faster than the fastest by more than `width`.

    Args:
        seconds: seconds per call of each round, by candidate key, with the baseline under BASELINE_KEY.
        width: share of the time of one call, for example 0.02.
    """
    fastest = max(seconds, key=lambda key: paired_ratio(seconds[BASELINE_KEY], seconds[key]).value)
    return all(paired_ratio(timings, seconds[fastest]).low >= 1 - width for timings in seconds.values())
