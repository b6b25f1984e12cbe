"""Messages: what is sent is what is received, arrays included; anything else is refused."""

import socket
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stillhouse.workers.channel import Channel, SocketTransport, encode_message, make_decoder


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A dataclass with an array that may be missing."""

    pixels: NDArray[Any] | None = None


class Show(msgspec.Struct, frozen=True, tag=True):
    """A command."""

    picture: Picture
    scale: float = 1.0


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Another command."""


@given(npst.arrays(npst.integer_dtypes() | npst.floating_dtypes(), npst.array_shapes(min_dims=0, min_side=0)))
def test_arrays_arrive_as_they_were(array: NDArray[Any]) -> None:
    pixels = make_decoder(Picture).decode(encode_message(Picture(array))).pixels
    assert (pixels.dtype, pixels.shape, pixels.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert make_decoder(Picture).decode(encode_message(Picture())).pixels is None


@given(st.floats(allow_nan=False, width=32))
def test_scalars_of_numpy_are_numbers(value: float) -> None:
    assert make_decoder(Show).decode(encode_message(Show(Picture(), np.float32(value)))).scale == value  # type: ignore[arg-type]


def test_a_type_that_messages_do_not_carry_is_named() -> None:
    with pytest.raises(NotImplementedError, match="a message holds a tuple_iterator"):
        encode_message({"a": iter(())})


def test_a_channel_receives_the_messages_of_its_type_and_goes_on_after_others() -> None:
    ends = [SocketTransport(end) for end in socket.socketpair()]
    ours = Channel[Any, Show | Stop](ends[0], Show | Stop)
    theirs = Channel[Show | Stop, Any](ends[1], int)
    theirs.send(Stop())
    assert ours.receive() == Stop()
    theirs.transport.send(encode_message({"type": "Leave"}))
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'Leave'"):
        ours.receive()
    theirs.send(Show(Picture(), 2.0))
    message = ours.receive()
    assert isinstance(message, Show) and message.scale == 2.0
    ours.send(7)
    assert theirs.receive() == 7
    for end in ends:
        end.close()
