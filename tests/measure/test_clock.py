"""Fair timing: turns, pairs, intervals."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.measure.clock import paired_ratio, run_interleaved, summarise


def test_subjects_take_turns_and_the_order_turns_round() -> None:
    order: list[str] = []

    def subject(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    seconds = run_interleaved({"a": subject("a"), "b": subject("b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [1, 4, 5], "b": [2, 3, 6]}


@given(st.floats(0.1, 10), st.lists(st.floats(0.5, 2.0), min_size=3, max_size=20))
def test_a_drift_that_both_share_leaves_the_ratio_alone(factor: float, drift: list[float]) -> None:
    ratio = paired_ratio([factor * slow for slow in drift], drift)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((factor, factor, factor))


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        noise = np.exp(rng.normal(0, 0.2, (2, 25)))
        ratio = paired_ratio((3 * noise[0]).tolist(), noise[1].tolist(), resamples=300)
        hits += ratio.low <= 3 <= ratio.high
    assert 0.85 <= hits / 200 <= 1.0


ROUNDS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=30)


@given(ROUNDS)
def test_who_is_compared_with_whom_does_not_matter(rounds: list[tuple[float, float]]) -> None:
    one, other = zip(*rounds, strict=True)
    assert paired_ratio(one, other).value * paired_ratio(other, one).value == pytest.approx(1)


@given(ROUNDS)
def test_the_ratio_lies_between_those_of_the_rounds_and_in_its_interval(rounds: list[tuple[float, float]]) -> None:
    slow, fast = zip(*rounds, strict=True)
    ratio = paired_ratio(slow, fast)
    ratios = [a / b for a, b in rounds]
    assert min(ratios) * (1 - 1e-9) <= ratio.low <= ratio.high <= max(ratios) * (1 + 1e-9)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_round_in_five_may_be_spoilt_on_either_side(low: float, high: float) -> None:
    spoilt = [1.0] * 6 + [low, low, high, high]
    fast = [1.0] * 10
    value = paired_ratio(spoilt, fast).value
    assert value == 1.0 or (low > 1) == (high > 1)


def test_two_speeds_of_one_machine_are_both_counted() -> None:
    """Where the median would tell the more frequent one, 1.5 or 1.0, whichever had one round more."""
    more, less = ([1.5] * count + [1.0] * (21 - count) for count in (11, 10))
    assert paired_ratio(more, [1.0] * 21).value == pytest.approx(paired_ratio(less, [1.0] * 21).value, rel=0.04)


def test_summary_of_known_seconds() -> None:
    timing = summarise([3.0, 1.0, 2.0])
    assert (timing.median, timing.least, timing.runs) == (2.0, 1.0, 3)
    assert timing.p95 == pytest.approx(2.9)
