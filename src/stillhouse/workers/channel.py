"""Messages between a process and its worker.

A transport carries bytes. A channel carries typed messages over it: msgspec structs as MessagePack, NumPy arrays
included.
"""

import select
import socket
import struct
from contextlib import suppress
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np

Sent = TypeVar("Sent")
Received = TypeVar("Received")

_LENGTH = struct.Struct("!Q")
_SMALL_BYTES = 1 << 16
"""A message with fewer bytes is joined to the header that holds its length, so that one system call sends both."""


class TransportClosed(ConnectionError):
    """The other end of a transport is gone, or this end was closed."""


class Transport(Protocol):
    """One end of a connection that carries whole messages, in order, both ways.

    Several threads may send while one receives; any thread may close the connection.
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
        """Wait until a message has arrived or the other end is gone.

        Args:
            timeout: seconds to wait at most; 0: return at once; None: no limit.

        Returns:
            whether `receive` would return or raise without blocking; False: the timeout has passed.
        """

    def close(self) -> None:
        """Close this end. A `receive` that waits in another thread, and every later call, raises TransportClosed."""


class SocketTransport:
    """A `Transport` (connection that carries whole messages) over a connected stream socket.

    Each message is sent as its length, then its bytes.

    Args:
        connection: the socket, in blocking mode.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock, self._receive_lock = Lock(), Lock()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, content: bytes) -> None:
        """Send one message. Blocks while the other end does not receive.

        Raises:
            TransportClosed: the other end is gone.
        """
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
        """Wait for the next message and return it.

        Raises:
            TransportClosed: the other end is gone.
        """
        try:
            with self._receive_lock:
                (size,) = _LENGTH.unpack(self._read(_LENGTH.size))
                return self._read(size)
        except OSError as error:
            raise TransportClosed("the other end of the socket is gone") from error

    def wait(self, timeout: float | None) -> bool:
        """Return whether a message arrives, or the other end closes, within `timeout` seconds (None: no limit)."""
        is_closed = self._connection.fileno() < 0
        return is_closed or bool(self._poll.poll(None if timeout is None else 1000 * timeout))

    def close(self) -> None:
        """Close the socket. Calls that wait in other threads end, and these and later calls raise TransportClosed."""
        with suppress(OSError):
            # The shutdown ends the calls of other threads that wait for the socket, which close() would not do.
            self._connection.shutdown(socket.SHUT_RDWR)
        with self._send_lock, self._receive_lock:
            self._connection.close()

    def _read(self, size: int) -> bytes:
        """Wait until `size` bytes have arrived, and return them.

        Raises:
            TransportClosed: the other end is gone.
        """
        parts: list[bytes] = []
        while size:
            # With MSG_WAITALL, `recv` returns a large message in one piece. A signal may end `recv` early, so the loop
            # calls `recv` again for the remaining bytes.
            part = self._connection.recv(size, socket.MSG_WAITALL)
            if not part:
                raise TransportClosed("the other end of the socket is gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Channel(Generic[Sent, Received]):
    """One end of a connection that sends messages of one type and receives messages of another type.

    Args:
        transport: carries the encoded messages.
        received: type of the messages that are received: a struct, or a union of tagged structs.
    """

    def __init__(self, transport: Transport, received: Any) -> None:
        self.transport = transport
        self._decoder = make_decoder(received)

    def send(self, message: Sent) -> None:
        """Send a message.

        Raises:
            TransportClosed: the other end is gone.
        """
        self.transport.send(encode_message(message))

    def receive(self) -> Received:
        """Wait for the next message and return it.

        Raises:
            TransportClosed: the other end is gone.
            msgspec.ValidationError: the message has another type. Later messages can still be received.
        """
        message: Received = self._decoder.decode(self.transport.receive())
        return message


def encode_message(message: object) -> bytes:
    """Return a struct, dataclass or builtin value as MessagePack.

    Raises:
        TypeError: a part of the message has a type that messages cannot carry.
    """
    return _ENCODER.encode(message)


def make_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder of messages of type `kind`; its `decode` reads what `encode_message` returns.

    >>> make_decoder(tuple[int, str]).decode(encode_message((1, "a")))
    (1, 'a')
    """
    return msgspec.msgpack.Decoder(kind, dec_hook=_decode_array)


def _encode_array(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"a message holds a {type(value).__name__}; allowed: structs, scalars and arrays")
    return value.dtype.str, value.shape, value.tobytes()


def _decode_array(kind: object, encoded: Any) -> Any:
    dtype, shape, content = encoded
    return np.frombuffer(content, dtype).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
