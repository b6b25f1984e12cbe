"""HTTP/1.1 for one exchange: a connection, a request, its reply, the end. As little work as there can be.

Every request comes over a connection of its own, as those of many users do. So no request ever waits for another one's
connection, and none is lost because a server closed an idle one at the same moment.
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
"""HTTP's status, or what happened instead: one of the names below."""
REFUSED, CUT_OFF, TIMED_OUT, NO_HTTP = "no connection", "cut off", "timed out", "no HTTP"
_PER_NETWORK = 250


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is.

    Args:
        url: as it was told, without a slash at its end.
        name: of the host, for the Host header.
        address, port: that are connected to; the name is looked up once.
        path: before every path of the protocol.
        tls: for https, else None.
    """

    url: str
    host_header: str
    address: str
    port: int
    path: str = ""
    tls: ssl.SSLContext | None = None

    def local_address(self, client: int) -> tuple[str, int] | None:
        """From where a client asks: on this machine each from an address of its own; elsewhere the system decides."""
        if not self.address.startswith("127."):
            return None
        network, host = divmod(client, _PER_NETWORK)
        return f"127.1.{network}.{1 + host}", 0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is sent: a method, a path, and a body with headers of its own."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back."""

    status: ResponseStatus
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether it is what was asked for: a status from 200 to 299."""
        return isinstance(self.status, int) and 200 <= self.status < 300


def resolve_endpoint(url: str) -> Endpoint:
    """Where a URL leads.

    Raises:
        InvalidRequest: no URL of HTTP.
        StillhouseError: a host that nobody knows.

    >>> place_of("http://127.0.0.1:8000/").port
    8000
    """
    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        port = None
    if port is None or not parts.hostname or parts.query or parts.fragment:
        raise InvalidRequest(f"{url!r} is no address of a server", allowed="http://HOST:PORT or https://HOST:PORT")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StillhouseError(f"{parts.hostname}: {error.strerror}", fix="is the name right?") from error
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return Endpoint(url.rstrip("/"), parts.netloc, str(found[0][4][0]), port, parts.path.rstrip("/"), tls)


async def send_request(endpoint: Endpoint, request: HttpRequest, client: int, timeout: float) -> HttpResponse:
    """Send a message and take the reply; whatever goes wrong becomes a `Status`.

    Args:
        place: where to.
        message: what.
        client: who sends it, see `Place.local`.
        patience: seconds for all of it.
    """
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[HttpResponse] = loop.create_future()
    content = _encode_request(endpoint, request)
    connection: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(timeout):
            connection, _ = await loop.create_connection(
                lambda: _Exchange(content, reply),
                endpoint.address,
                endpoint.port,
                ssl=endpoint.tls,
                server_hostname=_server_name(endpoint),
                local_addr=endpoint.local_address(client),
            )
            return await reply
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
    """One request and its reply; the methods that begin with `on_` are called by the parser."""

    def __init__(self, content: bytes, reply: asyncio.Future[HttpResponse]) -> None:
        self._content, self._reply = content, reply
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._is_framed = self._has_head = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is a subclass of asyncio's.
        cast(asyncio.Transport, transport).write(self._content)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(NO_HTTP)

    def connection_lost(self, error: Exception | None) -> None:
        # A body that says nothing of its length ends with its connection.
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
