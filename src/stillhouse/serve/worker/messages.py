"""Everything that a server and its workers say to each other."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from stillhouse.images.formats import Format
from stillhouse.pipelines.resolve import Resolved
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.engine import FinishReason
from stillhouse.serve.engine.job import BatchKey, Tier


class WorkerConfig(msgspec.Struct, frozen=True):
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
    curves: list[tuple[BatchKey, LatencyCurve]] = []
    device: str | None = None


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Draw this picture.

    Args:
        id: of the job.
        tier, key: whose it is.
        pipeline: by name.
        resolved: the request with its plan, which is not computed again.
        expires: `time.monotonic` after which it is not begun; None, never.
        format: of the picture that is sent back.
        previews: so many on the way.
    """

    id: str
    tier: Tier
    key: str
    pipeline: str
    resolved: Resolved
    expires: float | None = None
    format: Format = "png"
    previews: int = 0


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Draw that job no further."""

    id: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Everything is open and measured."""

    curves: list[tuple[BatchKey, LatencyCurve]]


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    """A pipeline cannot be opened; the worker ends."""

    error: str


class StepStats(msgspec.Struct, frozen=True):
    """One tick: whose pictures moved by one evaluation, how long that took, and the pace of their group since."""

    jobs: list[str]
    batch_key: BatchKey
    rows: int
    seconds: float
    slowdown: float


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """What the latest ticks moved, in their order. Several are told at once: each message wakes the server, which takes
    a core from the runtime."""

    steps: list[StepStats]


class Preview(msgspec.Struct, frozen=True, tag=True):
    """What a picture looks like after so many evaluations."""

    id: str
    index: int
    content: bytes


class RequestOutput(msgspec.Struct, frozen=True):
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

    finish_reason: FinishReason
    content: bytes = b""
    error: str = ""
    error_type: str = ""
    traceback_summary: str = ""
    queue_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    batch_peers: float = 0.0
    is_prompt_truncated: bool = False


class OutputEvent(msgspec.Struct, frozen=True, tag=True):
    """That job has ended."""

    id: str
    output: RequestOutput


Command: TypeAlias = Submit | Cancel
Event: TypeAlias = Ready | WorkerFailed | StepReport | Preview | OutputEvent


def encode_message(message: WorkerConfig | Command | Event) -> bytes:
    """A message as bytes."""
    return _ENCODER.encode(message)


def decode_config(content: bytes) -> WorkerConfig:
    """The first message to a worker."""
    return msgspec.msgpack.decode(content, type=WorkerConfig)


def decode_command(content: bytes) -> Command:
    """A message to a worker."""
    asked: Command = _COMMANDS.decode(content)
    return asked


def decode_event(content: bytes) -> Event:
    """A message from a worker."""
    told: Event = _EVENTS.decode(content)
    return told


def _encode_array(array: object) -> tuple[str, Sequence[int], bytes]:
    if not isinstance(array, np.ndarray):
        raise NotImplementedError(f"{type(array).__name__} in a message")
    return array.dtype.str, array.shape, array.tobytes()


def _decode_array(kind: object, encoded: Any) -> Any:
    name, shape, content = encoded
    return np.frombuffer(content, name).reshape(shape)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_COMMANDS = msgspec.msgpack.Decoder(Command, dec_hook=_decode_array)
_EVENTS = msgspec.msgpack.Decoder(Event, dec_hook=_decode_array)
