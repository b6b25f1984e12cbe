"""API keys: shown once, stored as hashes, useless when revoked; usage is restored."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection

import pytest

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest, NotAllowed
from stillhouse.serve.client import make_anonymous_client
from stillhouse.serve.settings import TierSettings
from stillhouse.serve.store.api_keys import (
    add_key,
    find_key,
    list_keys,
    make_client,
    read_usage,
    revoke_key,
    write_usage,
)
from stillhouse.serve.store.database import FILE, VERSION, connect
from stillhouse.serve.store.job_store import JobStore

TIERS = {"free": TierSettings("shapes", rate=10.0), "pro": TierSettings("shapes", also=("free",))}


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    connection = connect(tmp_path)
    yield connection
    connection.close()


def test_only_the_exact_token_is_accepted(connection: Connection) -> None:
    shown = add_key(connection, "pro")
    assert find_key(connection, shown).tier == "pro"
    for wrong in ("", "x", shown[:-1], shown + "x", shown.replace("still", "sk"), shown.rpartition("-")[0], "still--"):
        with pytest.raises(NotAllowed, match="the API key is unknown or revoked"):
            find_key(connection, wrong)


def test_database_does_not_contain_the_key(tmp_path: Path, connection: Connection) -> None:
    secret = add_key(connection, "pro").split("-", 2)[2]
    connection.execute("pragma wal_checkpoint(truncate)")
    assert secret.encode() not in (tmp_path / FILE).read_bytes()


def test_revoked_key_is_rejected(connection: Connection) -> None:
    shown = add_key(connection, "pro")
    (key,) = list_keys(connection)
    revoke_key(connection, key.name)
    with pytest.raises(NotAllowed):
        find_key(connection, shown)
    with pytest.raises(InvalidRequest, match="the key .* does not exist or is already revoked"):
        revoke_key(connection, key.name)


def test_key_may_use_its_tier_and_included_tiers(connection: Connection) -> None:
    add_key(connection, "pro", weight=3.0)
    add_key(connection, "free", rate=5.0)
    add_key(connection, "free", is_admin=True)
    pro, free, admin = (make_client(key, TIERS) for key in list_keys(connection))
    assert (pro.tiers, pro.weight, pro.rate) == (frozenset({"pro", "free"}), 3.0, None)
    assert (free.tiers, free.weight, free.rate, free.is_admin) == (frozenset({"free"}), None, 5.0, False)
    assert (admin.tiers, admin.rate, admin.is_admin) == (frozenset({"free", "pro"}), 10.0, True)
    with pytest.raises(NotAllowed, match="not served here"):
        make_client(list_keys(connection)[0], {"free": TIERS["free"]})


def test_anonymous_clients_are_separated_by_address() -> None:
    assert make_anonymous_client(TIERS, "1.2.3.4").key != make_anonymous_client(TIERS, "1.2.3.5").key
    assert make_anonymous_client(TIERS).tiers == {"free", "pro"}


@pytest.mark.parametrize(("limit", "value"), [("rate", 0.0), ("weight", -1.0), ("speed", 1.0)])
def test_invalid_limit_is_refused(connection: Connection, limit: str, value: float) -> None:
    with pytest.raises(InvalidRequest):
        add_key(connection, "pro", is_admin=False, **{limit: value})
    assert not list_keys(connection)


def test_database_of_another_version_is_refused(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(InvalidRequest, match="schema version 99; allowed: schema version 3"):
        connect(tmp_path)


def test_a_database_of_an_earlier_version_is_upgraded(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    store = JobStore(connection, tmp_path)
    store.add("old", "key", "free", ImageRequest("a red circle"), "png")
    connection.execute("alter table jobs drop column attempts")
    connection.execute("pragma user_version = 2")
    connection.close()
    for _ in range(2):
        with closing(connect(tmp_path)) as upgraded:
            record = JobStore(upgraded, tmp_path).get("old")
            assert record and (record.state, record.attempts) == ("queued", 0)
            assert upgraded.execute("pragma user_version").fetchone()[0] == VERSION


def test_directory_is_created_for_its_owner_alone(tmp_path: Path) -> None:
    connect(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_unusable_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="cannot be used"):
        connect(tmp_path / "file" / "data")


def test_usage_of_the_latest_day_is_restored(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    write_usage(connection, {"a": (7, 10.0), "b": (8, 20.0), "c": (8, 0.0), "d": (8, 0.5)})
    connection.close()
    reopened = connect(tmp_path)
    assert read_usage(reopened) == {"b": (8, 20.0), "d": (8, 0.5)}
    write_usage(reopened, {})
    assert read_usage(reopened) == {}
    reopened.close()
