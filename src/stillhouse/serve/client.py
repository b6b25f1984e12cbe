"""Clients of the server and the rate limits of their API keys."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from stillhouse.errors import NotAllowed
from stillhouse.serve.settings import TierSettings

DAY = 86400.0
ANONYMOUS = "anonymous"
"""First part of the name of each client of a server that requires no API keys; `@` and the client's address follow."""
_MIN_BUCKETS = 1024
"""Number of token buckets, one per client, below which expired buckets are not removed."""


@dataclass(frozen=True, slots=True)
class Client:
    """The authenticated sender of a request.

    Args:
        key: name of the API key; `anonymous@ADDRESS` if no keys are required. The scheduler shares the device fairly
            between keys.
        tier: name of the tier (model) for requests that name no model.
        tiers: names of all tiers that the client may use.
        weight: scheduling weight; None uses the tier's weight.
        rate: pixel-steps (pixels times network evaluations) per second; None is unlimited.
        burst: capacity of the token bucket in pixel-steps; None is one minute of `rate`.
        daily: pixel-steps per UTC day; None is unlimited.
        is_admin: whether the client may view and cancel jobs of other keys.
    """

    key: str
    tier: str
    tiers: frozenset[str]
    weight: float | None = None
    rate: float | None = None
    burst: float | None = None
    daily: float | None = None
    is_admin: bool = False


def make_anonymous_client(tiers: Mapping[str, TierSettings], address: str = "") -> Client:
    """Return the client that stands for one IP address, on a server that requires no API keys.

    The client may use all tiers (models) and has the limits of the first tier. Each address counts as a key of its own.
    """
    tier = next(iter(tiers))
    settings = tiers[tier]
    name = f"{ANONYMOUS}@{address}" if address else ANONYMOUS
    return Client(name, tier, frozenset(tiers), None, settings.rate, settings.burst, settings.daily)


@dataclass(frozen=True, slots=True)
class Clients:
    """All clients of the server.

    Args:
        tiers: settings of the tiers, by name.
        find_client: returns the client of an API key, or raises NotAllowed; None where no keys are required.
    """

    tiers: Mapping[str, TierSettings]
    find_client: Callable[[str], Awaitable[Client]] | None = None

    async def authenticate(self, token: str | None, address: str) -> Client:
        """Return the client that sent a request.

        Args:
            token: token of the Authorization header without "Bearer"; None if absent.
            address: IP address of the client, which identifies the client if no API keys are required.

        Raises:
            NotAllowed: an API key is required, but is missing, unknown or revoked, or its tier is not served.
        """
        if self.find_client is None:
            return make_anonymous_client(self.tiers, address)
        if not token:
            allowed = "a request with the header Authorization: Bearer KEY"
            raise NotAllowed("the request has no API key", allowed=allowed, is_known=False)
        return await self.find_client(token)


@dataclass(slots=True)
class TokenBucket:
    """Remaining allowance of one API key: a token bucket and the use of a daily quota.

    Args:
        level: pixel-steps in the bucket at the time `updated`; negative after a request that is larger than the bucket.
        updated: time for which `level` was computed, in seconds since the epoch.
        day: UTC day to which `used` belongs, in days since the epoch.
        used: pixel-steps used on this day.
        keep_until: time in seconds since the epoch from which the bucket equals a new one and may be deleted.
    """

    level: float
    updated: float
    day: int = 0
    used: float = 0.0
    keep_until: float = 0.0


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """Reason for which `RateLimiter.charge` rejects a charge.

    Args:
        reason: exceeded limit: "rate" for the token bucket, "quota" for the daily quota.
        retry_after: seconds until an equal charge would be accepted if nothing else is charged.
    """

    reason: Literal["rate", "quota"]
    retry_after: float


@dataclass(slots=True)
class RateLimiter:
    """Token buckets and daily quotas of all API keys. Not thread-safe: use from one event loop.

    Args:
        clock: returns seconds since the epoch, which must not go back; days begin at midnight UTC.
        buckets: remaining allowance by name of the API key.

    >>> limiter = RateLimiter(clock=lambda: 0.0)
    >>> slow = Client("k", "free", frozenset(), rate=10.0, burst=100.0)
    >>> limiter.charge(slow, 100.0), limiter.charge(slow, 50.0)
    (None, LimitExceeded(reason='rate', retry_after=5.0))
    """

    clock: Callable[[], float] = field(default_factory=lambda: make_steady_clock())
    buckets: dict[str, TokenBucket] = field(default_factory=dict)
    _max_buckets: int = _MIN_BUCKETS

    def charge(self, client: Client, amount: float) -> LimitExceeded | None:
        """Deduct `amount` pixel-steps from the allowance of the client's key and return None.

        If a limit would be exceeded, nothing is deducted and the limit is returned. A full token bucket accepts a
        charge larger than itself, and its level becomes negative: its image could never be generated otherwise.
        """
        if client.rate is None and client.daily is None:
            return None
        now = self.clock()
        bucket = self._bucket(client, now)
        if client.daily is not None and bucket.used + amount > client.daily:
            return LimitExceeded("quota", (bucket.day + 1) * DAY - now)
        if client.rate is not None:
            required = min(amount, _capacity(client))
            if bucket.level < required:
                return LimitExceeded("rate", (required - bucket.level) / client.rate)
        bucket.level -= amount
        bucket.used += amount
        bucket.keep_until = _keep_until(client, bucket, now)
        return None

    def refund(self, client: Client, amount: float) -> None:
        """Add `amount` pixel-steps to the allowance of the client's key, for example after a charged request failed."""
        if client.key not in self.buckets:
            return
        bucket = self._bucket(client, self.clock())
        bucket.level += amount
        bucket.used = max(0.0, bucket.used - amount)

    @property
    def daily_usage(self) -> dict[str, tuple[int, float]]:
        """Return by key name the UTC day of the last use (days since the epoch) and the pixel-steps used that day."""
        return {key: (bucket.day, bucket.used) for key, bucket in self.buckets.items()}

    def restore(self, usage: Mapping[str, tuple[int, float]]) -> None:
        """Continue with the `daily_usage` that an earlier server process stored. Token buckets start full."""
        now = self.clock()
        for key, (day, amount) in usage.items():
            self.buckets[key] = TokenBucket(float("inf"), now, day, amount, (day + 1) * DAY)

    def _bucket(self, client: Client, now: float) -> TokenBucket:
        day = int(now // DAY)
        if len(self.buckets) >= self._max_buckets:
            # Where no API keys are required, every client address gets a token bucket. Expired buckets are removed, so
            # that their number does not grow without bound.
            self.buckets = {key: bucket for key, bucket in self.buckets.items() if bucket.keep_until > now}
            self._max_buckets = max(_MIN_BUCKETS, 2 * len(self.buckets))
        bucket = self.buckets.setdefault(client.key, TokenBucket(_capacity(client), now, day))
        if bucket.day != day:
            bucket.day, bucket.used = day, 0.0
        filled = bucket.level + (now - bucket.updated) * (client.rate or 0.0)
        bucket.level, bucket.updated = min(filled, _capacity(client)), now
        return bucket


def make_steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since the epoch that later corrections of the system's time do not move.

    A correction by an hour back would otherwise stop the refilling of every bucket for an hour, and one over midnight
    would begin every quota anew.
    """
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


def _keep_until(client: Client, bucket: TokenBucket, now: float) -> float:
    full_at = now + (_capacity(client) - bucket.level) / client.rate if client.rate is not None else now
    return full_at if client.daily is None else max(full_at, (bucket.day + 1) * DAY)


def _capacity(client: Client) -> float:
    """Return the pixel-steps of a client's full token bucket: `burst`, or one minute of `rate`; 0 without both."""
    if client.burst is not None:
        return client.burst
    return 60.0 * client.rate if client.rate is not None else 0.0
