"""SQLite database in WAL mode with full synchronisation: committed transactions survive `kill -9`."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import InvalidRequest

FILE = "stillhouse.sqlite3"
VERSION = 3
_SCHEMA = """
create table keys (
    name text primary key, hash blob not null, tier text not null, is_admin integer not null default 0,
    weight real, rate real, burst real, daily real, created real not null, revoked real
) strict;
create table jobs (
    id text primary key, key text not null, tier text not null, state text not null, request text not null,
    format text not null, created real not null, ended real, error text not null default '',
    result text not null default '{}', bytes integer not null default 0, attempts integer not null default 0
) strict;
create index jobs_by_state on jobs (state, created);
create index jobs_by_key on jobs (key, created);
create table usage (key text primary key, day integer not null, used real not null) strict;
"""


_UPGRADES = {2: "alter table jobs add column attempts integer not null default 0"}
"""Statement that brings a database from each earlier version to the next one."""


def connect(directory: Path) -> sqlite3.Connection:
    """Open the database in a data directory and return the connection, to be used from one thread at a time.

    The directory and the database are created if they do not exist, and databases of earlier versions are upgraded.

    Raises:
        InvalidRequest: the directory cannot be used, or the database has another schema version.
    """
    path = directory / FILE
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        connection.row_factory = sqlite3.Row
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        version = connection.execute("pragma user_version").fetchone()[0]
        if version == 0:
            with transaction(connection):
                if connection.execute("pragma user_version").fetchone()[0] == 0:
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"pragma user_version = {VERSION}")
        if version in _UPGRADES:
            with transaction(connection):
                version = _upgrade(connection)
    except (OSError, sqlite3.DatabaseError) as error:
        raise InvalidRequest(f"{path} cannot be used: {error}", fix="choose another directory") from error
    if version not in (0, VERSION):
        fix = "update stillhouse" if version > VERSION else "choose another directory, or move the old one away"
        raise InvalidRequest(f"{path} has schema version {version}", allowed=f"schema version {VERSION}", fix=fix)
    return connection


def _upgrade(connection: sqlite3.Connection) -> int:
    """Bring a database of an earlier version to the present one, inside a transaction, and return its version."""
    version: int = connection.execute("pragma user_version").fetchone()[0]
    while version in _UPGRADES:
        connection.execute(_UPGRADES[version])
        version += 1
        connection.execute(f"pragma user_version = {version}")
    return version


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the body of a `with` statement as an immediate transaction, which excludes other writers.

    An exception in the body rolls the transaction back and is raised again.
    """
    connection.execute("begin immediate")
    try:
        yield
    except BaseException:
        connection.execute("rollback")
        raise
    connection.execute("commit")
