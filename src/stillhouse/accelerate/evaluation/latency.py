"""The race: a candidate against the baseline in turns, until the ratio is known well enough or the time is up."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise

Lap = Callable[[int], float]
"""Runs so many calls, and returns their seconds."""

LAP_SECONDS = 0.1
"""A lap lasts at least this long, so that the clock and a stray interruption do not decide."""
LONG = 5.0
"""Seconds from which a round is its own average: three tell what twenty short ones do."""
_FEW = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try.

    Args:
        least, most: rounds; `least` is at most three where a round lasts `LONG`.
        width: half the interval, as a share of the ratio, that is good enough.
        seconds: after so many no new round begins, once there are `least`.
        hopeless: a ratio; a candidate whose interval ends below it is not timed any further.
    """

    least: int = 5
    most: int = 20
    width: float = 0.03
    seconds: float = 2.5
    hopeless: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of one call of both, and how many times faster the candidate is."""

    baseline: Timing
    candidate: Timing
    ratio: Ratio


def calls_for(lap: Lap) -> int:
    """So many calls that a lap lasts `LAP_SECONDS`; runs one to warm up and, where that was quick, one to tell."""
    if lap(1) > LONG:
        return 1
    return max(1, round(LAP_SECONDS / max(lap(1), 1e-6)))


def race(baseline: Lap, candidate: Lap, effort: Effort = Effort(), clock: Callable[[], float] = monotonic) -> Outcome:
    """Time both in turns; who goes first changes from round to round.

    >>> race(lambda calls: 2.0 * calls, lambda calls: 1.0 * calls, Effort(least=3, most=3)).ratio.value
    2.0
    """
    began = clock()
    calls = (calls_for(baseline), calls_for(candidate))
    slow: list[float] = []
    fast: list[float] = []
    while len(slow) < effort.most:
        pair = [(baseline, calls[0], slow), (candidate, calls[1], fast)]
        for lap, count, taken in pair if len(slow) % 2 else pair[::-1]:
            taken.append(lap(count) / count)
        is_long = calls[0] * slow[0] + calls[1] * fast[0] >= LONG
        if is_long and slow[-1] < fast[-1] * effort.hopeless / 2:
            break
        if len(slow) >= (min(_FEW, effort.least) if is_long else effort.least):
            ratio = paired_ratio(slow, fast, resamples=500)
            known = (ratio.high - ratio.low) / 2 <= effort.width * ratio.value
            if known or ratio.high < effort.hopeless or clock() - began > effort.seconds:
                break
    return Outcome(summarise(slow), summarise(fast), paired_ratio(slow, fast))
