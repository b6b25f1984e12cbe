"""Usage: what was kept is read back by the next server, and earlier days are forgotten."""

from pathlib import Path

from stillhouse.serve.store.database import connect
from stillhouse.serve.store.usage import read_usage, write_usage


def test_the_latest_day_is_kept(tmp_path: Path) -> None:
    connection = connect(tmp_path)
    write_usage(connection, {"a": (7, 10.0), "b": (8, 20.0), "c": (8, 0.0)})
    connection.close()
    again = connect(tmp_path)
    assert read_usage(again) == {"b": (8, 20.0)}
    write_usage(again, {})
    assert read_usage(again) == {}
    again.close()
