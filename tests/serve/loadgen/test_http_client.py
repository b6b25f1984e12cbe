"""One exchange over HTTP: every way in which it may end."""

import asyncio
import socket

import pytest

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import (
    CUT_OFF,
    NO_HTTP,
    REFUSED,
    TIMED_OUT,
    Message,
    Place,
    Reply,
    exchange,
    place_of,
)
from tests.serve.loadgen.fake import Call, Fake, framed

FIRST = Message("GET", "/")


def sent(server: Fake, message: Message = FIRST, client: int = 0, patience: float = 10.0) -> Reply:
    return asyncio.run(exchange(place_of(server.url), message, client, patience))


def test_a_reply_is_a_status_and_a_body() -> None:
    with Fake(lambda call: framed(404, b"nothing here")) as server:
        assert sent(server) == Reply(404, b"nothing here")
    assert not Reply(404).is_good
    assert Reply(204).is_good


def test_what_is_sent_arrives() -> None:
    with Fake() as server:
        place = place_of(server.url + "/below/")
        asyncio.run(exchange(place, Message("POST", "/v1", b"{}", {"authorization": "Bearer k"}), 0, 10.0))
        (call,) = server.calls
    assert (call.method, call.path, call.body) == ("POST", "/below/v1", b"{}")
    assert (call.headers["authorization"], call.headers["connection"]) == ("Bearer k", "close")
    assert server.url.endswith(call.headers["host"])


def test_clients_of_this_machine_ask_from_addresses_of_their_own() -> None:
    with Fake() as server:
        for client in (0, 1, 249, 250):
            sent(server, client=client)
        assert [call.address for call in server.calls] == ["127.1.0.1", "127.1.0.2", "127.1.0.250", "127.1.1.1"]
    assert Place("http://192.0.2.1", "192.0.2.1", "192.0.2.1", 80).local(3) is None


def chunked(call: Call) -> bytes:
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def test_bodies_may_come_in_chunks_or_end_with_the_connection() -> None:
    with Fake(chunked) as server:
        assert sent(server) == Reply(200, b"abcde")
    with Fake(lambda call: b"HTTP/1.1 200 OK\r\n\r\nabc") as server:
        assert sent(server) == Reply(200, b"abc")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, CUT_OFF),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", CUT_OFF),
        (b"HTTP/1.1 200 OK\r\ncont", CUT_OFF),
        (b"good morning\r\n\r\n", NO_HTTP),
    ],
)
def test_whatever_goes_wrong_has_a_name(answer: bytes | None, status: str) -> None:
    with Fake(lambda call: answer) as server:
        assert sent(server).status == status


def test_nobody_there_and_nobody_who_answers_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = place_of(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert asyncio.run(exchange(place, Message("GET", "/"), 0, 0.02)).status == TIMED_OUT
    assert asyncio.run(exchange(place, Message("GET", "/"), 0, 10.0)).status == REFUSED


def test_a_place_is_read_out_of_a_url() -> None:
    place = place_of("http://127.0.0.1:81/below/")
    assert (place.url, place.name, place.port, place.path) == (
        "http://127.0.0.1:81/below",
        "127.0.0.1:81",
        81,
        "/below",
    )
    assert place.tls is None
    secure = place_of("https://127.0.0.1")
    assert secure.port == 443
    assert secure.tls is not None


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://h:x", "http://h/?a=b"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="http://HOST:PORT"):
        place_of(url)


def test_a_host_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*asked: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(StillhouseError, match=r"nowhere\.example: Name or service not known"):
        place_of("http://nowhere.example")
