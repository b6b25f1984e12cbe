"""Patient jobs: accepted into the store at once, and drawn as there is room; restarts do not matter to them."""

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
from stillhouse.images.formats import Format
from stillhouse.serve.client import Client
from stillhouse.serve.dispatcher import Dispatcher
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.settings import TierSettings
from stillhouse.serve.store.api_keys import list_keys, make_anonymous_client, make_client
from stillhouse.serve.store.job_store import JobRecord, JobState, JobStore
from stillhouse.serve.worker.messages import RequestOutput

T = TypeVar("T")
log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Seconds after which it is looked again whether there is room."""
RETRY_SECONDS = 5.0
"""Seconds after which the store is asked again for what it could not do."""
DISK_RETRY_SECONDS = 60.0
"""Seconds after which a full disk may have room again."""
CLEANUP_SECONDS = 60.0
"""Seconds between two looks at what may be forgotten."""


@dataclass(slots=True)
class JobQueue:
    """Jobs of the store, fed to the front. One loop owns it; the store has a thread of its own.

    Args:
        front: draws.
        store: knows of every job.
        keep, kept: as in `JobStore.forget`.
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
    _cancelled: set[str] = field(default_factory=set)
    """Since the store was asked last what waits: some of these may be in its answer."""

    async def run_in_store(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something of the store in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments))

    async def submit(
        self, job_id: str, client: Client, tier: str, request: ImageRequest, image_format: Format
    ) -> JobRecord:
        """Accept a job.

        Raises:
            InvalidRequest, NotAllowed: as `Front.place`, and what is more than the key may ask for in a day.
            Refused: too many wait, or the disk is full.
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
        """Draw that job no further; False where it has ended already."""
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
        """Wait until some job was taken, placed or ended, or so many seconds."""
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()

    def open(self) -> None:
        """Begin to feed."""
        for life in (self._feed(), self._delete_old()):
            self._start_task(life)

    async def close(self) -> None:
        """Feed no more. What is not done stays queued, for the next server."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown()

    async def _feed(self) -> None:
        while True:
            self._wakeup.clear()
            with log_store_errors("waiting jobs are not fed"):
                await self._feed_once()
            # Not wait_for, which swallows a cancellation that comes together with the news (Python issue 37658).
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wakeup.wait()

    async def _feed_once(self) -> None:
        if not self.dispatcher.is_ready or not (room := self.dispatcher.background_capacity):
            return
        self._cancelled.clear()
        for record in await self.run_in_store(self.store.list_queued, room, list(self.handles)):
            await self._dispatch(record)

    async def _dispatch(self, record: JobRecord) -> None:
        try:
            request = await self.run_in_store(self.store.load_request, record)
            caller = await self.run_in_store(
                resolve_job_client, self.store.connection, record, self.dispatcher.settings.tiers
            )
            order = GenerationRequest(request, caller, record.tier, record.format, is_background=True, id=record.id)
            if record.id in self._cancelled:
                return
            ticket = self.dispatcher.submit(order)
        except Refused:
            return
        except StillhouseError as error:
            await self.run_in_store(self.store.finish, record.id, "failed", b"", str(error))
            return
        self.handles[record.id] = ticket
        self._start_task(self._store_result(ticket))
        await self._notify()

    async def _store_result(self, handle: RequestHandle) -> None:
        closed = await handle.result()
        state: JobState = "failed" if closed.finish_reason == "expired" else closed.finish_reason
        # A server that is being shut down leaves the job to the next one.
        is_kept = closed.error_type == "Drained"
        while not is_kept:
            # As long as its ticket is here, it is not drawn a second time.
            with log_store_errors(f"job {handle.id} cannot be ended"):
                await self.run_in_store(
                    self.store.finish, handle.id, state, closed.content, closed.error, result_fields(handle, closed)
                )
                is_kept = True
            if not is_kept:
                await asyncio.sleep(RETRY_SECONDS)
        del self.handles[handle.id]
        await self._notify()

    async def _notify(self) -> None:
        self._wakeup.set()
        async with self._changed:
            self._changed.notify_all()

    async def _delete_old(self) -> None:
        while True:
            with log_store_errors("old jobs are not deleted"):
                if gone := await self.run_in_store(self.store.delete_old, self.keep_seconds, self.keep_bytes):
                    log.info("old jobs were deleted", extra={"count": gone})
            await asyncio.sleep(CLEANUP_SECONDS)

    def _start_task(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def refuse_on_store_error() -> Iterator[None]:
    """Something is written into the store; where it cannot be, whoever asked is told to come back.

    Raises:
        Refused: it cannot.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        log.exception("the store cannot be written")
        raise Refused("the server's disk takes nothing now", "storage", DISK_RETRY_SECONDS) from error


@contextmanager
def log_store_errors(message: str) -> Iterator[None]:
    """What the disk or the store refuses is logged, and tried again later: a full one may have room again."""
    try:
        yield
    except (OSError, sqlite3.Error, Refused) as error:
        log.error(message, extra={"error": str(error)})


def resolve_job_client(connection: sqlite3.Connection, record: JobRecord, tiers: Mapping[str, TierSettings]) -> Client:
    """Who stood behind a job when it was accepted, with what the key may ask for now.

    Raises:
        NotAllowed: the key was revoked, or its tier is not served any more.
    """
    key = next((key for key in list_keys(connection) if key.name == record.key), None)
    if key and key.revoked:
        raise NotAllowed(f"key {record.key}, which was revoked since", allowed="keys in use")
    return make_client(key, tiers) if key else replace(make_anonymous_client(tiers), key=record.key)


def result_fields(handle: RequestHandle, output: RequestOutput) -> dict[str, Any]:
    """What a response tells of a picture beside the picture itself; seconds."""
    return {
        "seed": handle.request.seed,
        "model": handle.job.tier.name,
        "drawn_as": handle.effective_tier,
        "steps": handle.request.steps,
        "sampler": handle.request.sampler,
        "guidance": handle.request.guidance,
        "queue_seconds": output.queue_seconds,
        "denoise_seconds": output.denoise_seconds,
        "finish_seconds": output.decode_seconds,
        "batch_peers": output.batch_peers,
        "prompt_cut": output.is_prompt_truncated,
    }
