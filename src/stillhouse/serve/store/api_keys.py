"""API keys and their daily usage. Keys are shown once and stored as hashes.

A key has the form `still-NAME-SECRET`. The key is looked up by its name, and its secret is compared in constant time.
The secret has 256 random bits, so a plain SHA-256 suffices; a slow password hash would only delay every request.
"""

import hmac
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from stillhouse.check import check_choice, check_number
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.serve.client import Client
from stillhouse.serve.settings import TierSettings
from stillhouse.serve.store.database import transaction

PREFIX = "still"
LIMITS = ("weight", "rate", "burst", "daily")
"""Names of the limits of a tier that an API key can override."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as stored in the database, without its secret.

    Args:
        name: name of the key, the middle part of `still-NAME-SECRET`.
        tier: name of the tier (model) that the key uses by default.
        is_admin: whether the key may view and cancel jobs of other keys.
        weight: scheduling weight; None uses the tier's.
        rate: pixel-steps (pixels times network evaluations) per second; None uses the tier's limit.
        burst: capacity of the token bucket in pixel-steps; None uses the tier's.
        daily: pixel-steps per UTC day; None uses the tier's limit.
        created: time of creation, seconds since the epoch.
        revoked: time of revocation, seconds since the epoch; None for a valid key.
    """

    name: str
    tier: str
    is_admin: bool = False
    weight: float | None = None
    rate: float | None = None
    burst: float | None = None
    daily: float | None = None
    created: float = 0.0
    revoked: float | None = None


def add_key(connection: sqlite3.Connection, tier: str, *, is_admin: bool = False, **limits: float | None) -> str:
    """Create an API key, store it in the database, and return it as text: `still-NAME-SECRET`.

    The database holds only a hash of the secret, so that the text cannot be read again. A limit that is unknown or not
    above 0 raises InvalidRequest.

    Args:
        connection: SQLite database.
        tier: name of the tier (model) that the key uses by default.
        is_admin: whether the key may view and cancel jobs of other keys.
        limits: weight, rate, burst and daily, which override the tier's settings; None does not override.
    """
    for name, limit in limits.items():
        check_choice("limit", name, LIMITS)
        if limit is not None:
            check_number(name, limit, 1e-3, 1e18)
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    fields = {"name": name, "hash": _hash(secret), "tier": tier, "is_admin": is_admin, "created": time.time(), **limits}
    _insert(connection, fields)
    return f"{PREFIX}-{name}-{secret}"


def _insert(connection: sqlite3.Connection, fields: Mapping[str, Any]) -> None:
    placeholders = ", ".join(f":{field}" for field in fields)
    connection.execute(f"insert into keys ({', '.join(fields)}) values ({placeholders})", fields)


def revoke_key(connection: sqlite3.Connection, name: str) -> None:
    """Revoke the API key with this name, so that requests with it are rejected.

    Raises:
        InvalidRequest: the key does not exist or is already revoked.
    """
    changed = connection.execute(
        "update keys set revoked = ? where name = ? and revoked is null", (time.time(), name)
    ).rowcount
    if not changed:
        raise InvalidRequest(
            f"the key {name!r} does not exist or is already revoked", fix="`stillhouse keys list` shows all keys"
        )


def list_keys(connection: sqlite3.Connection) -> Sequence[ApiKey]:
    """Return all API keys, revoked ones included, oldest first."""
    return [_read_key(row) for row in connection.execute("select * from keys order by created")]


def find_key(connection: sqlite3.Connection, token: str) -> ApiKey:
    """Return the stored API key that matches a token, the text that a client sends as its key.

    Raises:
        NotAllowed: the key is unknown or revoked.
    """
    prefix, _, rest = token.partition("-")
    name, _, secret = rest.partition("-")
    row = connection.execute("select * from keys where name = ?", (name,)).fetchone()
    # The secret is compared even if the name is unknown, so that the duration does not reveal which names exist.
    is_match = hmac.compare_digest(_hash(secret), bytes(row["hash"]) if row else _hash(""))
    if prefix != PREFIX or row is None or not is_match or row["revoked"] is not None:
        allowed = "a key made by `stillhouse keys add`"
        raise NotAllowed("the API key is unknown or revoked", allowed=allowed, is_known=False)
    return _read_key(row)


def make_client(key: ApiKey, tiers: Mapping[str, TierSettings]) -> Client:
    """Return the client of an API key. Limits that the key does not set are those of its tier.

    Raises:
        NotAllowed: the key's tier is not served.
    """
    if key.tier not in tiers:
        problem = f"the key belongs to tier {key.tier!r}, which is not served here"
        raise NotAllowed(problem, allowed=f"a key of one of the tiers {', '.join(tiers)}")
    settings = tiers[key.tier]

    def limit(name: str) -> float | None:
        override: float | None = getattr(key, name)
        return override if override is not None else getattr(settings, name)

    return Client(
        key.name,
        key.tier,
        frozenset(tiers) if key.is_admin else frozenset((key.tier, *settings.also)),
        key.weight,
        limit("rate"),
        limit("burst"),
        limit("daily"),
        key.is_admin,
    )


def read_usage(connection: sqlite3.Connection) -> dict[str, tuple[int, float]]:
    """Return the stored usage of each API key by name: UTC day (days since the epoch) and pixel-steps used on it.

    Pixel-steps are pixels times network evaluations.
    """
    return {row["key"]: (row["day"], row["used"]) for row in connection.execute("select * from usage")}


def write_usage(connection: sqlite3.Connection, usage: Mapping[str, tuple[int, float]]) -> None:
    """Replace the stored usage of all API keys by `usage`, which has the form that `read_usage` returns.

    Only entries of the latest day are stored.
    """
    latest = max((day for day, _ in usage.values()), default=0)
    with transaction(connection):
        connection.execute("delete from usage")
        connection.executemany(
            "insert into usage (key, day, used) values (?, ?, ?)",
            [(key, day, amount) for key, (day, amount) in usage.items() if day == latest and amount > 0],
        )


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def _read_key(row: sqlite3.Row) -> ApiKey:
    fields = {name: row[name] for name in ApiKey.__dataclass_fields__}
    return ApiKey(**{**fields, "is_admin": bool(fields["is_admin"])})
