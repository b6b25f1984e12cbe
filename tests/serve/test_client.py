"""Clients and their rate limits: usage never exceeds rate and quota, and rejected requests are not charged."""

import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import NotAllowed
from stillhouse.serve.client import DAY, Client, Clients, LimitExceeded, RateLimiter
from stillhouse.serve.settings import TierSettings

SLOW = Client("k", "free", frozenset({"free"}), rate=10.0, burst=100.0)


TIERS = {"free": TierSettings("shapes-3"), "pro": TierSettings("shapes")}


def test_without_keys_a_client_is_its_address() -> None:
    client = asyncio.run(Clients(TIERS).authenticate(None, "10.0.0.1"))
    assert (client.key, client.tier, client.tiers) == ("anonymous@10.0.0.1", "free", frozenset(TIERS))


def test_with_keys_a_client_is_its_key() -> None:
    async def find_client(token: str) -> Client:
        return Client(token, "pro", frozenset({"pro"}))

    clients = Clients(TIERS, find_client)
    assert asyncio.run(clients.authenticate("k", "10.0.0.1")).key == "k"
    with pytest.raises(
        NotAllowed, match="the request has no API key; allowed: a request with the header Authorization: Bearer KEY"
    ):
        asyncio.run(clients.authenticate(None, "10.0.0.1"))


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(1, 100)), max_size=60))
def test_usage_never_exceeds_burst_plus_rate(charges: list[tuple[float, float]]) -> None:
    time = FakeClock()
    limiter = RateLimiter(time)
    accepted: list[tuple[float, float]] = []
    for pause, amount in charges:
        time.now += pause
        exceeded = limiter.charge(SLOW, amount)
        if exceeded is None:
            accepted.append((time.now, amount))
        else:
            assert exceeded.reason == "rate" and 0 < exceeded.retry_after <= 10.0
    for first, (begin, _) in enumerate(accepted):
        for last in range(first, len(accepted)):
            assert (
                sum(amount for _, amount in accepted[first : last + 1]) <= 100 + 10 * (accepted[last][0] - begin) + 1e-6
            )


@given(st.floats(1, 100), st.floats(1, 100))
def test_retry_after_is_sufficient(first: float, second: float) -> None:
    time = FakeClock()
    limiter = RateLimiter(time)
    assert limiter.charge(SLOW, first) is None
    if exceeded := limiter.charge(SLOW, second):
        time.now += exceeded.retry_after * (1 + 1e-9)
        assert limiter.charge(SLOW, second) is None


def test_request_larger_than_the_bucket_leaves_a_debt() -> None:
    time = FakeClock()
    limiter = RateLimiter(time)
    assert limiter.charge(SLOW, 300.0) is None
    assert limiter.charge(SLOW, 1.0) == LimitExceeded("rate", 20.1)


def test_quota_resets_at_midnight() -> None:
    time = FakeClock()
    limiter = RateLimiter(time)
    daily = replace(SLOW, rate=None, burst=None, daily=50.0)
    time.now = DAY - 60
    assert limiter.charge(daily, 40.0) is None
    assert limiter.charge(daily, 20.0) == LimitExceeded("quota", 60.0)
    time.now = DAY
    assert limiter.charge(daily, 50.0) is None


def test_refund_can_be_used_again() -> None:
    limiter = RateLimiter(FakeClock())
    assert limiter.charge(SLOW, 100.0) is None
    limiter.refund(SLOW, 100.0)
    assert limiter.charge(SLOW, 100.0) is None


def test_key_without_limits_is_never_rejected() -> None:
    limiter = RateLimiter(FakeClock())
    assert all(limiter.charge(Client("k", "free", frozenset()), 1e12) is None for _ in range(10))


def test_restored_usage_keeps_today_and_drops_yesterday() -> None:
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


def test_restored_bucket_is_full() -> None:
    limiter = RateLimiter(FakeClock())
    limiter.restore({"k": (0, 30.0)})
    assert limiter.charge(SLOW, 100.0) is None
    assert limiter.charge(SLOW, 10.0) == LimitExceeded("rate", 1.0)


def test_only_expired_buckets_are_dropped() -> None:
    time = FakeClock()
    limiter = RateLimiter(time)
    for number in range(5000):
        limiter.charge(replace(SLOW, key=f"address {number}"), 10.0)
        time.now += 0.1
    assert len(limiter.buckets) <= 1024
    daily = replace(SLOW, key="daily", rate=None, burst=None, daily=50.0)
    limiter.charge(daily, 40.0)
    for number in range(5000):
        limiter.charge(replace(SLOW, key=f"another {number}"), 10.0)
        time.now += 0.1
    assert limiter.charge(daily, 20.0) is not None


def test_clients_without_limits_have_no_bucket() -> None:
    limiter = RateLimiter(FakeClock())
    assert limiter.charge(replace(SLOW, rate=None, burst=None), 1e9) is None
    assert not limiter.buckets


@pytest.mark.parametrize("correction", [-3600.0, 3600.0, 2 * DAY, -2 * DAY])
def test_corrections_of_the_systems_time_change_no_allowance(
    correction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady, wall = FakeClock(), FakeClock()
    steady.now, wall.now = 100.0, 1000.5 * DAY
    monkeypatch.setattr(time, "monotonic", steady)
    monkeypatch.setattr(time, "time", wall)
    limiter = RateLimiter()
    slow, limited = SLOW, Client("q", "free", frozenset({"free"}), daily=100.0)
    assert limiter.charge(slow, 100.0) is None and limiter.charge(limited, 100.0) is None
    wall.now += correction
    assert limiter.charge(slow, 50.0) == LimitExceeded("rate", 5.0)
    exceeded = limiter.charge(limited, 1.0)
    assert exceeded and exceeded.reason == "quota"
    steady.now += 5.0
    assert limiter.charge(slow, 50.0) is None
    steady.now += DAY / 2
    assert limiter.charge(limited, 100.0) is None
