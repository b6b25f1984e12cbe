"""What keys have used of their day, so that a server that is started again does not begin a new one."""

import sqlite3
from collections.abc import Mapping

from stillhouse.serve.store.database import transaction


def read_usage(connection: sqlite3.Connection) -> dict[str, tuple[int, float]]:
    """By key, the number of the day (since the epoch, UTC) and the pixel-steps of it."""
    return {row["key"]: (row["day"], row["used"]) for row in connection.execute("select * from usage")}


def write_usage(connection: sqlite3.Connection, used: Mapping[str, tuple[int, float]]) -> None:
    """Keep this instead of what was kept, and nothing of earlier days than the latest."""
    today = max((day for day, _ in used.values()), default=0)
    with transaction(connection):
        connection.execute("delete from usage")
        connection.executemany(
            "insert into usage (key, day, used) values (?, ?, ?)",
            [(key, day, amount) for key, (day, amount) in used.items() if day == today and amount > 0],
        )
