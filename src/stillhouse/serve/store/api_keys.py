"""API keys: shown once, kept as hashes, looked up by name and compared in constant time.

A key is `still-NAME-SECRET`. Its secret has 256 random bits, so a plain SHA-256 of it cannot be guessed backwards, and
a slow hash would only make every request slow.
"""

import hmac
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from stillhouse.check import check_choice, check_number
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.serve.client import Client
from stillhouse.serve.settings import TierSettings

PREFIX = "still"
ANONYMOUS = "anybody"
"""The name of the only caller where no keys are needed."""
LIMITS = ("weight", "rate", "burst", "daily")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; arguments as in `caller.Caller`, None where its tier's settings count."""

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
    """A new key, as its owner is to send it; nobody can ever see it again.

    Args:
        connection: the database.
        tier: its own.
        is_admin: whether it may see and cancel other people's jobs.
        limits: weight, rate, burst, daily: instead of the tier's.

    Raises:
        InvalidRequest: a limit that does not exist, or is not above 0.
    """
    for name, limit in limits.items():
        check_choice("limit", name, LIMITS)
        if limit is not None:
            check_number(name, limit, 1e-3, 1e18)
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    fields = {"name": name, "hash": _hash(secret), "tier": tier, "is_admin": is_admin, "created": time.time(), **limits}
    marks = ", ".join(f":{field}" for field in fields)
    connection.execute(f"insert into keys ({', '.join(fields)}) values ({marks})", fields)
    return f"{PREFIX}-{name}-{secret}"


def revoke_key(connection: sqlite3.Connection, name: str) -> None:
    """Let a key count no more.

    Raises:
        InvalidRequest: there is none of that name, or it is revoked already.
    """
    changed = connection.execute(
        "update keys set revoked = ? where name = ? and revoked is null", (time.time(), name)
    ).rowcount
    if not changed:
        raise InvalidRequest(f"there is no key {name!r} in use", fix="see stillhouse keys list")


def list_keys(connection: sqlite3.Connection) -> Sequence[ApiKey]:
    """All of them, the oldest first."""
    return [_read_key(row) for row in connection.execute("select * from keys order by created")]


def find_key(connection: sqlite3.Connection, token: str) -> ApiKey:
    """The key that was sent.

    Raises:
        NotAllowed: there is no such key, or it was revoked.
    """
    prefix, _, rest = token.partition("-")
    name, _, secret = rest.partition("-")
    row = connection.execute("select * from keys where name = ?", (name,)).fetchone()
    # Where there is none, something is compared as well: how long it takes tells nothing.
    is_right = hmac.compare_digest(_hash(secret), bytes(row["hash"]) if row else _hash(""))
    if prefix != PREFIX or row is None or not is_right or row["revoked"] is not None:
        raise NotAllowed("a key that is not known here", allowed="a key of `stillhouse keys add`", is_known=False)
    return _read_key(row)


def make_client(key: ApiKey, tiers: Mapping[str, TierSettings]) -> Client:
    """What a key may ask for.

    Raises:
        NotAllowed: its tier is not served here.
    """
    if key.tier not in tiers:
        raise NotAllowed(f"a key of tier {key.tier!r}, which is not served here", allowed=", ".join(tiers))
    own = tiers[key.tier]

    def limit(name: str) -> float | None:
        set_for_key: float | None = getattr(key, name)
        return set_for_key if set_for_key is not None else getattr(own, name)

    return Client(
        key.name,
        key.tier,
        frozenset(tiers) if key.is_admin else frozenset((key.tier, *own.also)),
        key.weight,
        limit("rate"),
        limit("burst"),
        limit("daily"),
        key.is_admin,
    )


def make_anonymous_client(tiers: Mapping[str, TierSettings], address: str = "") -> Client:
    """The caller where no keys are needed: everything may be asked for, and every address is a key of its own."""
    first = next(iter(tiers))
    own = tiers[first]
    name = f"{ANONYMOUS}@{address}" if address else ANONYMOUS
    return Client(name, first, frozenset(tiers), None, own.rate, own.burst, own.daily)


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def _read_key(row: sqlite3.Row) -> ApiKey:
    fields = {name: row[name] for name in ApiKey.__dataclass_fields__}
    return ApiKey(**{**fields, "is_admin": bool(fields["is_admin"])})
