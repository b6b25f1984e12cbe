"""A ticket: what whoever asked for a picture holds until it is there."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

from stillhouse.core import ImageRequest
from stillhouse.images.formats import Format
from stillhouse.serve.client import Client
from stillhouse.serve.engine.job import Job
from stillhouse.serve.worker.messages import RequestOutput


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
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
    client: Client
    tier: str | None = None
    format: Format = "png"
    previews: int = 0
    queue_timeout: float | None = None
    is_background: bool = False
    id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a picture is: so many evaluations of so many."""

    index: int
    evaluations: int


@dataclass(frozen=True, slots=True)
class PreviewImage:
    """A preview, a WebP file; number 0 is the first."""

    number: int
    index: int
    content: bytes


StreamEvent: TypeAlias = Progress | PreviewImage | RequestOutput


@dataclass(slots=True, eq=False)
class RequestHandle:
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

    generation_request: GenerationRequest
    job: Job
    effective_tier: str
    created: float
    attempts: int = 0
    is_cancelled: bool = False
    preview_count: int = 0
    output: RequestOutput | None = None
    last_preview: PreviewImage | None = None
    _finished: asyncio.Event = field(default_factory=asyncio.Event)
    _subscribers: list[asyncio.Queue[StreamEvent]] = field(default_factory=list)

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
        return self.effective_tier if self.effective_tier != self.job.tier.name else None

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.job.index, len(self.job.step_plan.rows))

    def publish(self, event: StreamEvent) -> None:
        """Let every listener know."""
        if isinstance(event, RequestOutput):
            self.output = event
            self._finished.set()
        elif isinstance(event, PreviewImage):
            self.last_preview = event
        for listener in self._subscribers:
            listener.put_nowait(event)

    async def stream(self) -> AsyncIterator[StreamEvent]:
        """What happens from now on, up to the end: first where it stands, last its `Closed`."""
        listener: asyncio.Queue[StreamEvent] = asyncio.Queue()
        if self.output:
            yield self.output
            return
        self._subscribers.append(listener)
        try:
            yield self.progress
            while True:
                event = await listener.get()
                yield event
                if isinstance(event, RequestOutput):
                    return
        finally:
            self._subscribers.remove(listener)

    async def result(self) -> RequestOutput:
        """Its end, as soon as it has one."""
        await self._finished.wait()
        assert self.output is not None
        return self.output
