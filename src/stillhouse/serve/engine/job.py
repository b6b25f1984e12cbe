"""A job: one picture that was asked for, from its admission to its one end."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stillhouse.core import ImageRequest
from stillhouse.diffusion import Trajectory


class Group(NamedTuple):
    """What jobs must share to be in one batch: the pipeline, and the size of the picture in pixels."""

    pipeline: str
    width: int
    height: int

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
class Walk:
    """The evaluations of a picture.

    Args:
        rows: of each: 2 where it is guided, 1 where not.
        pictures: how many are encoded before the first: what an edit begins with.

    >>> Walk((2, 2, 1)).left(1)
    (1, 1)
    """

    rows: tuple[int, ...]
    pictures: int = 0
    _pairs: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = [0]
        for rows in self.rows[::-1]:
            pairs.append(pairs[-1] + (rows > 1))
        object.__setattr__(self, "_pairs", tuple(pairs[::-1]))

    def left(self, index: int) -> tuple[int, int]:
        """Evaluations from `index` on that take one row, and those that take two."""
        pairs = self._pairs[index]
        return len(self.rows) - index - pairs, pairs


@dataclass(slots=True, eq=False)
class Job:
    """One picture that was asked for. The engine moves it, and nothing else does.

    Args:
        id: of the request.
        tier: whose promise counts.
        key: who asked; fairness is between keys.
        group: which other jobs may share its batch.
        walk: its evaluations.
        request: what was asked for, with every default filled in.
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
    group: Group
    walk: Walk
    request: ImageRequest
    expires: float = float("inf")
    arrived: float = 0.0
    alone: float = 0.0
    tag: float = 0.0
    index: int = 0
    passed: int = 0
    draft: Trajectory | None = None

    @property
    def rows(self) -> int:
        """Rows of its next evaluation."""
        return self.walk.rows[self.index]

    @property
    def is_done(self) -> bool:
        """Whether every evaluation is done."""
        return self.index == len(self.walk.rows)

    @property
    def promise(self) -> float:
        """Seconds that it may take, waiting included."""
        return self.tier.slo * self.alone

    @property
    def deadline(self) -> float:
        """By when it should end, as its tier promises."""
        return self.arrived + self.promise
