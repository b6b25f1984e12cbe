"""Meters: what a key asks for never exceeds its rate and its day, and what was refused is not counted."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.serve.client import DAY, Client, LimitExceeded, RateLimiter

SLOW = Client("k", "free", frozenset({"free"}), rate=10.0, burst=100.0)


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(1, 100)), max_size=60))
def test_no_stretch_of_time_gets_more_than_the_bucket_and_what_flowed_in(asked: list[tuple[float, float]]) -> None:
    time = FakeClock()
    meter = RateLimiter(time)
    taken: list[tuple[float, float]] = []
    for pause, amount in asked:
        time.now += pause
        short = meter.charge(SLOW, amount)
        if short is None:
            taken.append((time.now, amount))
        else:
            assert short.reason == "rate" and 0 < short.retry_after <= 10.0
    for first, (begin, _) in enumerate(taken):
        for last in range(first, len(taken)):
            assert sum(amount for _, amount in taken[first : last + 1]) <= 100 + 10 * (taken[last][0] - begin) + 1e-6


@given(st.floats(1, 100), st.floats(1, 100))
def test_whoever_comes_back_when_told_is_served(first: float, second: float) -> None:
    time = FakeClock()
    meter = RateLimiter(time)
    assert meter.charge(SLOW, first) is None
    if short := meter.charge(SLOW, second):
        time.now += short.retry_after * (1 + 1e-9)
        assert meter.charge(SLOW, second) is None


def test_a_picture_larger_than_the_bucket_needs_a_full_one_and_leaves_a_debt() -> None:
    time = FakeClock()
    meter = RateLimiter(time)
    assert meter.charge(SLOW, 300.0) is None
    assert meter.charge(SLOW, 1.0) == LimitExceeded("rate", 20.1)


def test_a_day_ends_at_midnight() -> None:
    time = FakeClock()
    meter = RateLimiter(time)
    daily = replace(SLOW, rate=None, burst=None, daily=50.0)
    time.now = DAY - 60
    assert meter.charge(daily, 40.0) is None
    assert meter.charge(daily, 20.0) == LimitExceeded("quota", 60.0)
    time.now = DAY
    assert meter.charge(daily, 50.0) is None


def test_what_is_given_back_may_be_asked_for_again() -> None:
    meter = RateLimiter(FakeClock())
    assert meter.charge(SLOW, 100.0) is None
    meter.refund(SLOW, 100.0)
    assert meter.charge(SLOW, 100.0) is None


def test_a_key_without_limits_is_never_refused() -> None:
    meter = RateLimiter(FakeClock())
    assert all(meter.charge(Client("k", "free", frozenset()), 1e12) is None for _ in range(10))


def test_another_meter_goes_on_with_the_day_and_forgets_yesterday() -> None:
    time = FakeClock()
    time.now = 3 * DAY + 1
    daily = replace(SLOW, rate=None, burst=None, daily=50.0)
    first, second = RateLimiter(time), RateLimiter(time)
    first.charge(daily, 30.0)
    assert first.daily_usage == {"k": (3, 30.0)}
    second.restore(first.daily_usage)
    assert second.charge(daily, 20.0) is None and second.charge(daily, 1.0) == LimitExceeded("quota", DAY - 1)
    time.now += DAY
    third = RateLimiter(time)
    third.restore(second.daily_usage)
    assert third.charge(daily, 50.0) is None


def test_after_a_restart_a_bucket_is_full_and_no_more() -> None:
    meter = RateLimiter(FakeClock())
    meter.restore({"k": (0, 30.0)})
    assert meter.charge(SLOW, 100.0) is None
    assert meter.charge(SLOW, 10.0) == LimitExceeded("rate", 1.0)


def test_buckets_that_tell_nothing_any_more_are_forgotten_and_no_others() -> None:
    time = FakeClock()
    meter = RateLimiter(time)
    for number in range(5000):
        meter.charge(replace(SLOW, key=f"address {number}"), 10.0)
        time.now += 0.1
    assert len(meter.buckets) <= 1024
    daily = replace(SLOW, key="daily", rate=None, burst=None, daily=50.0)
    meter.charge(daily, 40.0)
    for number in range(5000):
        meter.charge(replace(SLOW, key=f"another {number}"), 10.0)
        time.now += 0.1
    assert meter.charge(daily, 20.0) is not None


def test_whoever_has_no_limits_is_not_counted() -> None:
    meter = RateLimiter(FakeClock())
    assert meter.charge(replace(SLOW, rate=None, burst=None), 1e9) is None
    assert not meter.buckets
