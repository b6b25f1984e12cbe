"""Messages between a server and its workers.

A message holds no time of a clock and no identifier that is valid on one host only, except directories, which say where
the worker's host may find files.
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
        id: request id.
        tier: service tier of the client.
        key: API key of the client; shares of the device are fair between keys.
        batch_key: equal for jobs that may share a batch; its pipeline is a name in `WorkerConfig.pipelines`.
        step_plan: rows of each evaluation.
        resolved: the request with its plan; the worker does not resolve or plan it again.
        expires_in: seconds after which the request is not started any more; None, it never expires.
        format: file format of the picture.
        previews: number of previews to send.
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
    """The steps since the last report, in order.

    Several steps share a message, because each message wakes the server, which takes processor time from the runtime.
    """

    steps: list[StepStats]


Command: TypeAlias = Submit | Cancel
Event: TypeAlias = Ready | WorkerFailed | StepReport | PreviewImage | RequestOutput
