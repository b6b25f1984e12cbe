"""Latency comparison: time a candidate and the baseline in alternating rounds until the ratio is precise enough."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise

Timer = Callable[[int], float]
"""Runs a number of calls and returns their seconds."""

MIN_ROUND_SECONDS = 0.1
"""Minimum duration of a round, so that clock resolution and interruptions have little influence."""
LONG_ROUND_SECONDS = 5.0
"""Duration of a round from which few rounds suffice, because a long round averages over interruptions."""
_LONG_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class TimingBudget:
    """Limits of a latency comparison.

    Args:
        min_rounds, max_rounds: number of rounds; the minimum is at most three where a round takes LONG_ROUND_SECONDS.
        interval_width: half the 95 % interval, as a share of the ratio, at which timing ends.
        seconds: time after which no new round begins, once there are `min_rounds`.
        early_stop_ratio: timing ends once the speed-up's interval is below this ratio.
    """

    min_rounds: int = 5
    max_rounds: int = 20
    interval_width: float = 0.03
    seconds: float = 2.5
    early_stop_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Seconds of one call of baseline and candidate, and the candidate's speed-up."""

    baseline: Timing
    candidate: Timing
    ratio: Ratio


def calibrate_calls(timer: Timer) -> int:
    """Return the number of calls for a round of MIN_ROUND_SECONDS.

    One call is run to warm up. If this call is quick, a second call is run and measured.
    """
    if timer(1) > LONG_ROUND_SECONDS:
        return 1
    return max(1, round(MIN_ROUND_SECONDS / max(timer(1), 1e-6)))


def compare_latency(
    baseline: Timer, candidate: Timer, budget: TimingBudget = TimingBudget(), clock: Callable[[], float] = monotonic
) -> LatencyComparison:
    """Time baseline and candidate in alternating order, and return the paired speed-up.

    >>> budget = TimingBudget(min_rounds=3, max_rounds=3)
    >>> compare_latency(lambda calls: 2.0 * calls, lambda calls: 1.0 * calls, budget).ratio.value
    2.0
    """
    start = clock()
    calls = (calibrate_calls(baseline), calibrate_calls(candidate))
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
