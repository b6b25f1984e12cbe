"""A ticket: what whoever asked for a picture holds until it is there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

from stillhouse.core import ImageRequest
from stillhouse.images.formats import Format
from stillhouse.serve.client import Caller
from stillhouse.serve.engine.job import Job
from stillhouse.serve.worker.messages import Closed


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """One picture as a client asks for it, whichever door it came through.

    Args:
        request: not resolved.
        tier: whose way of drawing; None, the caller's own.
        caller: who asks.
        format: of the picture.
        previews: so many on the way.
        patience: seconds within which it must begin; None, as long as it takes.
        is_patient: it may come late: nobody waits for it at the door.
        id: of the job; None, a new one.
        trace: the client's `traceparent` (W3C Trace Context), where it sent one.
    """

    request: ImageRequest
    caller: Caller
    tier: str | None = None
    format: Format = "png"
    previews: int = 0
    patience: float | None = None
    is_patient: bool = False
    id: str | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a picture is: so many evaluations of so many."""

    index: int
    evaluations: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A preview, a WebP file; number 0 is the first."""

    number: int
    index: int
    content: bytes


Event: TypeAlias = Progress | Shown | Closed


@dataclass(slots=True, eq=False)
class Ticket:
    """One accepted order. The server's loop owns it.

    Args:
        order: as it was asked for.
        job: as the engine knows it, with the request resolved.
        drawn_as: the tier whose way of drawing is used; another than the job's where it was degraded.
        wall: seconds since the epoch at which it was accepted.
        runs: how often it was given to a worker.
        is_cancelled: whether somebody cancelled it, and it may be drawn no more.
        shown: previews so far; `last` is the latest of them.
        closed: its end, once it has one.
    """

    order: Order
    job: Job
    drawn_as: str
    wall: float
    runs: int = 0
    is_cancelled: bool = False
    shown: int = 0
    closed: Closed | None = None
    last: Shown | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _listeners: list[asyncio.Queue[Event]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Of its job."""
        return self.job.id

    @property
    def request(self) -> ImageRequest:
        """With every default filled in."""
        return self.job.request

    @property
    def degraded_to(self) -> str | None:
        """The tier as which it is drawn instead of its own; None, its own."""
        return self.drawn_as if self.drawn_as != self.job.tier.name else None

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.job.index, len(self.job.walk.rows))

    def tell(self, event: Event) -> None:
        """Let every listener know."""
        if isinstance(event, Closed):
            self.closed = event
            self._over.set()
        elif isinstance(event, Shown):
            self.last = event
        for listener in self._listeners:
            listener.put_nowait(event)

    async def events(self) -> AsyncIterator[Event]:
        """What happens from now on, up to the end: first where it stands, last its `Closed`."""
        listener: asyncio.Queue[Event] = asyncio.Queue()
        if self.closed:
            yield self.closed
            return
        self._listeners.append(listener)
        try:
            yield self.progress
            while True:
                event = await listener.get()
                yield event
                if isinstance(event, Closed):
                    return
        finally:
            self._listeners.remove(listener)

    async def end(self) -> Closed:
        """Its end, as soon as it has one."""
        await self._over.wait()
        assert self.closed is not None
        return self.closed
