"""Distillation methods of a progressive chain: the noise levels of training examples, and their targets."""

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
"""Sampling weight of student steps that replace a single teacher step, from which a student learns little.

All other student steps have weight 1."""


class DistillationMethod(Protocol):
    """Levels and targets of the training examples of a student."""

    @property
    def level_table(self) -> LevelTable:
        """Table of noise levels; the paths of `sample_paths` are indices of its rows."""

    @property
    def grid_pair(self) -> GridPair | None:
        """Grids of teacher and student from pure noise; None where the student may be sampled on any grid."""

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """Grids of teacher and student for image-to-image, by strength."""

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return indices in the level table for each example, int64 [count, levels]; the first is the input's level."""

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the clean pictures that the student should predict from z, without gradients."""


@dataclass(frozen=True, slots=True)
class GuidanceDistillation:
    """Distil classifier-free guidance into one forward pass, at every level (Meng et al., arXiv 2210.03142, 3.1)."""

    schedule: Schedule
    level_table: LevelTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "level_table", make_level_table(make_grid(self.schedule, self.schedule.train_steps)))

    @property
    def grid_pair(self) -> GridPair | None:
        """None: the student may be sampled on any grid."""
        return None

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """Empty: the student may be sampled on any grid."""
        return {}

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return one uniformly drawn level for each example."""
        return torch.from_numpy(rng.integers(len(self.level_table.alphas) - 1, size=(count, 1)))

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the guided teacher's prediction."""
        return teacher(z, self.level_table.at(paths[:, 0]))


@dataclass(frozen=True, slots=True)
class ProgressiveDistillation:
    """Train one student step to equal several teacher steps (Salimans and Ho, arXiv 2202.00512).

    Args:
        grid_pair: grids of teacher and student from pure noise.
        edit_pairs: grids for image-to-image, by strength. The network's only input besides the latents is the level, so
            no level may belong to two student grids.
    """

    grid_pair: GridPair
    edit_pairs: Mapping[float, GridPair] = field(default_factory=dict)
    level_table: LevelTable = field(init=False)
    _table: Tensor = field(init=False)
    _weights: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        pairs = [self.grid_pair, *self.edit_pairs.values()]
        longest = max(stride for pair in pairs for stride in pair.strides)
        rows: list[list[int]] = []
        offset = 0
        for pair in pairs:
            for position, stride in zip(pair.positions, pair.strides, strict=False):
                rows.append([offset + position + min(step, stride) for step in range(longest + 1)])
            offset += len(pair.teacher.levels)
        weights = np.array([1.0 if stride > 1 else _TRIVIAL_WEIGHT for pair in pairs for stride in pair.strides])
        object.__setattr__(self, "level_table", concat_level_tables([make_level_table(pair.teacher) for pair in pairs]))
        object.__setattr__(self, "_table", torch.tensor(rows))
        object.__setattr__(self, "_weights", weights / weights.sum())

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return the teacher's levels within a random student step; see `_TRIVIAL_WEIGHT` for the probabilities."""
        return self._table[rng.choice(len(self._table), size=count, p=self._weights)]

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the target with which the student's step ends where the teacher's steps end."""
        return progressive_target(teacher, z, self.level_table, paths)


@dataclass(frozen=True, slots=True)
class PhasedConsistency:
    """Train a student to jump to the end of a phase from any level in it (phased consistency, arXiv 2405.18407).

    Args:
        grid_pair: the teacher's fine timestep grid, and the student's grid, whose levels bound the phases.
    """

    grid_pair: GridPair
    level_table: LevelTable = field(init=False)
    _table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        edges = self.grid_pair.positions
        rows = [[start, start + 1, min(edge for edge in edges if edge > start)] for start in range(edges[-1])]
        object.__setattr__(self, "level_table", make_level_table(self.grid_pair.teacher))
        object.__setattr__(self, "_table", torch.tensor(rows))

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """Empty: the end of a phase is ambiguous where a level belongs to several grids."""
        return {}

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return for each example a random level of the fine grid, the next level, and the end of the phase."""
        return self._table[torch.from_numpy(rng.integers(len(self._table), size=count))]

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the target with which the student's jump ends where its jump from the teacher's next level ends."""
        return consistency_target(teacher, student, z, self.level_table, paths)
