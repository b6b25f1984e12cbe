"""Background jobs: stored when accepted, dispatched when the server has capacity, and run again after a restart."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from stillhouse.core import ImageRequest
from stillhouse.errors import NotAllowed, Refused, StillhouseError
from stillhouse.images.files import Format
from stillhouse.serve.client import Client, make_anonymous_client
from stillhouse.serve.dispatcher import Dispatcher
from stillhouse.serve.engine.output import FinishReason, RequestOutput
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.settings import TierSettings
from stillhouse.serve.store.api_keys import list_keys, make_client
from stillhouse.serve.store.job_store import JobRecord, JobState, JobStore
from stillhouse.serve.worker_handle import MAX_ATTEMPTS

T = TypeVar("T")
log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Interval in seconds at which the job queue checks whether the dispatcher takes further jobs."""
RETRY_SECONDS = 5.0
"""Seconds after which a failed write of a job's result to the store is repeated."""
DISK_RETRY_SECONDS = 60.0
"""Seconds that clients are told to wait (Retry-After) when the store cannot be written, for example on a full disk."""
CLEANUP_SECONDS = 60.0
"""Interval in seconds at which old jobs are deleted."""
_BACK_IN_LINE = ("ServerShutdown", "WorkerUnavailable")
"""Types of errors after which a job stays queued."""
_STATES: Mapping[FinishReason, JobState] = {
    "finished": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "failed",
}


@dataclass(slots=True)
class JobQueue:
    """Queue of background jobs, which are stored and then dispatched when the server has capacity.

    Not thread-safe: use from one event loop. The store is used in a thread of its own.

    Args:
        dispatcher: dispatcher that runs the jobs.
        store: jobs in the database.
        keep_seconds: jobs that ended more than this many seconds ago are deleted.
        keep_bytes: largest total size in bytes of the stored images; the oldest jobs are deleted first.
        handles: requests of dispatched jobs whose result is not yet stored, by job id.
    """

    dispatcher: Dispatcher
    store: JobStore
    keep_seconds: float
    keep_bytes: int
    handles: dict[str, RequestHandle] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "store"))
    _wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _begun: dict[str, RequestHandle] = field(default_factory=dict)
    """Requests of jobs that a worker has begun and whose end is not stored, by job id."""
    _uncounted: list[str] = field(default_factory=list)
    """Ids of jobs that were begun since attempts were last stored."""
    _cancelled: set[str] = field(default_factory=set)
    """Ids of jobs that were cancelled since the store was last asked for queued jobs. The list of queued jobs may still
    contain them, so these jobs are skipped when the list is dispatched."""

    async def run_in_store(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function(*arguments)` in the store's thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments))

    async def submit(
        self, job_id: str, client: Client, tier: str, request: ImageRequest, image_format: Format
    ) -> JobRecord:
        """Store a job, which is dispatched later, and return its record. If a job with this id is already stored,
        return the record of that job instead.

        `client` owns the job, and `tier` names the requested tier (model). `request` does not yet contain the
        pipeline's defaults. `image_format` is the format of the result. If the client may not use the tier, NotAllowed
        is raised. If the pipeline cannot run the request, or the request exceeds a limit, InvalidRequest is raised. If
        too many jobs are queued, or the store cannot be written, Refused is raised.
        """
        self.dispatcher.validate(GenerationRequest(request, client, tier))
        try:
            with refuse_on_store_error():
                record = await self.run_in_store(self.store.add, job_id, client.key, tier, request, image_format)
        except Refused as refused:
            self.dispatcher.metrics.rejected.labels(refused.reason, tier).inc()
            raise
        await self._notify()
        return record

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job and wait until its end is stored. Return False if it had already ended or does not exist."""
        if self.dispatcher.cancel(job_id):
            await self.handles[job_id].result()
            while job_id in self.handles:
                await self.wait_for_change(POLL_SECONDS)
            return True
        self._cancelled.add(job_id)
        is_over = await self.run_in_store(self.store.finish, job_id, "cancelled")
        await self._notify()
        return is_over

    async def wait_for_change(self, timeout: float) -> None:
        """Wait until any job is submitted, dispatched or ended, for at most `timeout` seconds."""
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()

    def open(self) -> None:
        """Start the tasks that dispatch queued jobs and delete old ones."""
        self.dispatcher.on_begun = self._count_attempt
        for coroutine in (self._feed(), self._delete_old()):
            self._start_task(coroutine)

    async def close(self) -> None:
        """Stop dispatching and end the store's thread. Unfinished jobs stay queued for the server's next start.

        Attempts that this end interrupts do not count.
        """
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        interrupted = [job_id for job_id, handle in self._begun.items() if handle.is_begun]
        with log_store_errors("cannot store attempts"):
            await self._store_attempts()
            await self.run_in_store(self.store.count_attempts, interrupted, -1)
        self._thread.shutdown()

    async def _feed(self) -> None:
        while True:
            self._wakeup.clear()
            with log_store_errors("cannot dispatch queued jobs"):
                await self._feed_once()
            # asyncio.timeout is used instead of asyncio.wait_for, because wait_for can swallow a cancellation that
            # arrives together with the event (bpo-37658).
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wakeup.wait()

    async def _feed_once(self) -> None:
        if not self.dispatcher.is_ready or not (capacity := self.dispatcher.background_capacity):
            return
        self._cancelled.clear()
        for record in await self.run_in_store(self.store.list_queued, capacity, list(self.handles)):
            await self._dispatch(record)

    async def _dispatch(self, record: JobRecord) -> None:
        if record.attempts >= MAX_ATTEMPTS:
            error = f"the server or its worker ended {record.attempts} times while this image was generated"
            await self.run_in_store(self.store.finish, record.id, "failed", b"", error)
            await self._notify()
            return
        try:
            image_request = await self.run_in_store(self.store.load_request, record)
            client = await self.run_in_store(
                resolve_job_client, self.store.connection, record, self.dispatcher.settings.tiers
            )
            request = GenerationRequest(
                image_request,
                client,
                record.tier,
                record.format,
                attempts=record.attempts,
                is_background=True,
                id=record.id,
            )
            if record.id in self._cancelled:
                return
            handle = self.dispatcher.submit(request)
        except Refused:
            return
        except StillhouseError as error:
            await self.run_in_store(self.store.finish, record.id, "failed", b"", str(error))
            return
        self.handles[record.id] = handle
        self._start_task(self._store_result(handle))
        await self._notify()

    async def _store_result(self, handle: RequestHandle) -> None:
        output = await handle.result()
        state = _STATES[output.finish_reason]
        # A job that the server's shutdown interrupted runs again after the next start of the server, and one whose
        # worker is gone when there is a worker again. Its result is not stored: `is_stored` is true at once, and the
        # loop below is skipped.
        is_stored = output.error_type in _BACK_IN_LINE
        while not is_stored:
            # An error of the store is logged, and the loop tries again. Until then the handle stays in `handles`, so
            # that the job is not dispatched twice.
            with log_store_errors(f"cannot store the result of job {handle.id}"):
                await self.run_in_store(
                    self.store.finish, handle.id, state, output.content, output.error, result_fields(handle, output)
                )
                is_stored = True
            if not is_stored:
                await asyncio.sleep(RETRY_SECONDS)
        if output.error_type != "ServerShutdown":
            self._begun.pop(handle.id, None)
        del self.handles[handle.id]
        await self._notify()

    def _count_attempt(self, handle: RequestHandle) -> None:
        """Store that a worker has begun the image of a job."""
        self._begun[handle.id] = handle
        self._uncounted.append(handle.id)
        if len(self._uncounted) == 1:
            self._start_task(self._store_attempts())

    async def _store_attempts(self) -> None:
        job_ids, self._uncounted = self._uncounted, []
        with log_store_errors("cannot store attempts"):
            await self.run_in_store(self.store.count_attempts, job_ids)

    async def _notify(self) -> None:
        self._wakeup.set()
        async with self._changed:
            self._changed.notify_all()

    async def _delete_old(self) -> None:
        while True:
            with log_store_errors("cannot delete old jobs"):
                if deleted := await self.run_in_store(self.store.delete_old, self.keep_seconds, self.keep_bytes):
                    log.info("deleted old jobs", extra={"count": deleted})
            await asyncio.sleep(CLEANUP_SECONDS)

    def _start_task(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def refuse_on_store_error() -> Iterator[None]:
    """Run the body of a `with` statement; log its disk and database errors and turn them into `Refused`.

    Raises:
        Refused: the body raised OSError or sqlite3.Error. The reason is "storage".
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        log.exception("the store cannot be written")
        raise Refused("the job store is not writable", "storage", retry_after=DISK_RETRY_SECONDS) from error


@contextmanager
def log_store_errors(message: str) -> Iterator[None]:
    """Run the body of a `with` statement. Its disk errors, database errors and `Refused` are logged and suppressed.

    Args:
        message: text of the log record, which says what failed.
    """
    try:
        yield
    except (OSError, sqlite3.Error, Refused) as error:
        log.error(message, extra={"error": str(error)})


def resolve_job_client(connection: sqlite3.Connection, record: JobRecord, tiers: Mapping[str, TierSettings]) -> Client:
    """Return the client of a stored job, with the current limits of its API key.

    A job whose key is not in the database gets the limits of clients without a key.

    Raises:
        NotAllowed: the key was revoked, or its tier is no longer served.
    """
    key = next((key for key in list_keys(connection) if key.name == record.key), None)
    if key and key.revoked:
        raise NotAllowed(f"the job's API key {record.key} was revoked", allowed="a key that is not revoked")
    return make_client(key, tiers) if key else replace(make_anonymous_client(tiers), key=record.key)


def result_fields(handle: RequestHandle, output: RequestOutput) -> dict[str, Any]:
    """Return the JSON fields that describe a generated image, such as seed, model and steps; times are in seconds."""
    return {
        "seed": handle.request.seed,
        "model": handle.job.tier.name,
        "effective_tier": handle.effective_tier,
        "steps": handle.request.steps,
        "sampler": handle.request.sampler,
        "guidance": handle.request.guidance,
        "queue_seconds": output.queue_seconds,
        "denoise_seconds": output.denoise_seconds,
        "decode_seconds": output.decode_seconds,
        "batch_peers": output.batch_peers,
        "prompt_truncated": output.is_prompt_truncated,
    }
