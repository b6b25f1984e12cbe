"""Methods: which levels a student is taught at, and what it should see there. Each is a value; none has a loop.

The loop asks a method for paths and for targets, and never which one it is.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Grid, Schedule, grid
from stillhouse.distill.rounds import Round
from stillhouse.distill.targets import Sees, Walk, along, to_edge, walk_of

_KNOWN = 0.2
"""Of the examples that an interval gets else, what one gets that the teacher crosses in one step: it knows that."""


class Method(Protocol):
    """What a student learns from.

    Args:
        walk: the levels that paths go over.
        grid: the one that the student is served with; None where it is not taught to jump.
    """

    @property
    def walk(self) -> Walk:
        """The levels that paths go over."""

    @property
    def grid(self) -> Grid | None:
        """What the student is served with; None where it learns no jumps, and may walk any grid."""

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Places of the walk for each picture of a batch: int64 [count, places]. The first is where it is shown."""

    def target(self, teacher: Sees, student: Sees, z: Tensor, paths: Tensor) -> Tensor:
        """The clean pictures that the student should see; without gradients."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """See what the guided teacher sees, at every level, in one row instead of two (Meng et al., section 3.1)."""

    schedule: Schedule
    walk: Walk = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "walk", walk_of(grid(self.schedule, self.schedule.train_steps)))

    @property
    def grid(self) -> Grid | None:
        """Any: it learns no jumps."""
        return None

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Every level as often."""
        return torch.from_numpy(rng.integers(len(self.walk.alphas) - 1, size=(count, 1)))

    def target(self, teacher: Sees, student: Sees, z: Tensor, paths: Tensor) -> Tensor:
        """What the teacher sees."""
        return teacher(z, self.walk.at(paths[:, 0]))


@dataclass(frozen=True, slots=True)
class Progressive:
    """Cross in one step what the teacher crosses in several (Salimans and Ho, arXiv 2202.00512)."""

    round: Round
    walk: Walk = field(init=False)
    _table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        places, strides = self.round.places, self.round.strides
        longest = max(strides)
        rows = [
            [min(begin + part, begin + stride) for part in range(longest + 1)]
            for begin, stride in zip(places, strides, strict=False)
        ]
        object.__setattr__(self, "walk", walk_of(self.round.teacher))
        object.__setattr__(self, "_table", torch.tensor(rows))

    @property
    def grid(self) -> Grid | None:
        """The student's."""
        return self.round.student

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """The teacher's places in an interval of the student's; intervals of one step seldom."""
        strides = np.array(self.round.strides)
        weights = np.where(strides > 1, 1.0, _KNOWN)
        return self._table[rng.choice(len(strides), size=count, p=weights / weights.sum())]

    def target(self, teacher: Sees, student: Sees, z: Tensor, paths: Tensor) -> Tensor:
        """Where the teacher comes."""
        return along(teacher, z, self.walk, paths)


@dataclass(frozen=True, slots=True)
class Consistency:
    """Jump to the edge of a phase from anywhere in it (phased consistency, arXiv 2405.18407): one run, any count.

    Args:
        round: the fine grid that the teacher walks, and the edges: the grid that the student is served with.
    """

    round: Round
    walk: Walk = field(init=False)
    _table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        edges = self.round.places
        rows = [[place, place + 1, min(edge for edge in edges if edge > place)] for place in range(edges[-1])]
        object.__setattr__(self, "walk", walk_of(self.round.teacher))
        object.__setattr__(self, "_table", torch.tensor(rows))

    @property
    def grid(self) -> Grid | None:
        """The edges."""
        return self.round.student

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """A place of the fine grid, the next one, and the edge of its phase."""
        return self._table[torch.from_numpy(rng.integers(len(self._table), size=count))]

    def target(self, teacher: Sees, student: Sees, z: Tensor, paths: Tensor) -> Tensor:
        """Where the student itself comes from the teacher's next place."""
        return to_edge(teacher, student, z, self.walk, paths)
