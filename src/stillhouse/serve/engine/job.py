"""Jobs: the scheduler's view of one image request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stillhouse.core import ImageRequest
from stillhouse.diffusion import Trajectory
from stillhouse.images.files import Format
from stillhouse.pipelines.manifest import Manifest
from stillhouse.pipelines.resolve import Resolved, encoded_image_count


class BatchKey(NamedTuple):
    """What jobs must have in common to share a batch: pipeline, image size in pixels, and padded text length.

    Args:
        pipeline: name of the pipeline.
        width, height: size of the image in pixels.
        extra: further numbers that must be equal for the pipeline's model family, such as the padded text length.
    """

    pipeline: str
    width: int
    height: int
    extra: tuple[int, ...] = ()

    @property
    def pixels(self) -> int:
        """Return the number of pixels of one image."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Tier:
    """A service tier: how important its jobs are, and how soon they should finish.

    Args:
        name: name of the tier in the server's settings.
        weight: relative importance above 0. Remaining work is divided by the weight when jobs are compared.
        slo: latency target as a multiple of the isolated latency (the latency without other jobs), at least 1.
    """

    name: str
    weight: float = 1.0
    slo: float = 3.0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The number of batch rows that each network evaluation of an image takes.

    Args:
        rows: number of rows of each evaluation, in order: one for each guidance branch that is evaluated.
        encoded_images: number of input images that are encoded before the first evaluation.

    >>> StepPlan((2, 2, 1)).remaining(1)
    {1: 1, 2: 1}
    """

    rows: tuple[int, ...]
    encoded_images: int = 0
    _remaining: tuple[dict[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        remaining = [dict[int, int]()]
        for rows in self.rows[::-1]:
            counts = {**remaining[-1], rows: remaining[-1].get(rows, 0) + 1}
            remaining.append(dict(sorted(counts.items())))
        object.__setattr__(self, "_remaining", tuple(remaining[::-1]))

    def remaining(self, index: int) -> Mapping[int, int]:
        """Count the evaluations from `index` (from 0) to the last by the batch rows that they take.

        The result maps each number of rows to the number of evaluations that take it.
        """
        return self._remaining[index]


@dataclass(slots=True, eq=False)
class Job:
    """One image request in the scheduler, and the state of its generation.

    Args:
        id: request id.
        tier: service tier, which sets weight and latency target.
        key: API key of the client; the device is shared fairly between keys.
        batch_key: equal for jobs that may share a batch.
        step_plan: number of batch rows of each evaluation.
        resolved: the image request with its sampling plan.
        expires: time on the engine's clock after which a job that has not started is removed, with the result
            "expired".
        arrived: time of arrival on the engine's clock.
        isolated_seconds: predicted latency without other jobs.
        tag: start tag of fair queueing between API keys, in seconds of work; see `FairQueue`.
        index: number of completed evaluations.
        steps_skipped: number of engine steps since the job was last in a batch.
        trajectory: denoising state; None before the start.
        format: file format of the image.
        preview_steps: numbers of completed evaluations after which a preview is decoded.
        is_prompt_truncated: whether a tokenizer truncates the prompt or the negative prompt.
        is_alone: whether no other job may be in progress meanwhile, because a worker died while this one was.
        started: time on the engine's clock at which the step of the first evaluation began.
        last_step: time on the engine's clock at which the last evaluation ended.
        batch_peers: number of other jobs in the job's batches, summed over all evaluations.
    """

    id: str
    tier: Tier
    key: str
    batch_key: BatchKey
    step_plan: StepPlan
    resolved: Resolved
    expires: float = float("inf")
    arrived: float = 0.0
    isolated_seconds: float = 0.0
    tag: float = 0.0
    index: int = 0
    steps_skipped: int = 0
    trajectory: Trajectory | None = None
    format: Format = "png"
    preview_steps: frozenset[int] = frozenset()
    is_prompt_truncated: bool = False
    is_alone: bool = False
    started: float = 0.0
    last_step: float = 0.0
    batch_peers: int = 0

    @property
    def request(self) -> ImageRequest:
        """Return the image request with every default filled in."""
        return self.resolved.request

    @property
    def rows(self) -> int:
        """Return the number of batch rows that the next evaluation takes."""
        return self.step_plan.rows[self.index]

    @property
    def is_done(self) -> bool:
        """Return whether all evaluations are done."""
        return self.index == len(self.step_plan.rows)

    @property
    def latency_target(self) -> float:
        """Return the latency, in seconds from the job's arrival, that the job should not exceed."""
        return self.tier.slo * self.isolated_seconds

    @property
    def deadline(self) -> float:
        """Return the time on the engine's clock until which the job must finish to meet its latency target."""
        return self.arrived + self.latency_target

    def record_batch(self, size: int, began: float, ended: float) -> None:
        """Update `started`, `last_step` and `batch_peers` after an engine step whose batch contained the job.

        Args:
            size: number of jobs in the batch.
            began, ended: times on the engine's clock at which the step began and ended.
        """
        self.started = self.started or began
        self.last_step = ended
        self.batch_peers += size - 1


def make_batch_key(pipeline: str, resolved: Resolved) -> BatchKey:
    """Return the batch key of a request: pipeline, image size and padded text length.

    Args:
        pipeline: name of the pipeline.
        resolved: the request with all defaults filled in.
    """
    width, height, *extra = resolved.batch_key
    return BatchKey(pipeline, width, height, tuple(extra))


def plan_steps(manifest: Manifest, resolved: Resolved) -> StepPlan:
    """Return the step plan of a request: batch rows of each evaluation, and number of images to encode.

    Args:
        manifest: manifest of the pipeline.
        resolved: the request with all defaults filled in.
    """
    return StepPlan(resolved.plan.rows, encoded_image_count(manifest, resolved.request))
