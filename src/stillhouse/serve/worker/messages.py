"""Messages between a server and its workers.

A message holds no clock and no identifier that only one host understands; directories are hints for the worker's host.
"""

from typing import TypeAlias

import msgspec

from stillhouse.images.formats import Format
from stillhouse.pipelines.resolve import Resolved
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.engine import FinishReason
from stillhouse.serve.engine.job import BatchKey, Tier
from stillhouse.serve.worker.locate_pipeline import PipelineReference


class WorkerConfig(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker.

    Args:
        pipelines: the pipelines to serve, by the name that `Submit` and batch keys use.
        policy: scheduling policy, a name out of `policy.POLICIES`.
        memory: bytes that all open pipelines may use together.
        backend, precision, threads: as in `stillhouse.load`.
        cache: directory of compiled networks on the worker's host.
        curves: measured latencies by batch key; empty, the worker measures them.
        device: the only GPU that the worker sees, as in CUDA_VISIBLE_DEVICES; None, all of them.
    """

    pipelines: dict[str, PipelineReference]
    policy: str
    memory: int
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    cache: str | None = None
    curves: list[tuple[BatchKey, LatencyCurve]] = []
    device: str | None = None


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Generate a picture.

    Args:
        id: of the request.
        tier: service tier of the client.
        key: API key of the client; shares of the device are fair between keys.
        pipeline: name in `WorkerConfig.pipelines`.
        resolved: the request with its plan, which the worker does not compute again.
        expires_in: seconds after which the request is not started any more; None, it never expires.
        format: file format of the picture.
        previews: number of previews to send.
    """

    id: str
    tier: Tier
    key: str
    pipeline: str
    resolved: Resolved
    expires_in: float | None = None
    format: Format = "png"
    previews: int = 0


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Cancel a request."""

    id: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker's pipelines are open, and their latencies are measured."""

    curves: list[tuple[BatchKey, LatencyCurve]]


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    """A pipeline cannot be opened; the worker ends."""

    error: str


class StepStats(msgspec.Struct, frozen=True):
    """One step of the engine.

    Args:
        jobs: ids of the requests that were advanced by one evaluation.
        batch_key: of the batch.
        rows: of the batch.
        seconds: of the step.
        slowdown: how many times slower than its curve the batch key is now.
    """

    jobs: list[str]
    batch_key: BatchKey
    rows: int
    seconds: float
    slowdown: float


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """The steps since the last report, in order. One message for several steps: each message wakes the server, which
    takes processor time from the runtime."""

    steps: list[StepStats]


class Preview(msgspec.Struct, frozen=True, tag=True):
    """A preview of a picture after `index` evaluations, as an image file."""

    id: str
    index: int
    content: bytes


class RequestOutput(msgspec.Struct, frozen=True):
    """The end of a request.

    Args:
        finish_reason: see `engine.FinishReason`.
        content: the picture as a file, where the request is finished.
        error, error_type: message and class name of the error, where the request failed; `WorkerDied` and
            `ServerShutdown` are errors of the server.
        traceback_summary: where in the worker the error was raised, for the log.
        queue_seconds, denoise_seconds, decode_seconds: seconds before the first step, to the last one, and after it.
        batch_peers: mean number of other pictures in its batches.
        is_prompt_truncated: whether a prompt was longer than the model reads.
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
    """A request has ended."""

    id: str
    output: RequestOutput


Command: TypeAlias = Submit | Cancel
Event: TypeAlias = Ready | WorkerFailed | StepReport | Preview | OutputEvent
