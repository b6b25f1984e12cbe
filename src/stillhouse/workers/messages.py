"""Typed messages over a transport: msgspec structs as MessagePack, NumPy arrays included."""

from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from stillhouse.workers.transport import Transport

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Channel(Generic[Sent, Received]):
    """One end of a transport that sends messages of one type and receives messages of another.

    Args:
        transport: carries the messages.
        received: type of the messages that are received: a struct, or a union of tagged structs.
    """

    def __init__(self, transport: Transport, received: Any) -> None:
        self.transport = transport
        self._decoder = make_decoder(received)

    def send(self, message: Sent) -> None:
        """Send a message. Raises TransportClosed where the other end is gone."""
        self.transport.send(encode_message(message))

    def receive(self) -> Received:
        """Wait for the next message and return it.

        Raises:
            TransportClosed: the other end is gone.
            msgspec.ValidationError: the message has another type; the next message can be received.
        """
        message: Received = self._decoder.decode(self.transport.receive())
        return message


def encode_message(message: object) -> bytes:
    """Return a struct, dataclass or builtin value as MessagePack.

    Raises:
        TypeError: a part of the message is of a type that messages do not carry.
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
