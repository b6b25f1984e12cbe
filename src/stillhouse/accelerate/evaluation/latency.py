"""The race: a candidate against the baseline in turns, until the ratio is known well enough or the time is up."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise

Timer = Callable[[int], float]
"""Runs so many calls, and returns their seconds."""

MIN_ROUND_SECONDS = 0.1
"""A lap lasts at least this long, so that the clock and a stray interruption do not decide."""
LONG_ROUND_SECONDS = 5.0
"""Seconds from which a round is its own average: three tell what twenty short ones do."""
_LONG_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class TimingBudget:
    """How hard to try.

    Args:
        least, most: rounds; `least` is at most three where a round lasts `LONG`.
        width: half the interval, as a share of the ratio, that is good enough.
        seconds: after so many no new round begins, once there are `least`.
        hopeless: a ratio; a candidate whose interval ends below it is not timed any further.
    """

    min_rounds: int = 5
    max_rounds: int = 20
    interval_width: float = 0.03
    seconds: float = 2.5
    early_stop_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Seconds of one call of both, and how many times faster the candidate is."""

    baseline: Timing
    candidate: Timing
    ratio: Ratio


def calibrate_calls(timer: Timer) -> int:
    """So many calls that a lap lasts `LAP_SECONDS`; runs one to warm up and, where that was quick, one to tell."""
    if timer(1) > LONG_ROUND_SECONDS:
        return 1
    return max(1, round(MIN_ROUND_SECONDS / max(timer(1), 1e-6)))


def compare_latency(
    baseline: Timer, candidate: Timer, budget: TimingBudget = TimingBudget(), clock: Callable[[], float] = monotonic
) -> LatencyComparison:
    """Time both in turns; who goes first changes from round to round.

    >>> compare_latency(lambda calls: 2.0 * calls, lambda calls: 1.0 * calls, TimingBudget(min_rounds=3, max_rounds=3)).ratio.value
    2.0
    """
    began = clock()
    calls = (calibrate_calls(baseline), calibrate_calls(candidate))
    slow: list[float] = []
    fast: list[float] = []
    while len(slow) < budget.max_rounds:
        pair = [(baseline, calls[0], slow), (candidate, calls[1], fast)]
        for lap, count, taken in pair if len(slow) % 2 else pair[::-1]:
            taken.append(lap(count) / count)
        is_long = calls[0] * slow[0] + calls[1] * fast[0] >= LONG_ROUND_SECONDS
        if is_long and slow[-1] < fast[-1] * budget.early_stop_ratio / 2:
            break
        if len(slow) >= (min(_LONG_ROUNDS, budget.min_rounds) if is_long else budget.min_rounds):
            ratio = paired_ratio(slow, fast, resamples=500)
            known = (ratio.high - ratio.low) / 2 <= budget.interval_width * ratio.value
            if known or ratio.high < budget.early_stop_ratio or clock() - began > budget.seconds:
                break
    return LatencyComparison(summarise(slow), summarise(fast), paired_ratio(slow, fast))
