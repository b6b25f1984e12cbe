"""Minimal HTTP/1.1 client with one connection per request, as if each request came from an independent user.

No request waits for a connection of a pool, and none is lost because the server closed an idle connection.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast
from urllib.parse import urlsplit

import httptools

from stillhouse.errors import InvalidRequest, StillhouseError

ResponseStatus: TypeAlias = int | str
"""HTTP status of a response; if there is no HTTP response, a name of the failure, such as "timed out"."""
REFUSED, CUT_OFF, TIMED_OUT, NO_HTTP = "no connection", "cut off", "timed out", "no HTTP"
_PER_NETWORK = 250


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address of a server.

    Args:
        url: URL of the server without a trailing slash.
        host_header: value of the Host header.
        address: IP address of the host name.
        port: TCP port.
        path: path that precedes the path of every request.
        tls: TLS context for https, else None.
    """

    url: str
    host_header: str
    address: str
    port: int
    path: str = ""
    tls: ssl.SSLContext | None = None

    def local_address(self, client: int) -> tuple[str, int] | None:
        """Return the source address and port from which a simulated client connects; port 0 stands for any free port.

        If the server has a loopback address, each client gets a loopback address of its own. Otherwise None is
        returned, and the system chooses the address.
        """
        if not self.address.startswith("127."):
            return None
        network, host = divmod(client, _PER_NETWORK)
        return f"127.1.{network}.{1 + host}", 0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request.

    Args:
        method: HTTP method.
        path: path that follows the endpoint's `path`.
        body: request body.
        headers: additional headers.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP response, or the reason why there is none.

    Args:
        status: HTTP status, or the name of the failure.
        body: body of the response; after a failure, the part that was received or an error message.
    """

    status: ResponseStatus
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Return whether there is an HTTP response with a status from 200 to 299."""
        return isinstance(self.status, int) and 200 <= self.status < 300


def resolve_endpoint(url: str) -> Endpoint:
    """Return the endpoint of a server's URL. The host name is resolved, which may block. A URL that is not an HTTP URL
    raises InvalidRequest. A host name that cannot be resolved raises StillhouseError.
    >>> resolve_endpoint("http://127.0.0.1:8000/").port
    8000
    """
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        port = None
    if port is None or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is not a server URL", allowed="http://HOST:PORT or https://HOST:PORT")
    try:
        addresses = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        problem = f"the host name {parts.hostname} cannot be resolved: {error.strerror}"
        raise StillhouseError(problem, fix="check the host name") from error
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return Endpoint(url.rstrip("/"), parts.netloc, str(addresses[0][4][0]), port, parts.path.rstrip("/"), tls)


async def send_request(endpoint: Endpoint, request: HttpRequest, client: int, timeout: float) -> HttpResponse:
    """Send a request over a new connection and return the response.

    A failure of the connection is returned as the status of the response, not raised.

    Args:
        endpoint: address of the server.
        request: request to send.
        client: number of the simulated client, which may have a source address of its own.
        timeout: seconds for connecting, sending and receiving together.
    """
    loop = asyncio.get_running_loop()
    response: asyncio.Future[HttpResponse] = loop.create_future()
    content = _encode_request(endpoint, request)
    connection: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(timeout):
            connection, _ = await loop.create_connection(
                lambda: _Exchange(content, response),
                endpoint.address,
                endpoint.port,
                ssl=endpoint.tls,
                server_hostname=_server_name(endpoint),
                local_addr=endpoint.local_address(client),
            )
            return await response
    except TimeoutError:
        return HttpResponse(TIMED_OUT)
    except OSError as error:
        return HttpResponse(REFUSED, str(error).encode())
    finally:
        if connection:
            connection.abort()


def _server_name(endpoint: Endpoint) -> str | None:
    return urlsplit(endpoint.url).hostname if endpoint.tls else None


def _encode_request(endpoint: Endpoint, request: HttpRequest) -> bytes:
    headers = {
        "host": endpoint.host_header,
        "connection": "close",
        "accept-encoding": "identity",
        "content-length": str(len(request.body)),
        **request.headers,
    }
    lines = [
        f"{request.method} {endpoint.path}{request.path} HTTP/1.1",
        *(f"{name}: {headers[name]}" for name in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + request.body


class _Exchange(asyncio.Protocol):
    """asyncio protocol that sends one request and receives its response.

    The HTTP parser calls the methods whose names begin with `on_`.
    """

    def __init__(self, content: bytes, response: asyncio.Future[HttpResponse]) -> None:
        self._content, self._reply = content, response
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._is_framed = self._has_head = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio declares `transport` as BaseTransport, which has no `write`. A cast is used and no isinstance check,
        # because the transports of some event loops are no subclasses of asyncio.Transport.
        cast(asyncio.Transport, transport).write(self._content)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(NO_HTTP)

    def connection_lost(self, error: Exception | None) -> None:
        # A response whose headers give no length of the body (not _is_framed) is complete when the server closes the
        # connection without an error.
        is_whole = self._has_head and not self._is_framed and error is None
        self._end(self._parser.get_status_code() if is_whole else CUT_OFF)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._end(self._parser.get_status_code())

    def _end(self, status: ResponseStatus) -> None:
        if not self._reply.done():
            self._reply.set_result(HttpResponse(status, b"".join(self._body)))
