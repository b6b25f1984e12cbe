"""Latency comparison: time a candidate and the baseline in the same rounds until their ratio is precise enough."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise

Timer = Callable[[int], float]
"""Function that runs the given number of calls one after the other, and returns their total seconds."""

LONG_ROUND_SECONDS = 5.0
"""Duration of a round in seconds from which few rounds suffice, because a long round averages over interruptions."""
LONG_CALL_SECONDS = 1.0
"""Duration of a call in seconds from which a round has one call, and no further call only warms up."""
_LONG_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class TimingBudget:
    """Limits of a latency comparison between a candidate and the baseline, which are timed once in each round.

    Args:
        min_rounds, max_rounds: number of rounds. Three rounds suffice where a round takes LONG_ROUND_SECONDS or more.
        interval_width: timing ends once half the width of the speed-up's 95 % interval is at most this share of
            the speed-up.
        seconds: time after which no new round begins, once there were `min_rounds`.
        early_stop_ratio: timing ends once the speed-up's whole 95 % interval is below this value.
        round_seconds: planned duration of one round of calls. Short rounds are sensitive to clock resolution and
            interruptions.
        openings: number of times that each network is opened in a new process, between which the rounds are divided.
            Only the timing that decides between the fastest candidates opens networks again.
    """

    min_rounds: int = 5
    max_rounds: int = 20
    interval_width: float = 0.03
    seconds: float = 2.5
    early_stop_ratio: float = 0.0
    round_seconds: float = 0.1
    openings: int = 1


FINAL_BUDGET = TimingBudget(min_rounds=18, max_rounds=48, interval_width=0.02, seconds=120.0, openings=3)
"""Limits of the side-by-side timing of the fastest candidates, which decides between them; see `selection.runoff`."""


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Result of a latency comparison.

    Args:
        baseline, candidate: seconds of one call of the baseline and of the candidate.
        ratio: speed-up of the candidate over the baseline, with its 95 % interval.
    """

    baseline: Timing
    candidate: Timing
    ratio: Ratio


def calibrate_calls(timer: Timer, seconds: float) -> int:
    """Return how many calls together take the given seconds, at least 1.

    The first call warms up. If this call takes more than LONG_CALL_SECONDS, the result is 1. Otherwise the result
    follows from the duration of a second call.

    Args:
        timer: function that runs a number of calls and returns their total seconds.
        seconds: planned duration of all calls together.
    """
    if timer(1) > LONG_CALL_SECONDS:
        return 1
    return max(1, round(seconds / max(timer(1), 1e-6)))


def compare_latency(
    baseline: Timer, candidate: Timer, budget: TimingBudget = TimingBudget(), clock: Callable[[], float] = monotonic
) -> LatencyComparison:
    """Time the baseline and a candidate in the same rounds, and return the durations and the speed-up.

    The order of the two changes from round to round. The speed-up is computed from pairs of the same round.

    Args:
        baseline, candidate: functions that run a number of calls and return their total seconds.
        budget: limits on rounds and time.
        clock: returns the present time in seconds.

    >>> budget = TimingBudget(min_rounds=3, max_rounds=3)
    >>> compare_latency(lambda calls: 2.0 * calls, lambda calls: 1.0 * calls, budget).ratio.value
    2.0
    """
    start = clock()
    calls = (calibrate_calls(baseline, budget.round_seconds), calibrate_calls(candidate, budget.round_seconds))
    baseline_seconds: list[float] = []
    candidate_seconds: list[float] = []
    while len(baseline_seconds) < budget.max_rounds:
        pair = [(baseline, calls[0], baseline_seconds), (candidate, calls[1], candidate_seconds)]
        for timer, count, seconds in pair if len(baseline_seconds) % 2 else pair[::-1]:
            seconds.append(timer(count) / count)
        is_long = calls[0] * baseline_seconds[0] + calls[1] * candidate_seconds[0] >= LONG_ROUND_SECONDS
        if is_long and baseline_seconds[-1] < candidate_seconds[-1] * budget.early_stop_ratio / 2:
            break
        if len(baseline_seconds) >= (min(_LONG_ROUNDS, budget.min_rounds) if is_long else budget.min_rounds):
            ratio = paired_ratio(baseline_seconds, candidate_seconds, resamples=500)
            is_precise = (ratio.high - ratio.low) / 2 <= budget.interval_width * ratio.value
            if is_precise or ratio.high < budget.early_stop_ratio or clock() - start > budget.seconds:
                break
    return LatencyComparison(
        summarise(baseline_seconds), summarise(candidate_seconds), paired_ratio(baseline_seconds, candidate_seconds)
    )
