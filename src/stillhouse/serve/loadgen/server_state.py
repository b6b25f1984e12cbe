"""A server, as those see it who ask: an address, a dialect, keys."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stillhouse.errors import StillhouseError
from stillhouse.serve.loadgen.http_client import (
    REFUSED,
    Endpoint,
    HttpRequest,
    HttpResponse,
    resolve_endpoint,
    send_request,
)
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.protocols import ImageProtocol, ProtocolName, open_protocol
from stillhouse.serve.loadgen.request_class import RequestClass


@dataclass(frozen=True, slots=True)
class TargetServer:
    """Who is asked, and how.

    Args:
        place: where it is.
        dialect: how it is spoken with.
        keys: API keys; clients take them in turn.
        patience: seconds that one request may take.
    """

    endpoint: Endpoint
    protocol: ImageProtocol
    keys: tuple[str, ...] = ()
    timeout: float = 300.0

    async def send(self, request: ScheduledRequest) -> HttpResponse:
        """Send one request and wait for its reply."""
        message = self.protocol.make_request(request.request_class, request.prompt)
        return await _send_with_key(self.endpoint, message, self.keys, request.client, self.timeout)


async def open_target(
    url: str,
    protocol: ProtocolName,
    classes: Sequence[RequestClass],
    keys: tuple[str, ...] = (),
    timeout: float = 300.0,
) -> TargetServer:
    """The server at a URL, after what must be known of it was asked; see `dialect_of`.

    Raises:
        InvalidRequest: no URL of HTTP, or a model that does not take what a kind asks for.
        StillhouseError: a host that nobody knows, or a server that does not answer as its protocol wants it.
    """
    place = resolve_endpoint(url)

    async def ask(message: HttpRequest) -> HttpResponse:
        return check_reachable(place, await _send_with_key(place, message, keys, 0, timeout))

    return TargetServer(place, await open_protocol(protocol, classes, ask), keys, timeout)


def check_reachable(endpoint: Endpoint, response: HttpResponse) -> HttpResponse:
    """The reply, if there is somebody at that place.

    Raises:
        StillhouseError: there is nobody.
    """
    if response.status == REFUSED:
        said = response.body.decode(errors="replace")
        raise StillhouseError(
            f"nobody answers at {endpoint.url}: {said}", fix="does the server run, and is --url right?"
        )
    return response


async def _send_with_key(
    endpoint: Endpoint, request: HttpRequest, keys: Sequence[str], client: int, timeout: float
) -> HttpResponse:
    if keys:
        headers = {**request.headers, "authorization": f"Bearer {keys[client % len(keys)]}"}
        request = replace(request, headers=headers)
    return await send_request(endpoint, request, client, timeout)
