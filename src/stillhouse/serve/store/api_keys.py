"""API keys and their daily usage. Keys are shown once and stored as hashes.

A key is `still-NAME-SECRET`. It is looked up by name and its secret is compared in constant time. The secret has 256
random bits, so a plain SHA-256 suffices; a slow password hash would only delay every request.
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
"""Names of the limits that a key can override."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of the key table. Limits are as in `client.Client`; None uses the tier's settings."""

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
    """Store a new key and return it. Only its hash is stored.

    Args:
        connection: SQLite database.
        tier: default tier of the key.
        is_admin: whether the key may view and cancel jobs of other keys.
        limits: weight, rate, burst and daily, which override the tier's settings.

    Raises:
        InvalidRequest: a limit is unknown or not above 0.
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
    """Revoke a key.

    Raises:
        InvalidRequest: the key does not exist or is already revoked.
    """
    changed = connection.execute(
        "update keys set revoked = ? where name = ? and revoked is null", (time.time(), name)
    ).rowcount
    if not changed:
        raise InvalidRequest(f"there is no key {name!r} in use", fix="see stillhouse keys list")


def list_keys(connection: sqlite3.Connection) -> Sequence[ApiKey]:
    """Return all keys, oldest first."""
    return [_read_key(row) for row in connection.execute("select * from keys order by created")]


def find_key(connection: sqlite3.Connection, token: str) -> ApiKey:
    """Return the key that matches a token.

    Raises:
        NotAllowed: the key is unknown or revoked.
    """
    prefix, _, rest = token.partition("-")
    name, _, secret = rest.partition("-")
    row = connection.execute("select * from keys where name = ?", (name,)).fetchone()
    # An unknown name is compared as well, so that the duration does not reveal which names exist.
    is_match = hmac.compare_digest(_hash(secret), bytes(row["hash"]) if row else _hash(""))
    if prefix != PREFIX or row is None or not is_match or row["revoked"] is not None:
        raise NotAllowed("an unknown API key", allowed="a key of `stillhouse keys add`", is_known=False)
    return _read_key(row)


def make_client(key: ApiKey, tiers: Mapping[str, TierSettings]) -> Client:
    """Return the client of a key, with the limits of its tier where the key has none.

    Raises:
        NotAllowed: the key's tier is not served.
    """
    if key.tier not in tiers:
        raise NotAllowed(f"a key of tier {key.tier!r}, which is not served here", allowed=", ".join(tiers))
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
    """Return the stored usage of all keys: day number (UTC days since the epoch) and pixel-steps."""
    return {row["key"]: (row["day"], row["used"]) for row in connection.execute("select * from usage")}


def write_usage(connection: sqlite3.Connection, usage: Mapping[str, tuple[int, float]]) -> None:
    """Replace the stored usage. Only entries of the latest day are kept."""
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
