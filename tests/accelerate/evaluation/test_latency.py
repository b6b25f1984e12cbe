"""Latency comparison: alternating rounds, early end, calibrated calls."""

from collections.abc import Callable

import numpy as np
import pytest

from stillhouse.accelerate.evaluation.latency import TimingBudget, calibrate_calls, compare_latency


def constant_timer(seconds: float, calls_log: list[int] | None = None) -> Callable[[int], float]:
    def run(calls: int) -> float:
        if calls_log is not None:
            calls_log.append(calls)
        return calls * seconds

    return run


def test_equal_laps_settle_the_ratio_at_once() -> None:
    comparison = compare_latency(constant_timer(3.0), constant_timer(1.0), TimingBudget(min_rounds=4, max_rounds=50))
    assert (comparison.ratio.value, comparison.ratio.low, comparison.ratio.high) == pytest.approx((3.0, 3.0, 3.0))
    assert comparison.candidate.runs == 4


def test_short_calls_are_bundled_into_laps_of_a_fair_length() -> None:
    calls_log: list[int] = []
    compare_latency(constant_timer(1.0), constant_timer(0.001, calls_log), TimingBudget(min_rounds=2, max_rounds=2))
    assert calls_log[-1] == pytest.approx(TimingBudget().round_seconds / 0.001, abs=1)
    assert calibrate_calls(constant_timer(100.0), 0.1) == 1
    calls: list[int] = []
    assert calibrate_calls(lambda count: calls.append(count) or 1.2, 0.1) == 1  # type: ignore[func-returns-value]
    assert calls == [1], "a long call needs no warm-up besides itself"


def test_a_budget_sets_the_length_of_its_rounds() -> None:
    calls_log: list[int] = []
    budget = TimingBudget(min_rounds=2, max_rounds=2, round_seconds=0.02)
    compare_latency(constant_timer(1.0), constant_timer(0.001, calls_log), budget)
    assert calls_log[-1] == pytest.approx(20, abs=1)


def test_drift_that_both_feel_does_not_move_the_ratio() -> None:
    turns = iter(range(10_000))

    def drifting(seconds: float) -> Callable[[int], float]:
        return lambda calls: calls * seconds * (1 + next(turns) // 2)

    comparison = compare_latency(drifting(0.2), drifting(0.1), TimingBudget(min_rounds=6, max_rounds=6))
    assert comparison.ratio.value == pytest.approx(2.0, rel=0.35)
    assert comparison.candidate.p95 > 2 * comparison.candidate.least


def test_noise_is_timed_longer_but_not_for_ever() -> None:
    rng = np.random.default_rng(0)
    ticks = iter(range(10_000))
    comparison = compare_latency(
        lambda calls: calls * float(rng.uniform(1, 3)),
        lambda calls: calls * float(rng.uniform(1, 3)),
        TimingBudget(min_rounds=3, max_rounds=1000, seconds=20),
        clock=lambda: float(next(ticks)),
    )
    assert 3 < comparison.candidate.runs < 30


def test_who_cannot_win_is_not_timed_to_the_end() -> None:
    rng = np.random.default_rng(0)
    noisy = lambda calls: calls * float(rng.uniform(2, 6))  # noqa: E731
    assert (
        compare_latency(
            constant_timer(1.0), noisy, TimingBudget(min_rounds=5, max_rounds=500, seconds=1e9, early_stop_ratio=2.0)
        ).candidate.runs
        == 5
    )


def test_rounds_that_take_long_are_few_and_need_no_second_warm_up() -> None:
    calls_log: list[int] = []
    rng = np.random.default_rng(0)
    comparison = compare_latency(
        constant_timer(20.0, calls_log),
        lambda calls: calls * float(rng.uniform(9, 11)),
        TimingBudget(min_rounds=8, max_rounds=50),
    )
    assert comparison.candidate.runs == 3
    assert calls_log == [1] * 4


def test_who_is_far_behind_at_twenty_seconds_a_call_is_timed_once() -> None:
    budget = TimingBudget(min_rounds=5, max_rounds=50, early_stop_ratio=1.0)
    assert compare_latency(constant_timer(20.0), constant_timer(45.0), budget).candidate.runs == 1
    assert compare_latency(constant_timer(0.020), constant_timer(0.045), budget).candidate.runs == 5
