"""HTTP client: every way an exchange can end."""

import asyncio
import socket

import pytest

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import (
    CUT_OFF,
    NO_HTTP,
    REFUSED,
    TIMED_OUT,
    Endpoint,
    HttpRequest,
    HttpResponse,
    resolve_endpoint,
    send_request,
)
from tests.serve.loadgen.fake import FakeServer, ReceivedRequest, format_response

FIRST = HttpRequest("GET", "/")


def sent(server: FakeServer, message: HttpRequest = FIRST, client: int = 0, timeout: float = 10.0) -> HttpResponse:
    return asyncio.run(send_request(resolve_endpoint(server.url), message, client, timeout))


def test_response_has_status_and_body() -> None:
    with FakeServer(lambda call: format_response(404, b"nothing here")) as server:
        assert sent(server) == HttpResponse(404, b"nothing here")
    assert not HttpResponse(404).is_success
    assert HttpResponse(204).is_success


def test_request_arrives_unchanged() -> None:
    with FakeServer() as server:
        place = resolve_endpoint(server.url + "/below/")
        asyncio.run(send_request(place, HttpRequest("POST", "/v1", b"{}", {"authorization": "Bearer k"}), 0, 10.0))
        (call,) = server.calls
    assert (call.method, call.path, call.body) == ("POST", "/below/v1", b"{}")
    assert (call.headers["authorization"], call.headers["connection"]) == ("Bearer k", "close")
    assert server.url.endswith(call.headers["host"])


def test_loopback_clients_have_distinct_addresses() -> None:
    with FakeServer() as server:
        for client in (0, 1, 249, 250):
            sent(server, client=client)
        assert [call.address for call in server.calls] == ["127.1.0.1", "127.1.0.2", "127.1.0.250", "127.1.1.1"]
    assert Endpoint("http://192.0.2.1", "192.0.2.1", "192.0.2.1", 80).local_address(3) is None


def chunked(call: ReceivedRequest) -> bytes:
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def test_body_is_chunked_or_ends_with_the_connection() -> None:
    with FakeServer(chunked) as server:
        assert sent(server) == HttpResponse(200, b"abcde")
    with FakeServer(lambda call: b"HTTP/1.1 200 OK\r\n\r\nabc") as server:
        assert sent(server) == HttpResponse(200, b"abc")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, CUT_OFF),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", CUT_OFF),
        (b"HTTP/1.1 200 OK\r\ncont", CUT_OFF),
        (b"good morning\r\n\r\n", NO_HTTP),
    ],
)
def test_failures_have_a_status(answer: bytes | None, status: str) -> None:
    with FakeServer(lambda call: answer) as server:
        assert sent(server).status == status


def test_refused_connection_and_timeout_have_a_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = resolve_endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert asyncio.run(send_request(place, HttpRequest("GET", "/"), 0, 0.02)).status == TIMED_OUT
    assert asyncio.run(send_request(place, HttpRequest("GET", "/"), 0, 10.0)).status == REFUSED


def test_endpoint_is_resolved_from_a_url() -> None:
    place = resolve_endpoint("http://127.0.0.1:81/below/")
    assert (place.url, place.host_header, place.port, place.path) == (
        "http://127.0.0.1:81/below",
        "127.0.0.1:81",
        81,
        "/below",
    )
    assert place.tls is None
    secure = resolve_endpoint("https://127.0.0.1")
    assert secure.port == 443
    assert secure.tls is not None


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://h:x", "http://h/?a=b"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="http://HOST:PORT"):
        resolve_endpoint(url)


def test_unknown_host_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*received: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(StillhouseError, match=r"nowhere\.example cannot be resolved: Name or service not known"):
        resolve_endpoint("http://nowhere.example")
