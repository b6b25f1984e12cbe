"""Persistent jobs: requests and results in the database, input and output images as files."""

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
from stillhouse.images.files import Format, describe_request, encode_png, read_mask, read_picture
from stillhouse.serve.store.database import transaction
from stillhouse.validation import convert

JobState = Literal["queued", "completed", "failed", "cancelled"]
"""State of a stored job. "queued" covers waiting and running jobs, because the database does not record the start."""
MAX_QUEUED, MAX_QUEUED_PER_KEY = 10_000, 1_000
"""Largest number of queued jobs, in total and per key."""
HAS_PUBLIC_URL = "has_public_url"
"""Key in `JobRecord.result` whose value says whether the image may be downloaded by URL without an API key."""
_ARRAYS = ("image", "mask")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as stored in the database.

    Args:
        id: job id.
        key: name of the API key that owns the job.
        tier: name of the requested tier (model).
        state: state of the job.
        request: JSON fields of the image request, in which the pipeline's defaults are not filled in.
        format: file format of the image.
        created: time of submission, seconds since the epoch.
        ended: time at which the job ended, seconds since the epoch; None if queued.
        error: error message of a failed job; otherwise empty.
        result: JSON fields that describe how the image was generated, see `job_queue.result_fields`; empty for a job
            that is queued or was not run.
        bytes: size of the image file; 0 without an image.
        attempts: number of times that a worker began the image and did not end it.
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
    attempts: int = 0


@dataclass(slots=True)
class JobStore:
    """Store of jobs and their image files. Use from one thread at a time.

    Args:
        connection: SQLite database.
        directory: data directory with the subdirectories `inputs` and `images`.
        clock: returns seconds since the epoch.
    """

    connection: sqlite3.Connection
    directory: Path
    clock: Callable[[], float] = time.time

    def add(self, job_id: str, key: str, tier: str, request: ImageRequest, image_format: Format) -> JobRecord:
        """Store a new job durably and return its record. If a job with this id exists, return that job unchanged.

        Args:
            job_id: id of the job.
            key: name of the API key that owns the job.
            tier: name of the requested tier (model).
            request: image request; its input image and mask are stored as files.
            image_format: file format of the result.

        Raises:
            Refused: too many jobs are queued, of this key or in total.
            OSError, sqlite3.Error: the job could not be written; nothing is stored.
        """
        if stored := self.get(job_id):
            return stored
        self._check_capacity(key)
        arrays = {name: getattr(request, name) for name in _ARRAYS if getattr(request, name) is not None}
        description = json.dumps(describe_request(request))
        record = (job_id, key, tier, "queued", description, image_format, self.clock())
        columns = "id, key, tier, state, request, format, created"
        try:
            for name, array in arrays.items():
                _write_atomic(self._input_path(job_id, name), encode_png(array))
            self.connection.execute(f"insert into jobs ({columns}) values (?, ?, ?, ?, ?, ?, ?)", record)
        except BaseException:
            self._delete_inputs(job_id)
            raise
        stored = self.get(job_id)
        assert stored is not None
        return stored

    def finish(self, job_id: str, state: JobState, content: bytes = b"", error: str = "", result: Any = None) -> bool:
        """Store the end of a queued job and delete its input images. Return False if no queued job has this id.

        Args:
            job_id: id of the job.
            state: new state of the job.
            content: image file of a completed job.
            error: error message of a failed job.
            result: JSON fields that describe how the image was generated; None for a job that was not run.

        Raises:
            OSError, sqlite3.Error: the result could not be written.
        """
        record = self.get(job_id)
        if record is None or record.state != "queued":
            return False
        if content:
            _write_atomic(self.image_path(record), content)
        with transaction(self.connection):
            changed = self.connection.execute(
                "update jobs set state = ?, ended = ?, error = ?, result = ?, bytes = ? "
                "where id = ? and state = 'queued'",
                (state, self.clock(), error, json.dumps(result or {}), len(content), job_id),
            ).rowcount
        self._delete_inputs(job_id)
        return bool(changed)

    def count_attempts(self, job_ids: Sequence[str], change: int = 1) -> None:
        """Add `change` to the number of attempts of queued jobs."""
        with transaction(self.connection):
            self.connection.executemany(
                "update jobs set attempts = max(0, attempts + ?) where id = ? and state = 'queued'",
                [(change, job_id) for job_id in job_ids],
            )

    def get(self, job_id: str) -> JobRecord | None:
        """Return the job with this id, or None if there is none."""
        row = self.connection.execute("select * from jobs where id = ?", (job_id,)).fetchone()
        return _read_record(row) if row else None

    def list(self, key: str | None, count: int = 100, before: float | None = None) -> Sequence[JobRecord]:
        """Return the latest jobs, newest first.

        Args:
            key: name of the API key whose jobs are listed; None lists the jobs of all keys.
            count: largest number of jobs.
            before: time in seconds since the epoch before which the listed jobs were created; None for no limit.
        """
        rows = self.connection.execute(
            "select * from jobs where (? is null or key = ?) and (? is null or created < ?) "
            "order by created desc limit ?",
            (key, key, before, before, count),
        )
        return [_read_record(row) for row in rows]

    def list_queued(self, count: int, exclude: Sequence[str] = ()) -> Sequence[JobRecord]:
        """Return up to `count` queued jobs, except those whose ids are in `exclude`.

        The API keys take turns: first comes the oldest job of each key, then the second oldest, and so on.
        """
        placeholders = ", ".join("?" * len(exclude))
        rows = self.connection.execute(
            "select * from (select *, row_number() over (partition by key order by created) as place from jobs "
            f"where state = 'queued') where id not in ({placeholders}) order by place, created limit ?",
            (*exclude, count),
        )
        return [_read_record(row) for row in rows]

    def load_request(self, record: JobRecord) -> ImageRequest:
        """Return the image request of a job. Its input image and mask are read from their files."""
        fields = {name: value for name, value in record.request.items() if name not in _ARRAYS}
        request = convert(ImageRequest, fields)
        if record.request["image"]:
            request = replace(request, image=read_picture(self._input_path(record.id, "image")))
        if record.request["mask"]:
            request = replace(request, mask=read_mask(self._input_path(record.id, "mask")))
        return request

    def image_path(self, record: JobRecord) -> Path:
        """Return the path of a job's image file, which exists only for a completed job."""
        return self.directory / "images" / f"{record.id}.{record.format}"

    def delete_old(self, keep_seconds: float, keep_bytes: int) -> int:
        """Delete old jobs that have ended, with their images, and return the number of deleted jobs.

        Args:
            keep_seconds: jobs that ended more than this many seconds ago are deleted.
            keep_bytes: jobs are deleted, oldest first, until their images take at most this many bytes in total.
        """
        rows = self.connection.execute("select * from jobs where ended is not null order by ended")
        records = [_read_record(row) for row in rows]
        total = sum(record.bytes for record in records)
        deleted = 0
        for record in records:
            assert record.ended is not None
            if record.ended > self.clock() - keep_seconds and total <= keep_bytes:
                break
            self.connection.execute("delete from jobs where id = ?", (record.id,))
            self.image_path(record).unlink(missing_ok=True)
            total -= record.bytes
            deleted += 1
        return deleted

    def delete_orphans(self) -> int:
        """Delete image files that belong to no job, and return their number. Call before adding jobs.

        A server that was killed may have left such files.
        """
        states_by_id = {row["id"]: row["state"] for row in self.connection.execute("select id, state from jobs")}
        deleted = 0
        for folder, states in (("inputs", ("queued",)), ("images", ("completed",))):
            for path in (self.directory / folder).glob("*"):
                name = path.name.removeprefix(".").partition(".")[0]
                if path.name.startswith(".") or states_by_id.get(name) not in states:
                    path.unlink(missing_ok=True)
                    deleted += 1
        return deleted

    def _check_capacity(self, key: str) -> None:
        counts = "select count(*), count(*) filter (where key = ?) from jobs where state = 'queued'"
        waiting, own_waiting = self.connection.execute(counts, (key,)).fetchone()
        if waiting >= MAX_QUEUED:
            raise Refused(f"{waiting:,} jobs are queued, and no more are accepted", "jobs", retry_after=60.0)
        if own_waiting >= MAX_QUEUED_PER_KEY:
            raise Refused(
                f"{own_waiting:,} jobs of key {key} are queued, and no more are accepted", "jobs", retry_after=60.0
            )

    def _delete_inputs(self, job_id: str) -> None:
        for kind in _ARRAYS:
            self._input_path(job_id, kind).unlink(missing_ok=True)

    def _input_path(self, job_id: str, kind: str) -> Path:
        return self.directory / "inputs" / f"{job_id}.{kind}.png"


def _write_atomic(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, and return when it is on the disk.

    The directory is created if it does not exist. A record that names the file must enter the database only afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # after a failed write, the file would fill a disk that is already full


def _read_record(row: sqlite3.Row) -> JobRecord:
    fields = {name: row[name] for name in JobRecord.__dataclass_fields__}
    return JobRecord(**{**fields, "request": json.loads(fields["request"]), "result": json.loads(fields["result"])})
