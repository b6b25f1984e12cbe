"""Methods: which levels a student is taught at, and what it should see there. Each is a value; none has a loop.

The loop asks a method for paths and for targets, and never which one it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.diffusion import Schedule, make_grid
from stillhouse.distill.training.step_grids import Round
from stillhouse.distill.training.targets import Sees, Walk, along, joined, to_edge, walk_of

_KNOWN = 0.2
"""Of the examples that an interval gets else, what one gets that the teacher crosses in one step: it knows that."""


class Method(Protocol):
    """What a student learns from."""

    @property
    def walk(self) -> Walk:
        """The levels that paths go over."""

    @property
    def round(self) -> Round | None:
        """From pure noise: what the student is served with, and what its teacher walks; None where it learns no jumps,
        and may walk any grid."""

    @property
    def edits(self) -> Mapping[float, Round]:
        """The same for pictures that begin from another one, by strength."""

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
        object.__setattr__(self, "walk", walk_of(make_grid(self.schedule, self.schedule.train_steps)))

    @property
    def round(self) -> Round | None:
        """None: it learns no jumps."""
        return None

    @property
    def edits(self) -> Mapping[float, Round]:
        """None, for the same reason."""
        return {}

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Every level as often."""
        return torch.from_numpy(rng.integers(len(self.walk.alphas) - 1, size=(count, 1)))

    def target(self, teacher: Sees, student: Sees, z: Tensor, paths: Tensor) -> Tensor:
        """What the teacher sees."""
        return teacher(z, self.walk.at(paths[:, 0]))


@dataclass(frozen=True, slots=True)
class Progressive:
    """Cross in one step what the teacher crosses in several (Salimans and Ho, arXiv 2202.00512).

    Args:
        round: the grids of both, from pure noise.
        edits: the same by strength, for pictures that begin from another one. A student is told the level only, so no
            level of theirs may be among the others'.
    """

    round: Round
    edits: Mapping[float, Round] = field(default_factory=dict)
    walk: Walk = field(init=False)
    _table: Tensor = field(init=False)
    _weights: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        rounds = [self.round, *self.edits.values()]
        longest = max(stride for one in rounds for stride in one.strides)
        rows: list[list[int]] = []
        begun = 0
        for one in rounds:
            for begin, stride in zip(one.places, one.strides, strict=False):
                rows.append([begun + begin + min(part, stride) for part in range(longest + 1)])
            begun += len(one.teacher.levels)
        weights = np.array([1.0 if stride > 1 else _KNOWN for one in rounds for stride in one.strides])
        object.__setattr__(self, "walk", joined([walk_of(one.teacher) for one in rounds]))
        object.__setattr__(self, "_table", torch.tensor(rows))
        object.__setattr__(self, "_weights", weights / weights.sum())

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """The teacher's places in an interval of the student's; intervals of one step seldom."""
        return self._table[rng.choice(len(self._table), size=count, p=self._weights)]

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
    def edits(self) -> Mapping[float, Round]:
        """None: a phase's edge cannot be told from the level."""
        return {}

    def paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """A place of the fine grid, the next one, and the edge of its phase."""
        return self._table[torch.from_numpy(rng.integers(len(self._table), size=count))]

    def target(self, teacher: Sees, student: Sees, z: Tensor, paths: Tensor) -> Tensor:
        """Where the student itself comes from the teacher's next place."""
        return to_edge(teacher, student, z, self.walk, paths)
