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
from stillhouse.serve.client import Caller
from stillhouse.serve.dispatcher import Front
from stillhouse.serve.request_handle import Order, Ticket
from stillhouse.serve.settings import TierSettings
from stillhouse.serve.store.api_keys import anybody, caller_of, keys
from stillhouse.serve.store.job_store import JobStore, Record, State
from stillhouse.serve.worker.messages import Closed

T = TypeVar("T")
log = logging.getLogger(__name__)

SOON = 0.5
"""Seconds after which it is looked again whether there is room."""
AGAIN = 5.0
"""Seconds after which the store is asked again for what it could not do."""
FULL = 60.0
"""Seconds after which a full disk may have room again."""
SWEEP = 60.0
"""Seconds between two looks at what may be forgotten."""


@dataclass(slots=True)
class Patient:
    """Jobs of the store, fed to the front. One loop owns it; the store has a thread of its own.

    Args:
        front: draws.
        store: knows of every job.
        keep, kept: as in `JobStore.forget`.
    """

    front: Front
    store: JobStore
    keep: float
    kept: int
    tickets: dict[str, Ticket] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "store"))
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _changes: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _cancelled: set[str] = field(default_factory=set)
    """Since the store was asked last what waits: some of these may be in its answer."""

    async def ask(self, what: Callable[..., T], *arguments: Any) -> T:
        """Call something of the store in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(what, *arguments))

    async def submit(self, name: str, caller: Caller, tier: str, request: ImageRequest, kind: Format) -> Record:
        """Accept a job.

        Raises:
            InvalidRequest, NotAllowed: as `Front.place`, and what is more than the key may ask for in a day.
            Refused: too many wait, or the disk is full.
        """
        self.front.review(Order(request, caller, tier))
        try:
            with storing():
                record = await self.ask(self.store.add, name, caller.key, tier, request, kind)
        except Refused as refused:
            self.front.metrics.rejected.labels(refused.reason, tier).inc()
            raise
        await self._tell()
        return record

    async def cancel(self, name: str) -> bool:
        """Draw that job no further; False where it has ended already."""
        if self.front.cancel(name):
            await self.tickets[name].end()
            while name in self.tickets:
                await self.changed(SOON)
            return True
        self._cancelled.add(name)
        is_over = await self.ask(self.store.end, name, "cancelled")
        await self._tell()
        return is_over

    async def changed(self, patience: float) -> None:
        """Wait until some job was taken, placed or ended, or so many seconds."""
        async with self._changes:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._changes.wait()

    def open(self) -> None:
        """Begin to feed."""
        for life in (self._feed(), self._forget()):
            self._hold(life)

    async def close(self) -> None:
        """Feed no more. What is not done stays queued, for the next server."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown()

    async def _feed(self) -> None:
        while True:
            self._news.clear()
            with going_on("waiting jobs are not fed"):
                await self._feed_once()
            # Not wait_for, which swallows a cancellation that comes together with the news (Python issue 37658).
            with suppress(TimeoutError):
                async with asyncio.timeout(SOON):
                    await self._news.wait()

    async def _feed_once(self) -> None:
        if not self.front.is_ready or not (room := self.front.room):
            return
        self._cancelled.clear()
        for record in await self.ask(self.store.queued, room, list(self.tickets)):
            await self._place(record)

    async def _place(self, record: Record) -> None:
        try:
            request = await self.ask(self.store.request, record)
            caller = await self.ask(behind, self.store.connection, record, self.front.settings.tiers)
            order = Order(request, caller, record.tier, record.format, is_patient=True, id=record.id)
            if record.id in self._cancelled:
                return
            ticket = self.front.place(order)
        except Refused:
            return
        except StillhouseError as error:
            await self.ask(self.store.end, record.id, "failed", b"", str(error))
            return
        self.tickets[record.id] = ticket
        self._hold(self._end(ticket))
        await self._tell()

    async def _end(self, ticket: Ticket) -> None:
        closed = await ticket.end()
        state: State = "failed" if closed.outcome == "expired" else closed.outcome
        # A server that is being shut down leaves the job to the next one.
        is_kept = closed.fault == "Drained"
        while not is_kept:
            # As long as its ticket is here, it is not drawn a second time.
            with going_on(f"job {ticket.id} cannot be ended"):
                await self.ask(self.store.end, ticket.id, state, closed.content, closed.error, told_of(ticket, closed))
                is_kept = True
            if not is_kept:
                await asyncio.sleep(AGAIN)
        del self.tickets[ticket.id]
        await self._tell()

    async def _tell(self) -> None:
        self._news.set()
        async with self._changes:
            self._changes.notify_all()

    async def _forget(self) -> None:
        while True:
            with going_on("old jobs are not deleted"):
                if gone := await self.ask(self.store.forget, self.keep, self.kept):
                    log.info("old jobs were deleted", extra={"count": gone})
            await asyncio.sleep(SWEEP)

    def _hold(self, life: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def storing() -> Iterator[None]:
    """Something is written into the store; where it cannot be, whoever asked is told to come back.

    Raises:
        Refused: it cannot.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        log.exception("the store cannot be written")
        raise Refused("the server's disk takes nothing now", "storage", FULL) from error


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """What the disk or the store refuses is logged, and tried again later: a full one may have room again."""
    try:
        yield
    except (OSError, sqlite3.Error, Refused) as error:
        log.error(what, extra={"error": str(error)})


def behind(connection: sqlite3.Connection, record: Record, tiers: Mapping[str, TierSettings]) -> Caller:
    """Who stood behind a job when it was accepted, with what the key may ask for now.

    Raises:
        NotAllowed: the key was revoked, or its tier is not served any more.
    """
    key = next((key for key in keys(connection) if key.name == record.key), None)
    if key and key.revoked:
        raise NotAllowed(f"key {record.key}, which was revoked since", allowed="keys in use")
    return caller_of(key, tiers) if key else replace(anybody(tiers), key=record.key)


def told_of(ticket: Ticket, closed: Closed) -> dict[str, Any]:
    """What a response tells of a picture beside the picture itself; seconds."""
    return {
        "seed": ticket.request.seed,
        "model": ticket.job.tier.name,
        "drawn_as": ticket.drawn_as,
        "steps": ticket.request.steps,
        "sampler": ticket.request.sampler,
        "guidance": ticket.request.guidance,
        "queue_seconds": closed.waited,
        "denoise_seconds": closed.denoised,
        "finish_seconds": closed.finished,
        "batch_peers": closed.peers,
        "prompt_cut": closed.is_cut,
    }
