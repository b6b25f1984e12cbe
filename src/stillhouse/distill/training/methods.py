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
from stillhouse.distill.training.step_grids import GridPair
from stillhouse.distill.training.targets import (
    DenoiseFn,
    LevelTable,
    concat_level_tables,
    consistency_target,
    make_level_table,
    progressive_target,
)

_TRIVIAL_WEIGHT = 0.2
"""Of the examples that an interval gets else, what one gets that the teacher crosses in one step: it knows that."""


class DistillationMethod(Protocol):
    """What a student learns from."""

    @property
    def level_table(self) -> LevelTable:
        """The levels that paths go over."""

    @property
    def grid_pair(self) -> GridPair | None:
        """From pure noise: what the student is served with, and what its teacher walks; None where it learns no jumps,
        and may walk any grid."""

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """The same for pictures that begin from another one, by strength."""

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Places of the walk for each picture of a batch: int64 [count, places]. The first is where it is shown."""

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """The clean pictures that the student should see; without gradients."""


@dataclass(frozen=True, slots=True)
class GuidanceDistillation:
    """See what the guided teacher sees, at every level, in one row instead of two (Meng et al., section 3.1)."""

    schedule: Schedule
    level_table: LevelTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "walk", make_level_table(make_grid(self.schedule, self.schedule.train_steps)))

    @property
    def grid_pair(self) -> GridPair | None:
        """None: it learns no jumps."""
        return None

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """None, for the same reason."""
        return {}

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Every level as often."""
        return torch.from_numpy(rng.integers(len(self.level_table.alphas) - 1, size=(count, 1)))

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """What the teacher sees."""
        return teacher(z, self.level_table.at(paths[:, 0]))


@dataclass(frozen=True, slots=True)
class ProgressiveDistillation:
    """Cross in one step what the teacher crosses in several (Salimans and Ho, arXiv 2202.00512).

    Args:
        round: the grids of both, from pure noise.
        edits: the same by strength, for pictures that begin from another one. A student is told the level only, so no
            level of theirs may be among the others'.
    """

    grid_pair: GridPair
    edit_pairs: Mapping[float, GridPair] = field(default_factory=dict)
    level_table: LevelTable = field(init=False)
    _table: Tensor = field(init=False)
    _weights: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        rounds = [self.grid_pair, *self.edit_pairs.values()]
        longest = max(stride for one in rounds for stride in one.strides)
        rows: list[list[int]] = []
        begun = 0
        for one in rounds:
            for begin, stride in zip(one.positions, one.strides, strict=False):
                rows.append([begun + begin + min(part, stride) for part in range(longest + 1)])
            begun += len(one.teacher.levels)
        weights = np.array([1.0 if stride > 1 else _TRIVIAL_WEIGHT for one in rounds for stride in one.strides])
        object.__setattr__(self, "walk", concat_level_tables([make_level_table(one.teacher) for one in rounds]))
        object.__setattr__(self, "_table", torch.tensor(rows))
        object.__setattr__(self, "_weights", weights / weights.sum())

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """The teacher's places in an interval of the student's; intervals of one step seldom."""
        return self._table[rng.choice(len(self._table), size=count, p=self._weights)]

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Where the teacher comes."""
        return progressive_target(teacher, z, self.level_table, paths)


@dataclass(frozen=True, slots=True)
class PhasedConsistency:
    """Jump to the edge of a phase from anywhere in it (phased consistency, arXiv 2405.18407): one run, any count.

    Args:
        round: the fine grid that the teacher walks, and the edges: the grid that the student is served with.
    """

    grid_pair: GridPair
    level_table: LevelTable = field(init=False)
    _table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        edges = self.grid_pair.positions
        rows = [[place, place + 1, min(edge for edge in edges if edge > place)] for place in range(edges[-1])]
        object.__setattr__(self, "walk", make_level_table(self.grid_pair.teacher))
        object.__setattr__(self, "_table", torch.tensor(rows))

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """None: a phase's edge cannot be told from the level."""
        return {}

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """A place of the fine grid, the next one, and the edge of its phase."""
        return self._table[torch.from_numpy(rng.integers(len(self._table), size=count))]

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Where the student itself comes from the teacher's next place."""
        return consistency_target(teacher, student, z, self.level_table, paths)
