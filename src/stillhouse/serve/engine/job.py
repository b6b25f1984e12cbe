"""A job: one picture that was asked for, from its admission to its one end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stillhouse.core import ImageRequest
from stillhouse.diffusion import Trajectory
from stillhouse.pipelines.resolve import Resolved


class BatchKey(NamedTuple):
    """What jobs must share to be in one batch: the pipeline, the picture's size in pixels, and what its family adds."""

    pipeline: str
    width: int
    height: int
    extra: tuple[int, ...] = ()

    @property
    def pixels(self) -> int:
        """Of one picture."""
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Tier:
    """What a class of users is promised.

    Args:
        name: as in the settings.
        weight: above 0; an hour of a tier with weight 2 counts as half an hour of one with weight 1 where the two are
            weighed against each other.
        slo: how many times the seconds that its picture takes alone a job may take, waiting included; above 1.
    """

    name: str
    weight: float = 1.0
    slo: float = 3.0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The evaluations of a picture.

    Args:
        rows: of a batch that each evaluation takes: one for each branch of guidance, from 1.
        encoded_images: images that are encoded before the first evaluation.

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
        """Return how many evaluations from `index` on take each number of rows, by rows in rising order."""
        return self._remaining[index]


@dataclass(slots=True, eq=False)
class Job:
    """One picture that was asked for. The engine moves it, and nothing else does.

    Args:
        id: of the request.
        tier: whose promise counts.
        key: who asked; fairness is between keys.
        group: which other jobs may share its batch.
        walk: its evaluations.
        resolved: the request, and the plan of its trajectory.
        expires: if it has not begun by then, it is not begun at all; seconds on the engine's clock.
        arrived: when the engine took it.
        alone: seconds that it would take from start to end with nobody else there, as predicted on arrival.
        tag: its place in the line of its tier, see `fair.Line`.
        index: evaluations done.
        passed: ticks in a row that went to others.
        draft: the picture in the making, from its first tick on.
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

    @property
    def request(self) -> ImageRequest:
        """The request, with every default filled in."""
        return self.resolved.request

    @property
    def rows(self) -> int:
        """Rows of its next evaluation."""
        return self.step_plan.rows[self.index]

    @property
    def is_done(self) -> bool:
        """Whether every evaluation is done."""
        return self.index == len(self.step_plan.rows)

    @property
    def latency_target(self) -> float:
        """Seconds that it may take, waiting included."""
        return self.tier.slo * self.isolated_seconds

    @property
    def deadline(self) -> float:
        """By when it should end, as its tier promises."""
        return self.arrived + self.latency_target
