"""Connection to the server under test: endpoint, protocol and API keys."""

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
    """The server under test.

    Args:
        endpoint: address of the server.
        protocol: protocol of the server.
        keys: API keys, assigned to clients in turn.
        timeout: timeout of a request in seconds.
    """

    endpoint: Endpoint
    protocol: ImageProtocol
    keys: tuple[str, ...] = ()
    timeout: float = 300.0

    async def send(self, request: ScheduledRequest) -> HttpResponse:
        """Send a request and return the response."""
        http_request = self.protocol.make_request(request.request_class, request.prompt)
        return await _send_with_key(self.endpoint, http_request, self.keys, request.client, self.timeout)


async def open_target(
    url: str,
    protocol: ProtocolName,
    classes: Sequence[RequestClass],
    keys: tuple[str, ...] = (),
    timeout: float = 300.0,
) -> TargetServer:
    """Return the server at a URL after reading its metadata, see `open_protocol`.

    Raises:
        InvalidRequest: the URL is not an HTTP URL, or a model lacks an input that a class needs.
        StillhouseError: the host name cannot be resolved, or the server does not conform to the protocol.
    """
    endpoint = resolve_endpoint(url)

    async def send(request: HttpRequest) -> HttpResponse:
        return check_reachable(endpoint, await _send_with_key(endpoint, request, keys, 0, timeout))

    return TargetServer(endpoint, await open_protocol(protocol, classes, send), keys, timeout)


def check_reachable(endpoint: Endpoint, response: HttpResponse) -> HttpResponse:
    """Return the response unless the connection was refused.

    Raises:
        StillhouseError: the connection was refused.
    """
    if response.status == REFUSED:
        reason = response.body.decode(errors="replace")
        raise StillhouseError(
            f"cannot connect to {endpoint.url}: {reason}", fix="check --url and that the server is running"
        )
    return response


async def _send_with_key(
    endpoint: Endpoint, request: HttpRequest, keys: Sequence[str], client: int, timeout: float
) -> HttpResponse:
    if keys:
        headers = {**request.headers, "authorization": f"Bearer {keys[client % len(keys)]}"}
        request = replace(request, headers=headers)
    return await send_request(endpoint, request, client, timeout)
