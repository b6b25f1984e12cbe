"""Transports: whole messages in order, and a closed end that both sides notice."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.workers.channel import SocketTransport, TransportClosed


@contextmanager
def make_pair() -> Iterator[tuple[SocketTransport, SocketTransport]]:
    parent, child = (SocketTransport(end) for end in socket.socketpair())
    yield parent, child
    parent.close()
    child.close()


@pytest.fixture
def pair() -> Iterator[tuple[SocketTransport, SocketTransport]]:
    with make_pair() as ends:
        yield ends


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_messages_arrive_whole_and_in_order(contents: list[bytes]) -> None:
    with make_pair() as (parent, child):
        for content in contents:
            parent.send(content)
        assert [child.receive() for _ in contents] == contents
        assert not child.wait(0)


def test_a_message_larger_than_the_buffers_arrives(pair: tuple[SocketTransport, SocketTransport]) -> None:
    parent, child = pair
    content = bytes(range(256)) * (1 << 16)
    sender = Thread(target=parent.send, args=(content,))
    sender.start()
    assert child.wait(None) and child.receive() == content
    sender.join()


def test_messages_sent_before_the_end_was_closed_arrive(pair: tuple[SocketTransport, SocketTransport]) -> None:
    parent, child = pair
    parent.send(b"last")
    parent.close()
    assert child.wait(1.0) and child.receive() == b"last"
    assert child.wait(1.0), "the end is gone, which receive reports"
    with pytest.raises(TransportClosed):
        child.receive()
    with pytest.raises(TransportClosed):
        child.send(b"too late")


def test_a_closed_end_refuses_every_call_and_can_be_closed_twice(pair: tuple[SocketTransport, SocketTransport]) -> None:
    parent, _ = pair
    parent.close()
    parent.close()
    assert parent.wait(None)
    for call in (parent.receive, lambda: parent.send(b"")):
        with pytest.raises(TransportClosed):
            call()


def test_closing_ends_a_receive_in_another_thread(pair: tuple[SocketTransport, SocketTransport]) -> None:
    parent, _ = pair
    raised: list[BaseException] = []

    def receive() -> None:
        try:
            parent.receive()
        except TransportClosed as error:
            raised.append(error)

    receiver = Thread(target=receive)
    receiver.start()
    parent.close()
    receiver.join(10.0)
    assert not receiver.is_alive() and len(raised) == 1
