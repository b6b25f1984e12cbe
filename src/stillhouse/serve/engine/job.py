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
    """Jobs with equal batch keys may share a batch: same pipeline, image size in pixels and padded text length."""

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
    """Scheduling parameters of a tier.

    Args:
        name: name in the settings.
        weight: relative importance above 0. Remaining work is divided by the weight when jobs are compared.
        slo: latency target as a multiple of the isolated latency, at least 1.
    """

    name: str
    weight: float = 1.0
    slo: float = 3.0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Rows of each network evaluation of an image.

    Args:
        rows: rows of a batch per evaluation: one for each branch that guidance evaluates.
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
        """Map each number of rows, rising, to the number of evaluations from `index` on that take so many rows."""
        return self._remaining[index]


@dataclass(slots=True, eq=False)
class Job:
    """One image request in the scheduler. Only the engine changes it.

    Args:
        id: request id.
        tier: requested tier, which sets weight and latency target.
        key: API key, for fair queueing.
        batch_key: equal for jobs that may share a batch.
        step_plan: rows of each evaluation.
        resolved: the image request with its sampling plan.
        expires: time on the engine's clock after which an unstarted job expires.
        arrived: time of arrival on the engine's clock.
        isolated_seconds: predicted latency without other jobs.
        tag: start tag in the tier's `FairQueue`.
        index: completed evaluations.
        steps_skipped: consecutive engine steps without this job.
        trajectory: denoising state; None before the start.
        format: file format of the image.
        preview_steps: numbers of completed evaluations after which a preview is decoded.
        is_prompt_truncated: whether a tokenizer truncates the prompt or the negative prompt.
        started: time on the engine's clock of the first evaluation.
        last_step: time on the engine's clock at which the last evaluation ended.
        batch_peers: sum over all evaluations of the other jobs in the batch.
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
    started: float = 0.0
    last_step: float = 0.0
    batch_peers: int = 0

    @property
    def request(self) -> ImageRequest:
        """The request, with every default filled in."""
        return self.resolved.request

    @property
    def rows(self) -> int:
        """Return the rows of the next evaluation."""
        return self.step_plan.rows[self.index]

    @property
    def is_done(self) -> bool:
        """Return whether all evaluations are done."""
        return self.index == len(self.step_plan.rows)

    @property
    def latency_target(self) -> float:
        """Return the latency target in seconds, queueing included."""
        return self.tier.slo * self.isolated_seconds

    @property
    def deadline(self) -> float:
        """Return the time on the engine's clock at which the latency target is missed."""
        return self.arrived + self.latency_target

    def record_batch(self, size: int, began: float, ended: float) -> None:
        """Record that the job was in a batch.

        Args:
            size: number of jobs in the batch.
            began, ended: times on the engine's clock of the engine's step.
        """
        self.started = self.started or began
        self.last_step = ended
        self.batch_peers += size - 1


def make_batch_key(pipeline: str, resolved: Resolved) -> BatchKey:
    """Return the batch key of a request for the pipeline of that name."""
    width, height, *extra = resolved.batch_key
    return BatchKey(pipeline, width, height, tuple(extra))


def plan_steps(manifest: Manifest, resolved: Resolved) -> StepPlan:
    """Return the rows of each evaluation of a request and its number of input images."""
    return StepPlan(resolved.plan.rows, encoded_image_count(manifest, resolved.request))
