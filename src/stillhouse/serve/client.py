"""Who asks: a tier, and how much of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

DAY = 86400.0
_MIN_BUCKETS = 1024
"""Buckets that are kept without looking whether they are needed still."""


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever stands behind a request.

    Args:
        key: the name of the API key, or of the only caller where none are needed; fairness is between keys.
        tier: the one that is meant where a request names none.
        tiers: all that may be asked for.
        weight: instead of the tier's own.
        rate, burst, daily: pixel-steps, as in `settings.TierSettings`.
        is_admin: may also see and cancel other people's jobs.
    """

    key: str
    tier: str
    tiers: frozenset[str]
    weight: float | None = None
    rate: float | None = None
    burst: float | None = None
    daily: float | None = None
    is_admin: bool = False


@dataclass(slots=True)
class TokenBucket:
    """What one key may still ask for: a bucket that fills with time, and a day's portion.

    Args:
        level: pixel-steps in the bucket when it was looked at last, at `looked` seconds.
        used: pixel-steps of the day number `day`.
        needed: seconds until which it tells more than a new one would.
    """

    level: float
    updated: float
    day: int = 0
    used: float = 0.0
    keep_until: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """Why a key may not ask for so much now, and after how many seconds it may.

    Args:
        reason: rate, its bucket; quota, its day's portion.
        seconds: until there is enough.
    """

    reason: Literal["rate", "quota"]
    retry_after: float


@dataclass(slots=True)
class RateLimiter:
    """Pixel-steps of every key that has a rate or a day's portion. One loop owns it.

    Args:
        clock: seconds since the epoch; days begin at midnight UTC.

    >>> meter = Meter(clock=lambda: 0.0)
    >>> slow = Caller("k", "free", frozenset(), rate=10.0, burst=100.0)
    >>> meter.charge(slow, 100.0), meter.charge(slow, 50.0)
    (None, Short(reason='rate', seconds=5.0))
    """

    clock: Callable[[], float] = time.time
    buckets: dict[str, TokenBucket] = field(default_factory=dict)
    _max_buckets: int = _MIN_BUCKETS

    def charge(self, client: Client, amount: float) -> LimitExceeded | None:
        """Take so many pixel-steps; where there are not enough, nothing is taken.

        More than a whole bucket is allowed where the bucket is full, and leaves a debt: else a picture that is larger
        than the bucket could never be asked for.
        """
        if client.rate is None and client.daily is None:
            return None
        now = self.clock()
        bucket = self._bucket(client, now)
        if client.daily is not None and bucket.used + amount > client.daily:
            return LimitExceeded("quota", (bucket.day + 1) * DAY - now)
        if client.rate is not None:
            enough = min(amount, _capacity(client))
            if bucket.level < enough:
                return LimitExceeded("rate", (enough - bucket.level) / client.rate)
        bucket.level -= amount
        bucket.used += amount
        full = now + (_capacity(client) - bucket.level) / client.rate if client.rate is not None else now
        bucket.keep_until = full if client.daily is None else max(full, (bucket.day + 1) * DAY)
        return None

    def refund(self, client: Client, amount: float) -> None:
        """What was charged for a picture that was not taken after all."""
        if client.key not in self.buckets:
            return
        bucket = self._bucket(client, self.clock())
        bucket.level += amount
        bucket.used = max(0.0, bucket.used - amount)

    @property
    def daily_usage(self) -> dict[str, tuple[int, float]]:
        """By key, the day's number and its pixel-steps."""
        return {key: (bucket.day, bucket.used) for key, bucket in self.buckets.items()}

    def restore(self, usage: Mapping[str, tuple[int, float]]) -> None:
        """Go on with what an earlier meter told by `used`. Buckets begin empty of debts, and full."""
        now = self.clock()
        for key, (day, amount) in usage.items():
            self.buckets[key] = TokenBucket(float("inf"), now, day, amount, (day + 1) * DAY)

    def _bucket(self, client: Client, now: float) -> TokenBucket:
        day = int(now // DAY)
        if len(self.buckets) >= self._max_buckets:
            # Where no keys are needed, every address is one.
            self.buckets = {key: bucket for key, bucket in self.buckets.items() if bucket.keep_until > now}
            self._max_buckets = max(_MIN_BUCKETS, 2 * len(self.buckets))
        bucket = self.buckets.setdefault(client.key, TokenBucket(_capacity(client), now, day))
        if bucket.day != day:
            bucket.day, bucket.used = day, 0.0
        filled = bucket.level + (now - bucket.updated) * (client.rate or 0.0)
        bucket.level, bucket.updated = min(filled, _capacity(client)), now
        return bucket


def _capacity(client: Client) -> float:
    """Pixel-steps of a full bucket: a minute's portion where nothing else is said."""
    if client.burst is not None:
        return client.burst
    return 60.0 * client.rate if client.rate is not None else 0.0
