"""Messages between a server and its workers.

Server and worker may run on different hosts. A message therefore holds no points in time, because clocks differ, and
nothing that is valid on one host only, except directories on the worker's host.
"""

from typing import TypeAlias

import msgspec

from stillhouse.images.files import Format
from stillhouse.pipelines.resolve import Resolved
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier
from stillhouse.serve.engine.output import PreviewImage, RequestOutput
from stillhouse.serve.worker.locate_pipeline import PipelineReference


class WorkerConfig(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker: which pipelines it serves, and how.

    Args:
        pipelines: the pipelines to serve, by the name that `Submit` and batch keys use.
        policy: name of the scheduling policy, a key of `policy.POLICIES`.
        memory: bytes of memory that the process may use before it unloads pipelines.
        backend, precision, threads: backend of every network, compute precision of the denoiser, and maximum number of
            threads of each network; None: as in the pipeline's manifest.
        cache: directory of compiled networks on the worker's host; None: the default of each backend.
        curves: measured latencies by batch key; empty: the worker measures them.
        device: the only GPU that the worker sees, as in CUDA_VISIBLE_DEVICES; None: all GPUs.
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
    """The server's command to generate a picture.

    Args:
        id: request id.
        tier: service tier of the client, which sets weight and latency target.
        key: API key of the client; the device is shared fairly between keys.
        batch_key: equal for jobs that may share a batch; its pipeline is a name in `WorkerConfig.pipelines`.
        step_plan: number of batch rows of each network evaluation.
        resolved: the request with every default filled in, and its sampling plan.
        expires_in: seconds after which the request is not started any more; None: it never expires.
        format: file format of the picture.
        previews: number of previews to send, evenly spread over the evaluations.
        is_alone: whether no other picture may be in progress meanwhile.
    """

    id: str
    tier: Tier
    key: str
    batch_key: BatchKey
    step_plan: StepPlan
    resolved: Resolved
    expires_in: float | None = None
    format: Format = "png"
    previews: int = 0
    is_alone: bool = False


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The server's command to cancel the request with this id."""

    id: str


class Opening(msgspec.Struct, frozen=True, tag=True):
    """The worker's event, sent about once a second, that it lives while it opens and measures pipelines."""


class Begun(msgspec.Struct, frozen=True, tag=True):
    """The worker's event that it begins the picture of the request with this id, sent before anything is computed."""

    id: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker's event that it can take requests, with the latency curves of its pipelines by batch key."""

    curves: list[tuple[BatchKey, LatencyCurve]]


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    """The worker's event that a pipeline cannot be opened, with the error's message; the worker ends after it."""

    error: str


class StepStats(msgspec.Struct, frozen=True):
    """One step of a worker's engine: one network evaluation of one batch.

    Args:
        jobs: ids of the requests that were advanced by one evaluation.
        batch_key: batch key of the batch.
        rows: number of rows of the batch.
        seconds: duration of the step.
        slowdown: current ratio of observed seconds per evaluation to the seconds of the batch key's curve.
    """

    jobs: list[str]
    batch_key: BatchKey
    rows: int
    seconds: float
    slowdown: float


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """The worker's event that lists the engine's steps since the last report, in order.

    Several steps share a message, because each message wakes the server and so takes processor time from the networks.
    """

    steps: list[StepStats]


Command: TypeAlias = Submit | Cancel
Event: TypeAlias = Opening | Ready | WorkerFailed | Begun | StepReport | PreviewImage | RequestOutput
