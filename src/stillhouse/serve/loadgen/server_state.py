"""Access to the server under test: its address, its protocol and API keys."""

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
        keys: API keys, assigned in turn to the simulated clients; empty sends none.
        timeout: timeout of a request in seconds.
    """

    endpoint: Endpoint
    protocol: ImageProtocol
    keys: tuple[str, ...] = ()
    timeout: float = 300.0

    async def send(self, request: ScheduledRequest) -> HttpResponse:
        """Send a request at once, with the API key of its client, and return the response."""
        http_request = self.protocol.make_request(request.request_class, request.prompt)
        return await _send_with_key(self.endpoint, http_request, self.keys, request.client, self.timeout)


async def open_target(
    url: str,
    protocol: ProtocolName,
    classes: Sequence[RequestClass],
    keys: tuple[str, ...] = (),
    timeout: float = 300.0,
) -> TargetServer:
    """Return access to the server at a URL. With the protocol "kserve", the metadata of the models is read first.

    Args:
        url: URL of the server.
        protocol: name of the protocol.
        classes: classes of requests that will be sent.
        keys: API keys, assigned in turn to the simulated clients.
        timeout: timeout of a request in seconds.

    Raises:
        InvalidRequest: the URL is not an HTTP URL, or a model lacks an input that a class needs.
        StillhouseError: the host name cannot be resolved, or the server does not conform to the protocol.
    """
    endpoint = resolve_endpoint(url)

    async def send(request: HttpRequest) -> HttpResponse:
        return check_reachable(endpoint, await _send_with_key(endpoint, request, keys, 0, timeout))

    return TargetServer(endpoint, await open_protocol(protocol, classes, send), keys, timeout)


def check_reachable(endpoint: Endpoint, response: HttpResponse) -> HttpResponse:
    """Return the response unchanged, after checking that a connection to the server at `endpoint` could be made.

    Raises:
        StillhouseError: no connection could be made.
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
