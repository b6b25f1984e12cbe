"""What all doors over HTTP share: who asks, whether they are still there, and how they are told no."""

import asyncio
import math
from collections.abc import Awaitable, Sequence
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from numpy.typing import NDArray

from stillhouse.core import Picture
from stillhouse.errors import InvalidRequest, NotAllowed, Refused, StillhouseError
from stillhouse.images.png import read_alpha_mask, read_picture
from stillhouse.serve.client import Caller
from stillhouse.serve.request_handle import Ticket
from stillhouse.serve.service import Service
from stillhouse.serve.worker.messages import Closed

T = TypeVar("T")
Asked = Request[Any, Any, State]

REASONS = {
    **dict.fromkeys(("queue", "starting", "draining", "jobs", "storage"), 503),
    **dict.fromkeys(("deadline", "rate", "quota"), 429),
}
"""HTTP's status by the reason of a refusal."""
LARGEST = 1 << 20
"""Bytes of a request without pictures: a prompt and some numbers; more would only keep the loop from its work."""
FAULTS = {"InvalidRequest": 400, "WorkerDied": 503, "Drained": 503}
"""HTTP's status by the fault of a job that failed; 500 for all others."""
GONE = 499
"""As nginx calls it when a client has gone before it was answered."""


class Gone(Exception):
    """The client has gone."""


def service_of(request: Asked) -> Service:
    """The service behind the doors."""
    service: Service = request.app.state.service
    return service


async def caller_of(request: Asked) -> Caller:
    """Who asks.

    Raises:
        NotAllowed: a key is needed and there is none, or it is not known.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    address = request.client.host if request.client else ""
    return await service_of(request).caller(token.strip() if scheme.lower() == "bearer" else None, address)


async def while_there(request: Asked, wanted: Awaitable[T]) -> T:
    """What is waited for, as long as the client waits, too.

    Raises:
        Gone: it does not.
    """
    asked = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise Gone
    finally:
        for task in (asked, gone):
            task.cancel()
    return asked.result()


async def ends(request: Asked, tickets: Sequence[Ticket]) -> list[Closed]:
    """How all of these end. Where one fails, the others are cancelled; where the client goes before, all of them are if
    the settings say so.

    Raises:
        Gone: the client has gone.
        StillhouseError: one of them failed.
    """
    service = service_of(request)

    async def drawn(ticket: Ticket) -> Closed:
        closed = await ticket.end()
        raise_for(closed, ticket)
        return closed

    async def all_drawn() -> list[Closed]:
        return await asyncio.gather(*map(drawn, tickets))

    try:
        return await while_there(request, all_drawn())
    except (Gone, asyncio.CancelledError):
        leave(service, tickets)
        raise
    except Failed:
        for ticket in tickets:
            service.front.cancel(ticket.id, "failed")
        raise


def leave(service: Service, tickets: Sequence[Ticket]) -> None:
    """What becomes of pictures whose client has gone before it had them."""
    for ticket in tickets:
        if service.settings.on_disconnect == "cancel":
            service.front.cancel(ticket.id, "disconnect")
        else:
            service.keep_later(ticket)


class Missing(InvalidRequest):
    """What was asked for is not there; `status` is HTTP's."""

    def __init__(self, given: str, *, allowed: str | None = None, fix: str | None = None, status: int = 404) -> None:
        super().__init__(given, allowed=allowed, fix=fix)
        self.status = status


class Failed(StillhouseError):
    """A job that was accepted has no picture; `status` is HTTP's, `id` the job's."""

    def __init__(self, closed: Closed, ticket: Ticket) -> None:
        self.id = ticket.id
        self.status = 503 if closed.outcome in ("expired", "cancelled") else FAULTS.get(closed.fault, 500)
        self.fault = closed.fault or closed.outcome
        told = {"expired": "its time was over before it could be begun", "cancelled": "it was cancelled"}
        super().__init__(closed.error or told.get(closed.outcome, "it failed"))


def raise_for(closed: Closed, ticket: Ticket) -> None:
    """Raise what a job that was not drawn ended with."""
    if closed.outcome != "drawn":
        raise Failed(closed, ticket)


def headers_of(tickets: Sequence[Ticket], closed: Sequence[Closed]) -> dict[str, str]:
    """What a response tells of its pictures: milliseconds, of the slowest; seeds, of each."""
    told = {
        "x-seed": ",".join(str(ticket.request.seed) for ticket in tickets),
        "x-queue-ms": f"{1000 * max(one.waited for one in closed):.1f}",
        "x-denoise-ms": f"{1000 * max(one.denoised for one in closed):.1f}",
        "x-batch-peers": f"{sum(one.peers for one in closed) / len(closed):.2f}",
        "x-request-id": ",".join(ticket.id for ticket in tickets),
    }
    return told | degraded(tickets) | ({"x-prompt-cut": "true"} if any(one.is_cut for one in closed) else {})


def degraded(tickets: Sequence[Ticket]) -> dict[str, str]:
    """As which other tiers some of these are drawn, if any: nobody is given less in silence."""
    names = {ticket.degraded_to for ticket in tickets if ticket.degraded_to}
    return {"x-degraded-to": ",".join(sorted(names))} if names else {}


async def picture_of(request: Asked, content: bytes) -> Picture:
    """A picture that was sent, decoded beside the loop.

    Raises:
        InvalidRequest: it is none, or too large.
    """
    return await asyncio.to_thread(read_picture, BytesIO(content), service_of(request).settings.pixels)


async def mask_of(request: Asked, content: bytes) -> NDArray[np.uint8]:
    """A mask that was sent: what is transparent, or bright where nothing is, is repainted.

    Raises:
        InvalidRequest: it is none, or too large.
    """
    return await asyncio.to_thread(read_alpha_mask, BytesIO(content), service_of(request).settings.pixels)


def status_of(error: Exception) -> int:
    """HTTP's status for an error."""
    if isinstance(error, Failed):
        return error.status
    if isinstance(error, Refused):
        return REASONS[error.reason]
    if isinstance(error, NotAllowed):
        return 403 if error.is_known else 401
    if isinstance(error, InvalidRequest):
        return error.status if isinstance(error, Missing) else 400
    return error.status_code if isinstance(error, HTTPException) else 500


def explained(request: Asked, error: Exception) -> Response[Any]:
    """An error as the protocol that was spoken tells it."""
    status = status_of(error)
    message = error.detail if isinstance(error, HTTPException) else str(error)
    if status == 500 and not isinstance(error, StillhouseError):
        message = "an error of the server; its log tells more"
    headers = {"x-request-id": error.id} if isinstance(error, Failed) else {}
    if isinstance(error, Refused):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        if error.reason == "draining":
            headers["connection"] = "close"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, HTTPException):
        extra = getattr(error, "extra", None)
        if isinstance(extra, list):
            message = "; ".join([message, *(f"{one.get('key', '$')}: {one.get('message')}" for one in extra)])
        headers |= dict(error.headers or {})
    if request.url.path.startswith("/v2"):
        return Response({"error": message}, status_code=status, headers=headers)
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = error.reason if isinstance(error, Refused) else getattr(error, "fault", None)
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Response(body, status_code=status, headers=headers)


async def _disconnected(request: Asked) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
