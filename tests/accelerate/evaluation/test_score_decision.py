"""Sequential decision about scores: closed forms, and error rates over all looks by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.evaluation.score_decision import (
    LOOKS,
    MIN_ACCEPTED,
    Decision,
    ScoreGain,
    decide_gain,
    decide_gains,
    interval_over_looks,
    is_unlikely,
    next_look,
    paired_score_gain,
)

DROP = 0.01
RUNS = 2000


def decisions(gain: float, changed: float, seed: int = 0) -> list[Decision]:
    """First decision of each simulated run of pictures; "undecided" where the last look decides nothing.

    Args:
        gain: true gain of the score.
        changed: share of pictures whose verdict changes in either direction.
    """
    generator = np.random.default_rng(seed)
    draws = generator.random((RUNS, LOOKS[-1]))
    lost = (draws < (changed - gain) / 2).cumsum(1)
    gained = (draws > 1 - (changed + gain) / 2).cumsum(1)
    return [_first_decision(gained[run], lost[run]) for run in range(RUNS)]


def _first_decision(gained: np.ndarray, lost: np.ndarray) -> Decision:
    for count in LOOKS:
        before = [True] * int(lost[count - 1]) + [False] * (count - int(lost[count - 1]))
        after = [False] * (count - int(gained[count - 1])) + [True] * int(gained[count - 1])
        decision = decide_gain(paired_score_gain(before, after), count, DROP)
        if decision != "undecided":
            return decision
    return "undecided"


@pytest.mark.parametrize("changed", [0.04, 0.1, 0.3])
def test_a_way_as_good_as_the_baseline_is_rejected_in_less_than_one_run_in_twenty(changed: float) -> None:
    results = decisions(0.0, changed)
    assert results.count("rejected") / RUNS < 0.05
    assert changed > 0.1 or results.count("accepted") / RUNS > 0.85


@pytest.mark.parametrize("changed", [0.1, 0.3])
def test_a_way_at_the_very_bound_is_rejected_in_less_than_one_run_in_twenty(changed: float) -> None:
    assert decisions(-DROP, changed).count("rejected") / RUNS < 0.05


@pytest.mark.parametrize("changed", [0.06, 0.1, 0.3])
def test_a_way_five_points_worse_is_accepted_in_less_than_one_run_in_a_hundred(changed: float) -> None:
    results = decisions(-0.05, changed)
    assert results.count("accepted") / RUNS < 0.01
    assert changed > 0.1 or results.count("rejected") / RUNS > 0.9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_the_interval_contains_the_mean_and_is_the_negative_of_the_reversed_comparison(
    pairs: list[tuple[bool, bool]],
) -> None:
    before, after = zip(*pairs, strict=True)
    gain, loss = paired_score_gain(before, after), paired_score_gain(after, before)
    assert gain.mean == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    assert -1 <= gain.low <= gain.mean <= gain.high <= 1 and gain.low < gain.high
    assert (loss.mean, loss.low, loss.high) == pytest.approx((-gain.mean, -gain.high, -gain.low))
    low, high = interval_over_looks(gain)
    assert low <= gain.low and gain.high <= high


def test_the_interval_is_that_of_bonett_and_price() -> None:
    # 10 pictures gained and 2 lost of 48: (11 - 3) / 50 with the variance (0.22 + 0.06 - 0.16^2) / 50
    before = [False] * 10 + [True] * 2 + [True] * 36
    after = [True] * 10 + [False] * 2 + [True] * 36
    gain = paired_score_gain(before, after)
    half_width = 1.959964 * ((0.22 + 0.06 - 0.16**2) / 50) ** 0.5
    assert gain == pytest.approx((8 / 48, 0.16 - half_width, 0.16 + half_width))


def test_equal_pictures_do_not_give_an_interval_of_no_width() -> None:
    gain = paired_score_gain([True] * 8, [True] * 8)
    assert gain.mean == 0 and gain.low < -0.2 and gain.high > 0.2


def test_few_pictures_accept_nothing_unless_the_interval_does() -> None:
    good = ScoreGain(0.0, -0.005, 0.005)
    assert decide_gain(good, 24, DROP) == "accepted"
    fair = ScoreGain(0.0, -0.02, 0.02)
    assert decide_gain(fair, MIN_ACCEPTED - 1, DROP) == "undecided"
    assert decide_gain(fair, MIN_ACCEPTED, DROP) == "accepted"
    assert decide_gain(ScoreGain(-0.011, -0.02, 0.0), MIN_ACCEPTED, DROP) == "undecided"
    assert decide_gain(ScoreGain(0.0, -0.06, 0.06), MIN_ACCEPTED, DROP) == "undecided"


def test_one_bad_score_rejects_and_all_must_be_good_to_accept() -> None:
    good, unsure, bad = ScoreGain(0.0, -0.01, 0.01), ScoreGain(0.0, -0.1, 0.1), ScoreGain(-0.2, -0.25, -0.15)
    assert decide_gains([good, bad], 256, DROP) == "rejected"
    assert decide_gains([good, unsure], 256, DROP) == "undecided"
    assert decide_gains([good, good], 256, DROP) == "accepted"


def test_what_is_unlikely_to_be_accepted_was_looked_at_twice() -> None:
    poor = ScoreGain(-0.08, -0.14, -0.02)
    assert is_unlikely([poor], 64, DROP) and not is_unlikely([poor], 24, DROP)
    assert not is_unlikely([ScoreGain(-0.02, -0.06, 0.02)], 64, DROP)


def test_looks_follow_each_other() -> None:
    assert next_look(0) == LOOKS[0] and next_look(LOOKS[-1]) is None
    assert [next_look(look) for look in LOOKS[:-1]] == list(LOOKS[1:])
