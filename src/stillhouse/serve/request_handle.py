"""Generation requests, and the handles that stream their progress and result."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

from stillhouse.core import ImageRequest
from stillhouse.images.files import Format
from stillhouse.serve.client import Client
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.output import PreviewImage, RequestOutput


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One image requested by a client, independent of the API that received the request.

    Args:
        request: image request in which the pipeline's defaults are not yet filled in.
        client: sender of the request.
        tier: name of the requested tier (`model` in the APIs); None uses the client's default tier.
        format: image format of the result.
        previews: number of preview images to send while the image is denoised.
        queue_timeout: seconds after which a request that has not started expires; None never expires.
        attempts: number of times that the image was begun before, see `RequestHandle`.
        is_background: whether the request is a stored job of the job queue. Background requests are accepted however
            late they would finish, and do not count in goodput (share of images that meet their latency target).
        id: request id; None generates one.
        traceparent: `traceparent` header of the client (W3C Trace Context); None starts a new trace.
    """

    request: ImageRequest
    client: Client
    tier: str | None = None
    format: Format = "png"
    previews: int = 0
    queue_timeout: float | None = None
    attempts: int = 0
    is_background: bool = False
    id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Number of completed network evaluations of one image.

    Args:
        index: number of completed evaluations.
        evaluations: number of evaluations that the image takes in total.
    """

    index: int
    evaluations: int


StreamEvent: TypeAlias = Progress | PreviewImage | RequestOutput


@dataclass(slots=True, eq=False)
class RequestHandle:
    """State and event stream of an accepted request. Not thread-safe: use from the server's event loop.

    Args:
        generation_request: the request as submitted.
        job: the scheduler's state of the request, with the image request in which all defaults are filled in.
        effective_tier: name of the tier whose pipeline and defaults are used: the requested tier, or the tier that
            replaced it because the requested tier could not finish in time.
        created: time of acceptance, seconds since the epoch.
        attempts: number of times that a worker began the image, in earlier runs of the server, too.
        is_begun: whether a worker that lives has begun it.
        is_cancelled: whether cancellation was requested.
        preview_count: number of published previews.
        output: final result; None while the request is unfinished.
        last_preview: most recent preview; None before the first one.
    """

    generation_request: GenerationRequest
    job: Job
    effective_tier: str
    created: float
    attempts: int = 0
    is_begun: bool = False
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
        """Return the image request with all defaults filled in."""
        return self.job.request

    @property
    def degraded_to(self) -> str | None:
        """Return the name of the tier (model) that replaced the requested one to finish in time; None if none did."""
        return self.effective_tier if self.effective_tier != self.job.tier.name else None

    @property
    def progress(self) -> Progress:
        """Return how many of the image's network evaluations are completed."""
        return Progress(self.job.index, len(self.job.step_plan.rows))

    def publish(self, event: StreamEvent) -> None:
        """Send an event to all open streams of the request.

        A preview also replaces `last_preview`. A `RequestOutput` ends the request and becomes `output`.
        """
        if isinstance(event, RequestOutput):
            self.output = event
            self._finished.set()
        elif isinstance(event, PreviewImage):
            self.last_preview = event
        for queue in self._subscribers:
            queue.put_nowait(event)

    async def stream(self) -> AsyncIterator[StreamEvent]:
        """Yield the current progress, then each later event; the last one is the `RequestOutput`.

        If the request has already ended, yield only its `RequestOutput`.
        """
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
        """Wait until the request has ended, and return its final result."""
        await self._finished.wait()
        assert self.output is not None
        return self.output
