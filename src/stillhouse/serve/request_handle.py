"""Generation requests, and the handles that stream their progress and result."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

from stillhouse.core import ImageRequest
from stillhouse.images.formats import Format
from stillhouse.serve.client import Client
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.output import PreviewImage, RequestOutput


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One image requested by a client, independent of the API that received the request.

    Args:
        request: unresolved image request.
        client: sender of the request.
        tier: tier whose pipeline and defaults apply; None uses the client's default tier.
        format: image format of the result.
        previews: number of preview images.
        queue_timeout: seconds after which a request that has not started expires; None never expires.
        is_background: whether the request comes from the job queue. Background requests have no deadline for admission
            and do not count in goodput.
        id: request id; None generates one.
        traceparent: `traceparent` header of the client (W3C Trace Context); None starts a new trace.
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
    """Number of completed network evaluations of one image.

    Args:
        index: completed evaluations.
        evaluations: all evaluations.
    """

    index: int
    evaluations: int


StreamEvent: TypeAlias = Progress | PreviewImage | RequestOutput


@dataclass(slots=True, eq=False)
class RequestHandle:
    """State and event stream of an accepted request. Not thread-safe: use from the server's event loop.

    Args:
        generation_request: the request as submitted.
        job: scheduler state, with the resolved image request.
        effective_tier: tier whose pipeline and defaults are used; differs from the job's tier if the request was
            degraded.
        created: time of acceptance, seconds since the epoch.
        attempts: number of times that the request was sent to a worker.
        is_cancelled: whether cancellation was requested.
        preview_count: number of published previews.
        output: final result; None while the request is unfinished.
        last_preview: most recent preview.
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
        """Return the request id."""
        return self.job.id

    @property
    def request(self) -> ImageRequest:
        """Return the resolved image request."""
        return self.job.request

    @property
    def degraded_to(self) -> str | None:
        """Return the effective tier if it differs from the requested tier, else None."""
        return self.effective_tier if self.effective_tier != self.job.tier.name else None

    @property
    def progress(self) -> Progress:
        """Return the numbers of completed and of all evaluations of the denoiser."""
        return Progress(self.job.index, len(self.job.step_plan.rows))

    def publish(self, event: StreamEvent) -> None:
        """Send an event to all subscribers and store the latest preview or the final result."""
        if isinstance(event, RequestOutput):
            self.output = event
            self._finished.set()
        elif isinstance(event, PreviewImage):
            self.last_preview = event
        for queue in self._subscribers:
            queue.put_nowait(event)

    async def stream(self) -> AsyncIterator[StreamEvent]:
        """Yield the current progress, then all later events up to and including the `RequestOutput`."""
        queue: asyncio.Queue[StreamEvent] = asyncio.Queue()
        if self.output:
            yield self.output
            return
        self._subscribers.append(queue)
        try:
            yield self.progress
            while True:
                event = await queue.get()
                yield event
                if isinstance(event, RequestOutput):
                    return
        finally:
            self._subscribers.remove(queue)

    async def result(self) -> RequestOutput:
        """Wait for the final result and return it."""
        await self._finished.wait()
        assert self.output is not None
        return self.output
