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
from stillhouse.serve.client import Client
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.service import Service
from stillhouse.serve.worker.messages import RequestOutput

T = TypeVar("T")
ApiRequest = Request[Any, Any, State]

STATUS_BY_REASON = {
    **dict.fromkeys(("queue", "starting", "draining", "jobs", "storage"), 503),
    **dict.fromkeys(("deadline", "rate", "quota"), 429),
}
"""HTTP's status by the reason of a refusal."""
MAX_JSON_BODY = 1 << 20
"""Bytes of a request without pictures: a prompt and some numbers; more would only keep the loop from its work."""
STATUS_BY_ERROR_TYPE = {"InvalidRequest": 400, "WorkerDied": 503, "Drained": 503}
"""HTTP's status by the fault of a job that failed; 500 for all others."""
CLIENT_CLOSED_REQUEST = 499
"""As nginx calls it when a client has gone before it was answered."""


class ClientDisconnected(Exception):
    """The client has gone."""


def get_service(request: ApiRequest) -> Service:
    """The service behind the doors."""
    service: Service = request.app.state.service
    return service


async def authenticate_request(request: ApiRequest) -> Client:
    """Who asks.

    Raises:
        NotAllowed: a key is needed and there is none, or it is not known.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    address = request.client.host if request.client else ""
    return await get_service(request).authenticate(token.strip() if scheme.lower() == "bearer" else None, address)


async def cancel_on_disconnect(request: ApiRequest, awaitable: Awaitable[T]) -> T:
    """What is waited for, as long as the client waits, too.

    Raises:
        Gone: it does not.
    """
    asked = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnected
    finally:
        for task in (asked, gone):
            task.cancel()
    return asked.result()


async def wait_for_outputs(request: ApiRequest, handles: Sequence[RequestHandle]) -> list[RequestOutput]:
    """How all of these end. Where one fails, the others are cancelled; where the client goes before, all of them are if
    the settings say so.

    Raises:
        Gone: the client has gone.
        StillhouseError: one of them failed.
    """
    service = get_service(request)

    async def drawn(ticket: RequestHandle) -> RequestOutput:
        closed = await ticket.result()
        raise_for_failure(closed, ticket)
        return closed

    async def all_drawn() -> list[RequestOutput]:
        return await asyncio.gather(*map(drawn, handles))

    try:
        return await cancel_on_disconnect(request, all_drawn())
    except (ClientDisconnected, asyncio.CancelledError):
        handle_disconnect(service, handles)
        raise
    except RequestFailed:
        for ticket in handles:
            service.dispatcher.cancel(ticket.id, "failed")
        raise


def handle_disconnect(service: Service, handles: Sequence[RequestHandle]) -> None:
    """What becomes of pictures whose client has gone before it had them."""
    for ticket in handles:
        if service.settings.on_disconnect == "cancel":
            service.dispatcher.cancel(ticket.id, "disconnect")
        else:
            service.store_when_finished(ticket)


class NotFound(InvalidRequest):
    """What was asked for is not there; `status` is HTTP's."""

    def __init__(self, given: str, *, allowed: str | None = None, fix: str | None = None, status: int = 404) -> None:
        super().__init__(given, allowed=allowed, fix=fix)
        self.status = status


class RequestFailed(StillhouseError):
    """A job that was accepted has no picture; `status` is HTTP's, `id` the job's."""

    def __init__(self, closed: RequestOutput, ticket: RequestHandle) -> None:
        self.id = ticket.id
        self.status = (
            503
            if closed.finish_reason in ("expired", "cancelled")
            else STATUS_BY_ERROR_TYPE.get(closed.error_type, 500)
        )
        self.error_type = closed.error_type or closed.finish_reason
        told = {"expired": "its time was over before it could be begun", "cancelled": "it was cancelled"}
        super().__init__(closed.error or told.get(closed.finish_reason, "it failed"))


def raise_for_failure(output: RequestOutput, handle: RequestHandle) -> None:
    """Raise what a job that was not drawn ended with."""
    if output.finish_reason != "drawn":
        raise RequestFailed(output, handle)


def response_headers(handles: Sequence[RequestHandle], outputs: Sequence[RequestOutput]) -> dict[str, str]:
    """What a response tells of its pictures: milliseconds, of the slowest; seeds, of each."""
    told = {
        "x-seed": ",".join(str(ticket.request.seed) for ticket in handles),
        "x-queue-ms": f"{1000 * max(one.queue_seconds for one in outputs):.1f}",
        "x-denoise-ms": f"{1000 * max(one.denoise_seconds for one in outputs):.1f}",
        "x-batch-peers": f"{sum(one.batch_peers for one in outputs) / len(outputs):.2f}",
        "x-request-id": ",".join(ticket.id for ticket in handles),
    }
    return (
        told
        | degraded_header(handles)
        | ({"x-prompt-cut": "true"} if any(one.is_prompt_truncated for one in outputs) else {})
    )


def degraded_header(handles: Sequence[RequestHandle]) -> dict[str, str]:
    """As which other tiers some of these are drawn, if any: nobody is given less in silence."""
    names = {ticket.degraded_to for ticket in handles if ticket.degraded_to}
    return {"x-degraded-to": ",".join(sorted(names))} if names else {}


async def decode_image(request: ApiRequest, content: bytes) -> Picture:
    """A picture that was sent, decoded beside the loop.

    Raises:
        InvalidRequest: it is none, or too large.
    """
    return await asyncio.to_thread(read_picture, BytesIO(content), get_service(request).settings.pixels)


async def decode_mask(request: ApiRequest, content: bytes) -> NDArray[np.uint8]:
    """A mask that was sent: what is transparent, or bright where nothing is, is repainted.

    Raises:
        InvalidRequest: it is none, or too large.
    """
    return await asyncio.to_thread(read_alpha_mask, BytesIO(content), get_service(request).settings.pixels)


def http_status(error: Exception) -> int:
    """HTTP's status for an error."""
    if isinstance(error, RequestFailed):
        return error.status
    if isinstance(error, Refused):
        return STATUS_BY_REASON[error.reason]
    if isinstance(error, NotAllowed):
        return 403 if error.is_known else 401
    if isinstance(error, InvalidRequest):
        return error.status if isinstance(error, NotFound) else 400
    return error.status_code if isinstance(error, HTTPException) else 500


def error_response(request: ApiRequest, error: Exception) -> Response[Any]:
    """An error as the protocol that was spoken tells it."""
    status = http_status(error)
    message = error.detail if isinstance(error, HTTPException) else str(error)
    if status == 500 and not isinstance(error, StillhouseError):
        message = "an error of the server; its log tells more"
    headers = {"x-request-id": error.id} if isinstance(error, RequestFailed) else {}
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


async def _wait_for_disconnect(request: ApiRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
