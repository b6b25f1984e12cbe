"""Jobs that outlive the server: what was asked for is in the database before it is accepted, pictures lie beside it."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stillhouse.core import ImageRequest
from stillhouse.errors import Refused
from stillhouse.images.formats import Format
from stillhouse.images.png import describe_request, encode_png, read_mask, read_picture
from stillhouse.json_decode import decode
from stillhouse.serve.store.database import transaction

JobState = Literal["queued", "drawn", "failed", "cancelled"]
"""queued: accepted, and not ended; it may be being drawn."""
MAX_QUEUED, MAX_QUEUED_PER_KEY = 10_000, 1_000
"""Jobs that may wait: of all keys together, and of each."""
HAS_PUBLIC_URL = "by_address"
"""Told of a picture that whoever has its address may see, since that was asked for."""
_ARRAYS = ("image", "mask")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the database knows it.

    Args:
        id: of the job.
        key, tier: whose it is.
        state: how it stands.
        request: as `png.describe_request` tells it; not resolved.
        format: of the picture.
        created, ended: seconds since the epoch.
        error: of a failed one.
        told: seconds and seeds of a drawn one, as the response's headers would tell them.
        bytes: of its picture.
    """

    id: str
    key: str
    tier: str
    state: JobState
    request: Mapping[str, Any]
    format: Format
    created: float
    ended: float | None = None
    error: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0


@dataclass(slots=True)
class JobStore:
    """Jobs and their pictures. To be used from one thread at a time.

    Args:
        connection: the database.
        directory: its subdirectories `inputs` and `pictures` are made here.
        clock: seconds since the epoch.
    """

    connection: sqlite3.Connection
    directory: Path
    clock: Callable[[], float] = time.time

    def add(self, job_id: str, key: str, tier: str, request: ImageRequest, image_format: Format) -> JobRecord:
        """Accept a job: when this returns, it survives everything but the loss of the disk.

        Where there is one of that id already, that one is told and nothing is changed: a client that asks twice for
        the same thing gets it once.

        Raises:
            Refused: too many wait, of this key or of all.
            OSError, sqlite3.Error: there is no room for it; nothing is accepted.
        """
        if found := self.get(job_id):
            return found
        self._check_capacity(key)
        arrays = {one: getattr(request, one) for one in _ARRAYS if getattr(request, one) is not None}
        told = json.dumps(describe_request(request))
        record = (job_id, key, tier, "queued", told, image_format, self.clock())
        columns = "id, key, tier, state, request, format, created"
        try:
            for one, array in arrays.items():
                _write_atomic(self._input_path(job_id, one), encode_png(array))
            self.connection.execute(f"insert into jobs ({columns}) values (?, ?, ?, ?, ?, ?, ?)", record)
        except BaseException:
            self._delete_inputs(job_id)
            raise
        found = self.get(job_id)
        assert found is not None
        return found

    def finish(self, job_id: str, state: JobState, content: bytes = b"", error: str = "", result: Any = None) -> bool:
        """End a job; False where it has ended before: it has one end only."""
        record = self.get(job_id)
        if record is None or record.state != "queued":
            return False
        if content:
            _write_atomic(self.image_path(record), content)
        with transaction(self.connection):
            changed = self.connection.execute(
                "update jobs set state = ?, ended = ?, error = ?, told = ?, bytes = ? "
                "where id = ? and state = 'queued'",
                (state, self.clock(), error, json.dumps(result or {}), len(content), job_id),
            ).rowcount
        self._delete_inputs(job_id)
        return bool(changed)

    def get(self, job_id: str) -> JobRecord | None:
        """The job of that id."""
        row = self.connection.execute("select * from jobs where id = ?", (job_id,)).fetchone()
        return _read_record(row) if row else None

    def list(self, key: str | None, count: int = 100, before: float | None = None) -> Sequence[JobRecord]:
        """The latest jobs of a key, or of all; `before`, older ones than of that moment."""
        rows = self.connection.execute(
            "select * from jobs where (? is null or key = ?) and (? is null or created < ?) "
            "order by created desc limit ?",
            (key, key, before, before, count),
        )
        return [_read_record(row) for row in rows]

    def list_queued(self, count: int, exclude: Sequence[str] = ()) -> Sequence[JobRecord]:
        """What waits, `without` those that are being drawn; the first of every key before the second of any."""
        marks = ", ".join("?" * len(exclude))
        rows = self.connection.execute(
            "select * from (select *, row_number() over (partition by key order by created) as place from jobs "
            f"where state = 'queued') where id not in ({marks}) order by place, created limit ?",
            (*exclude, count),
        )
        return [_read_record(row) for row in rows]

    def load_request(self, record: JobRecord) -> ImageRequest:
        """What was asked for, with its image and mask."""
        plain = {name: value for name, value in record.request.items() if name not in _ARRAYS}
        request = decode(ImageRequest, plain)
        if record.request["image"]:
            request = replace(request, image=read_picture(self._input_path(record.id, "image")))
        if record.request["mask"]:
            request = replace(request, mask=read_mask(self._input_path(record.id, "mask")))
        return request

    def image_path(self, record: JobRecord) -> Path:
        """Where the picture of a job lies, or will."""
        return self.directory / "pictures" / f"{record.id}.{record.format}"

    def delete_old(self, keep_seconds: float, keep_bytes: int) -> int:
        """Delete what ended longer than `keep` seconds ago, and the oldest above `kept` bytes; how many those were."""
        rows = [
            _read_record(row)
            for row in self.connection.execute("select * from jobs where ended is not null order by ended")
        ]
        total = sum(record.bytes for record in rows)
        gone = 0
        for record in rows:
            assert record.ended is not None
            if record.ended > self.clock() - keep_seconds and total <= keep_bytes:
                break
            self.connection.execute("delete from jobs where id = ?", (record.id,))
            self.image_path(record).unlink(missing_ok=True)
            total -= record.bytes
            gone += 1
        return gone

    def delete_orphans(self) -> int:
        """Delete files that no job knows of, as a server that was killed leaves them; how many those were.

        To be called before anything is added.
        """
        known = {row["id"]: row["state"] for row in self.connection.execute("select id, state from jobs")}
        gone = 0
        for folder, states in (("inputs", ("queued",)), ("pictures", ("drawn",))):
            for path in (self.directory / folder).glob("*"):
                name = path.name.removeprefix(".").partition(".")[0]
                if path.name.startswith(".") or known.get(name) not in states:
                    path.unlink(missing_ok=True)
                    gone += 1
        return gone

    def _check_capacity(self, key: str) -> None:
        counts = "select count(*), count(*) filter (where key = ?) from jobs where state = 'queued'"
        waiting, own = self.connection.execute(counts, (key,)).fetchone()
        if waiting >= MAX_QUEUED:
            raise Refused(f"{waiting:,} jobs wait already", "jobs", 60.0)
        if own >= MAX_QUEUED_PER_KEY:
            raise Refused(f"{own:,} jobs of key {key} wait already", "jobs", 60.0)

    def _delete_inputs(self, job_id: str) -> None:
        for kind in _ARRAYS:
            self._input_path(job_id, kind).unlink(missing_ok=True)

    def _input_path(self, job_id: str, kind: str) -> Path:
        return self.directory / "inputs" / f"{job_id}.{kind}.png"


def _write_atomic(path: Path, content: bytes) -> None:
    """Whole or not at all, and on the disk before the database tells of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.part")
    with neighbour.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    neighbour.replace(path)


def _read_record(row: sqlite3.Row) -> JobRecord:
    fields = {name: row[name] for name in JobRecord.__dataclass_fields__}
    return JobRecord(**{**fields, "request": json.loads(fields["request"]), "told": json.loads(fields["told"])})
