"""Everything that a server and its workers say to each other."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from stillhouse.core import ImageRequest
from stillhouse.images.formats import Format
from stillhouse.serve.engine.cost import Curve
from stillhouse.serve.engine.engine import Outcome
from stillhouse.serve.engine.job import Group, Tier


class Opening(msgspec.Struct, frozen=True):
    """The first thing that a worker is told.

    Args:
        pipelines: directories by name.
        policy: a name out of `policy.POLICIES`.
        memory: bytes for all open pipelines together.
        backend, precision, threads: as in `stillhouse.load`.
        cache: directory of compiled networks.
        curves: what is known already of what pictures cost; where there is nothing, it is measured.
        device: the only GPU that the process sees, as CUDA_VISIBLE_DEVICES names it; None, whatever there is.
    """

    pipelines: dict[str, str]
    policy: str
    memory: int
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    cache: str | None = None
    curves: list[tuple[Group, Curve]] = []
    device: str | None = None


class Draw(msgspec.Struct, frozen=True, tag=True):
    """Draw this picture.

    Args:
        id: of the job.
        tier, key: whose it is.
        pipeline: by name.
        request: resolved.
        expires: `time.monotonic` after which it is not begun; None, never.
        format: of the picture that is sent back.
        previews: so many on the way.
    """

    id: str
    tier: Tier
    key: str
    pipeline: str
    request: ImageRequest
    expires: float | None = None
    format: Format = "png"
    previews: int = 0


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Draw that job no further."""

    id: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Everything is open and measured."""

    curves: list[tuple[Group, Curve]]


class Broken(msgspec.Struct, frozen=True, tag=True):
    """A pipeline cannot be opened; the worker ends."""

    error: str


class Moved(msgspec.Struct, frozen=True):
    """One tick: whose pictures moved by one evaluation, how long that took, and the pace of their group since."""

    jobs: list[str]
    group: Group
    rows: int
    seconds: float
    pace: float


class Ticked(msgspec.Struct, frozen=True, tag=True):
    """What the latest ticks moved, in their order. Several are told at once: each message wakes the server, which takes
    a core from the runtime."""

    moves: list[Moved]


class Preview(msgspec.Struct, frozen=True, tag=True):
    """What a picture looks like after so many evaluations."""

    id: str
    index: int
    content: bytes


class Closed(msgspec.Struct, frozen=True):
    """The one end of a job.

    Args:
        outcome: as in `engine.Outcome`.
        content: of a drawn one, the picture as asked for.
        error, fault: of a failed one, what is told, and the name of the error; faults of the server's own are
            `WorkerDied` and `Drained`.
        way: where in the worker it failed, for the log; see `way.way_to`.
        waited, denoised, finished: seconds before its first tick, from there to its last, and for decoding.
        peers: how many other pictures were in its batches, in the mean.
        is_cut: whether its prompt was longer than the model reads, so that its end had no effect.
    """

    outcome: Outcome
    content: bytes = b""
    error: str = ""
    fault: str = ""
    way: str = ""
    waited: float = 0.0
    denoised: float = 0.0
    finished: float = 0.0
    peers: float = 0.0
    is_cut: bool = False


class Ended(msgspec.Struct, frozen=True, tag=True):
    """That job has ended."""

    id: str
    closed: Closed


Asked: TypeAlias = Draw | Cancel
Told: TypeAlias = Ready | Broken | Ticked | Preview | Ended


def encode(message: Opening | Asked | Told) -> bytes:
    """A message as bytes."""
    return _ENCODER.encode(message)


def decode_opening(content: bytes) -> Opening:
    """The first message to a worker."""
    return msgspec.msgpack.decode(content, type=Opening)


def decode_asked(content: bytes) -> Asked:
    """A message to a worker."""
    asked: Asked = _ASKED.decode(content)
    return asked


def decode_told(content: bytes) -> Told:
    """A message from a worker."""
    told: Told = _TOLD.decode(content)
    return told


def _plain(array: object) -> tuple[str, Sequence[int], bytes]:
    if not isinstance(array, np.ndarray):
        raise NotImplementedError(f"{type(array).__name__} in a message")
    return array.dtype.str, array.shape, array.tobytes()


def _array(kind: object, plain: Any) -> Any:
    name, shape, content = plain
    return np.frombuffer(content, name).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_ASKED = msgspec.msgpack.Decoder(Asked, dec_hook=_array)
_TOLD = msgspec.msgpack.Decoder(Told, dec_hook=_array)
