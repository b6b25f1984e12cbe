"""Sequential decision whether the pictures of a pipeline candidate are correct as often as the baseline's.

A program (oracle) finds each picture correct or not. The score is the share of correct pictures; its gain is the
candidate's score minus the baseline's, on the same prompts and seeds. Pictures are added in stages, so a gain is looked
at several times. At each look the candidate is accepted, rejected, or undecided until the next look.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

LOOKS = (24, 64, 128, 256, 512, 1000)
"""Numbers of pictures at which the gain is looked at."""
MIN_ACCEPTED = 256
"""Minimum number of pictures on which a candidate with other sampling options is accepted."""
ACCEPTED_SLACK = 0.03
"""Share by which the lower end of the interval over all looks may lie below the bound where a candidate is accepted.

An interval that lies above a bound of one point takes more than ten thousand pictures. So the mean of the gain decides,
together with this limit on its uncertainty: a candidate that is 5 points worse is accepted in less than 1 % of cases.
"""
_Z95 = 1.959964
_LOOKS_Z = 2.553
"""Critical value of the interval over all looks: the true gain is outside the interval at any look in 5 % of cases.

It is the 95 % quantile of the maximum of |W(n)| / sqrt(n) over `LOOKS`, where W is Brownian motion, from 400,000
simulated paths. For six looks of equal distance the value is 2.453 (Pocock 1977, "Group sequential methods in the
design and analysis of clinical trials").
"""

Decision = Literal["accepted", "rejected", "undecided"]


class ScoreGain(NamedTuple):
    """Change of a score from one way to generate pictures to another, on the same prompts and seeds.

    Args:
        mean: mean change, -1 to 1.
        low, high: ends of its 95 % interval.
    """

    mean: float
    low: float
    high: float


def paired_score_gain(before: Sequence[bool], after: Sequence[bool]) -> ScoreGain:
    """Return how much the score (share of correct pictures) changes, with its 95 % interval.

    The interval is the adjusted Wald interval for paired proportions (Bonett and Price 2012, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data"): one picture is added to each of the two
    counts of changed pictures, so that the interval does not vanish where no picture changes. Its centre is therefore
    nearer to 0 than the mean; the interval is extended to the mean where needed.

    Args:
        before, after: whether each picture is correct, for two ways to generate the same pictures, in the same order.

    >>> mean, low, high = paired_score_gain([True] * 100, [True] * 99 + [False])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (-0.01, -0.043, 0.023)
    """
    first, second = np.asarray(before, bool), np.asarray(after, bool)
    count = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    mean = (gained - lost) / count
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    centre = up - down
    half_width = _Z95 * float(np.sqrt((up + down - centre**2) / (count + 2)))
    return ScoreGain(mean, max(-1.0, min(mean, centre - half_width)), min(1.0, max(mean, centre + half_width)))


def interval_over_looks(gain: ScoreGain) -> tuple[float, float]:
    """Return the ends of an interval that contains the true gain at all `LOOKS` together in 95 % of cases.

    `gain` has the 95 % interval of one look, which is widened.
    """
    centre, half_width = (gain.low + gain.high) / 2, (gain.high - gain.low) / 2
    wider = _LOOKS_Z / _Z95 * half_width
    return min(gain.mean, centre - wider), max(gain.mean, centre + wider)


def decide_gain(gain: ScoreGain, count: int, max_drop: float) -> Decision:
    """Return the decision about a candidate at one look.

    It is rejected where the interval over all looks lies below the bound. It is accepted where the interval lies above
    the bound, or where the mean does, `count` is at least `MIN_ACCEPTED`, and the interval's lower end is at most
    `ACCEPTED_SLACK` below the bound.

    Args:
        gain: gain of the score over the baseline.
        count: number of pictures.
        max_drop: the bound: maximum drop of the score, as a share (0.01 is one point).

    >>> decide_gain(ScoreGain(-0.083, -0.20, 0.03), 24, 0.01)
    'undecided'
    >>> decide_gain(ScoreGain(-0.083, -0.11, -0.05), 256, 0.01)
    'rejected'
    """
    low, high = interval_over_looks(gain)
    if high < -max_drop:
        return "rejected"
    if low >= -max_drop or (count >= MIN_ACCEPTED and gain.mean >= -max_drop and low >= -max_drop - ACCEPTED_SLACK):
        return "accepted"
    return "undecided"


def decide_gains(gains: Sequence[ScoreGain], count: int, max_drop: float) -> Decision:
    """Return the decision about a candidate with several scores, such as two degrees of strictness.

    The candidate is rejected where one score is, accepted where all are, and else undecided; see `decide_gain`.
    """
    decisions = {decide_gain(gain, count, max_drop) for gain in gains}
    if "rejected" in decisions:
        return "rejected"
    return "accepted" if decisions <= {"accepted"} else "undecided"


def is_unlikely(gains: Sequence[ScoreGain], count: int, max_drop: float) -> bool:
    """Return whether an undecided candidate is unlikely to be accepted on more pictures.

    That is where the mean of a score, plus one standard error, is below the bound, on 64 pictures or more.
    """
    errors = [(gain.high - gain.low) / (2 * _Z95) for gain in gains]
    return count >= LOOKS[1] and any(gain.mean + error < -max_drop for gain, error in zip(gains, errors, strict=True))


def next_look(count: int) -> int | None:
    """Return the number of pictures of the look after `count` pictures; None after the last look.

    >>> next_look(24), next_look(1000)
    (64, None)
    """
    return next((look for look in LOOKS if look > count), None)
