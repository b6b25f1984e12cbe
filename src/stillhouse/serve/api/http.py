"""Shared parts of the HTTP APIs: authentication, disconnect handling, response headers and error responses."""

import asyncio
import json
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.response import ServerSentEvent, ServerSentEventMessage
from numpy.typing import NDArray

from stillhouse.core import Picture
from stillhouse.errors import InvalidRequest, NotAllowed, Refused, StillhouseError
from stillhouse.images.files import read_alpha_mask, read_picture
from stillhouse.serve.client import Client
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.service import Service

T = TypeVar("T")
ApiRequest = Request[Any, Any, State]

STATUS_BY_REASON = {
    **dict.fromkeys(("queue", "starting", "draining", "jobs", "storage"), 503),
    **dict.fromkeys(("deadline", "rate", "quota"), 429),
}
"""HTTP status of a rejected request by the reason of the rejection, see `Refused.reason`."""
MAX_JSON_BODY = 1 << 20
"""Largest body in bytes of a request without images. Parsing a larger body would block the event loop too long."""
STATUS_BY_ERROR_TYPE = {"InvalidRequest": 400, "WorkerDied": 503, "ServerShutdown": 503}
"""HTTP status of an accepted request that failed, by `RequestOutput.error_type`; 500 for all other types."""
MAX_RANDOM_SEED = 2**32 - 1
"""Largest random seed: short enough to type, and exact in programs that store numbers as doubles."""
KEEP_ALIVE = ServerSentEventMessage(comment="keep-alive", data=None, sep="\n")
"""Comment in a stream of server-sent events that keeps proxies from closing the stream while no event is sent."""
KEEP_ALIVE_SECONDS = 15.0
"""Seconds without an event after which a stream of server-sent events contains a keep-alive comment."""
CLIENT_CLOSED_REQUEST = 499
"""HTTP status for a client that disconnected before the response; nginx uses this non-standard number."""


class ClientDisconnected(Exception):
    """Error raised when the client disconnects before the response is sent."""


def get_service(request: ApiRequest) -> Service:
    """Return the service behind the application that received a request."""
    service: Service = request.app.state.service
    return service


async def authenticate_request(request: ApiRequest) -> Client:
    """Return the client that sent a request. The API key in the Authorization header identifies the client.

    If the server requires no API keys, the IP address identifies the client.

    Raises:
        NotAllowed: an API key is required, but is missing, unknown or revoked.
    """
    clients = get_service(request).clients
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    address = request.client.host if request.client else ""
    return await clients.authenticate(token.strip() if scheme.lower() == "bearer" else None, address)


async def cancel_on_disconnect(request: ApiRequest, awaitable: Awaitable[T]) -> T:
    """Wait for an awaitable and return its result. If the client disconnects first, the awaitable is cancelled.

    Raises:
        ClientDisconnected: the client disconnected before the result.
    """
    result = asyncio.ensure_future(awaitable)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({result, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnected
    finally:
        for task in (result, disconnect):
            task.cancel()
    return result.result()


async def wait_for_outputs(request: ApiRequest, handles: Sequence[RequestHandle]) -> list[RequestOutput]:
    """Wait until all requests have ended, and return their outputs in the order of `handles`.

    If a request fails, the others are cancelled. If the client disconnects, the setting `on_disconnect` decides whether
    the requests are cancelled, or finished and stored.

    Raises:
        ClientDisconnected: the client disconnected.
        StillhouseError: a request failed.
    """
    service = get_service(request)

    async def wait_for_output(handle: RequestHandle) -> RequestOutput:
        output = await handle.result()
        raise_for_failure(output, handle)
        return output

    async def wait_for_all() -> list[RequestOutput]:
        return await asyncio.gather(*map(wait_for_output, handles))

    try:
        return await cancel_on_disconnect(request, wait_for_all())
    except (ClientDisconnected, asyncio.CancelledError):
        handle_disconnect(service, handles)
        raise
    except RequestFailed:
        for handle in handles:
            service.dispatcher.cancel(handle.id, "failed")
        raise


def handle_disconnect(service: Service, handles: Sequence[RequestHandle]) -> None:
    """Apply the setting `on_disconnect` to the requests of a disconnected client.

    "cancel" cancels the requests. "finish" starts a task for each request, which stores the image once it is finished.
    """
    for handle in handles:
        if service.settings.on_disconnect == "cancel":
            service.dispatcher.cancel(handle.id, "disconnect")
        else:
            service.store_when_finished(handle)


class NotFound(InvalidRequest):
    """Error for a resource that does not exist or is not available.

    Args:
        problem: what was requested, and why it is not available.
        allowed: what can be requested instead.
        fix: what the client can do.
        status: HTTP status of the response.
    """

    def __init__(self, problem: str, *, allowed: str | None = None, fix: str | None = None, status: int = 404) -> None:
        super().__init__(problem, allowed=allowed, fix=fix)
        self.status = status


class RequestFailed(StillhouseError):
    """Error for an accepted request that ended without an image.

    Attributes:
        id: request id.
        status: HTTP status of the response.
        error_type: class name of the error; "expired" or "cancelled" if the request ended without an error.
    """

    def __init__(self, output: RequestOutput, handle: RequestHandle) -> None:
        self.id = handle.id
        self.status = (
            503
            if output.finish_reason in ("expired", "cancelled")
            else STATUS_BY_ERROR_TYPE.get(output.error_type, 500)
        )
        self.error_type = output.error_type or output.finish_reason
        messages = {"expired": "queue timeout expired", "cancelled": "the request was cancelled"}
        super().__init__(output.error or messages.get(output.finish_reason, "the request failed"))


def raise_for_failure(output: RequestOutput, handle: RequestHandle) -> None:
    """Raise RequestFailed unless the request ended with an image."""
    if output.finish_reason != "finished":
        raise RequestFailed(output, handle)


def response_headers(handles: Sequence[RequestHandle], outputs: Sequence[RequestOutput]) -> dict[str, str]:
    """Return the HTTP headers that describe the images of a response.

    The headers hold the seeds and request ids of all images, the longest times in the queue and in denoising in
    milliseconds, and the mean number of other images in the same batches. Further headers say which model replaced the
    requested one to finish in time, and whether a prompt was truncated.
    """
    headers = {
        "x-seed": ",".join(str(handle.request.seed) for handle in handles),
        "x-queue-ms": f"{1000 * max(output.queue_seconds for output in outputs):.1f}",
        "x-denoise-ms": f"{1000 * max(output.denoise_seconds for output in outputs):.1f}",
        "x-batch-peers": f"{sum(output.batch_peers for output in outputs) / len(outputs):.2f}",
        "x-request-id": ",".join(handle.id for handle in handles),
    }
    return (
        headers
        | degraded_header(handles)
        | ({"x-prompt-truncated": "true"} if any(output.is_prompt_truncated for output in outputs) else {})
    )


def degraded_header(handles: Sequence[RequestHandle]) -> dict[str, str]:
    """Return the header `x-degraded-to` with the models that replaced the requested model in order to finish in time.

    Return an empty dictionary if all requests ran on the requested model.
    """
    names = {handle.degraded_to for handle in handles if handle.degraded_to}
    return {"x-degraded-to": ",".join(sorted(names))} if names else {}


async def decode_image(request: ApiRequest, content: bytes) -> Picture:
    """Decode an uploaded image file in a thread, and return its pixels.

    Raises:
        InvalidRequest: the content is not an image, or has more pixels than the setting `max_pixels`.
    """
    return await asyncio.to_thread(read_picture, BytesIO(content), get_service(request).settings.max_pixels)


async def decode_mask(request: ApiRequest, content: bytes) -> NDArray[np.uint8]:
    """Decode an uploaded mask file in a thread, and return it as uint8 [height, width], in which 255 means to repaint.

    Transparent pixels of the file are to be repainted; in a file without transparency, the bright pixels are.

    Raises:
        InvalidRequest: the content is not an image, or has more pixels than the setting `max_pixels`.
    """
    return await asyncio.to_thread(read_alpha_mask, BytesIO(content), get_service(request).settings.max_pixels)


def make_event(name: str, fields: Mapping[str, Any]) -> ServerSentEventMessage:
    r"""Return a server-sent event with a name and with data: `fields` as JSON.

    >>> make_event("done", {}).encode()
    b'event: done\ndata: {}\n\n'
    """
    return ServerSentEventMessage(event=name, data=json.dumps(fields), sep="\n")


def stream_response(
    events: AsyncIterator[ServerSentEventMessage], headers: Mapping[str, str] | None = None
) -> ServerSentEvent:
    """Return a response that streams server-sent events and forbids caching. `headers` are sent in addition."""
    return ServerSentEvent(events, headers={"Cache-Control": "no-store", **(headers or {})})


def random_seed() -> int:
    """Return a random seed for a request that has no seed.

    >>> 0 <= random_seed() <= MAX_RANDOM_SEED
    True
    """
    return secrets.randbelow(MAX_RANDOM_SEED + 1)


def http_status(error: Exception) -> int:
    """Return the HTTP status with which an error is answered; 500 for unexpected errors."""
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
    """Return the JSON response for an error: in KServe's format for paths below `/v2`, else in OpenAI's.

    The messages of unexpected errors are not sent.
    """
    status = http_status(error)
    message = error.detail if isinstance(error, HTTPException) else str(error)
    if status == 500 and not isinstance(error, StillhouseError):
        message = "internal server error; see the server's log"
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
            message = "; ".join([message, *(f"{detail.get('key', '$')}: {detail.get('message')}" for detail in extra)])
        headers |= dict(error.headers or {})
    if request.url.path.startswith("/v2"):
        return Response({"error": message}, status_code=status, headers=headers)
    error_type = "invalid_request_error" if status < 500 else "server_error"
    code = error.reason if isinstance(error, Refused) else getattr(error, "error_type", None)
    body = {"error": {"message": message, "type": error_type, "param": None, "code": code}}
    return Response(body, status_code=status, headers=headers)


async def _wait_for_disconnect(request: ApiRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
