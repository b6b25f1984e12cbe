"""Transports: how messages, as bytes, travel between a process and its worker."""

import select
import socket
import struct
from contextlib import suppress
from threading import Lock
from typing import Protocol

_LENGTH = struct.Struct("!Q")
_SMALL_BYTES = 1 << 16
"""Bytes up to which a message is copied to be sent with its length in one call."""


class TransportClosed(ConnectionError):
    """The other end of a transport is gone, or this end was closed."""


class Transport(Protocol):
    """One end of a connection that carries whole messages, in order, both ways.

    Several threads may send while one receives; any thread may close it.
    """

    def send(self, content: bytes) -> None:
        """Send one message. Blocks while the other end does not receive.

        Raises:
            TransportClosed: the other end is gone.
        """

    def receive(self) -> bytes:
        """Wait for the next message and return it.

        Raises:
            TransportClosed: the other end is gone and every message was received.
        """

    def wait(self, timeout: float | None) -> bool:
        """Wait until `receive` would not block.

        Args:
            timeout: seconds, 0 returns at once; None, for ever.

        Returns:
            whether there is a message, or the other end is gone.
        """

    def close(self) -> None:
        """Close this end. A `receive` that waits in another thread, and every later call, raises TransportClosed."""


class SocketTransport:
    """A `Transport` over a connected stream socket; each message follows its length.

    Args:
        connection: the socket, which blocks.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock, self._receive_lock = Lock(), Lock()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, content: bytes) -> None:
        """Send one message; see `Transport`."""
        header = _LENGTH.pack(len(content))
        try:
            with self._send_lock:
                if len(content) < _SMALL_BYTES:
                    self._connection.sendall(header + content)
                else:
                    self._connection.sendall(header)
                    self._connection.sendall(content)
        except OSError as error:
            raise TransportClosed("the other end of the socket is gone") from error

    def receive(self) -> bytes:
        """Return the next message; see `Transport`."""
        try:
            with self._receive_lock:
                (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
                return self._read(size)
        except OSError as error:
            raise TransportClosed("the other end of the socket is gone") from error

    def wait(self, timeout: float | None) -> bool:
        """Wait for a message; see `Transport`."""
        is_closed = self._connection.fileno() < 0
        return is_closed or bool(self._poll.poll(None if timeout is None else 1000 * timeout))

    def close(self) -> None:
        """Close the socket; see `Transport`."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # ends calls of other threads, which closing alone does not
        with self._send_lock, self._receive_lock:
            self._connection.close()

    def _read(self, size: int) -> bytes:
        """Wait for `size` bytes and return them."""
        parts: list[bytes] = []
        while size:
            # MSG_WAITALL reads a large message into one piece of memory; a signal may end it early.
            part = self._connection.recv(size, socket.MSG_WAITALL)
            if not part:
                raise TransportClosed("the other end of the socket is gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
