"""Methods to distil a teacher into a student: noise levels of the training examples, and the targets to predict."""

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
"""Relative probability with which a student step that replaces a single teacher step is drawn for training.

A step that replaces several teacher steps has the relative probability 1. A single step teaches little."""


class DistillationMethod(Protocol):
    """How training examples of a student are made: at which noise levels, and with which target.

    A path is the sequence of noise levels of one example, as indices of rows in the level table.
    """

    @property
    def level_table(self) -> LevelTable:
        """Table of the noise levels of all timestep grids; `sample_paths` returns indices of its rows."""

    @property
    def grid_pair(self) -> GridPair | None:
        """Timestep grids of teacher and student from pure noise; None: the student may be sampled at any timesteps."""

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """Timestep grids of teacher and student for image-to-image, by strength; empty where none were trained."""

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return random noise levels for `count` examples, int64 [count, levels].

        A noise level is given as the index of its row in the level table. The first level of an example is the level of
        the student's input.
        """

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the clean latents that the student should predict from `z`, in the shape of `z`.

        The caller disables gradients.

        Args:
            teacher, student: denoisers with the conditioning of the batch.
            z: noisy latents at the first level of each path, [B, C, h, w].
            paths: noise levels of each example, as `sample_paths` returns them.
        """


@dataclass(frozen=True, slots=True)
class GuidanceDistillation:
    """Distil classifier-free guidance into one forward pass, at every timestep (Meng et al., arXiv 2210.03142, 3.1).

    Args:
        schedule: noise schedule of the student.
    """

    schedule: Schedule
    level_table: LevelTable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "level_table", make_level_table(make_grid(self.schedule, self.schedule.train_steps)))

    @property
    def grid_pair(self) -> GridPair | None:
        """None, because the student may be sampled at any timesteps."""
        return None

    @property
    def edit_pairs(self) -> Mapping[float, GridPair]:
        """Empty, because the student may be sampled at any timesteps, also for image-to-image."""
        return {}

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return one uniformly drawn noise level for each example: its row in the level table, int64 [count, 1]."""
        return torch.from_numpy(rng.integers(len(self.level_table.alphas) - 1, size=(count, 1)))

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the clean latents that the guided teacher predicts from `z`, in the shape of `z`.

        Args:
            teacher: denoiser with guidance, with the conditioning of the batch.
            student: not used.
            z: noisy latents, [B, C, h, w].
            paths: noise level of each example, as `sample_paths` returns it.
        """
        return teacher(z, self.level_table.at(paths[:, 0]))


@dataclass(frozen=True, slots=True)
class ProgressiveDistillation:
    """Progressive distillation: one student step replaces several teacher steps (Salimans and Ho, arXiv 2202.00512).

    Args:
        grid_pair: timestep grids of teacher and student from pure noise.
        edit_pairs: timestep grids of teacher and student for image-to-image, by strength. No noise level may belong to
            two student grids, because the network could not tell which step to make.
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
        """Return for each example the teacher's noise levels within a random student step, int64 [count, levels].

        A noise level is given as the index of its row in the level table. A shorter step repeats its last level. Steps
        that replace a single teacher step are rarely drawn.
        """
        return self._table[rng.choice(len(self._table), size=count, p=self._weights)]

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the clean latents with which one student step from `z` ends where the teacher's steps end.

        Args:
            teacher: denoiser with the conditioning of the batch.
            student: not used.
            z: noisy latents at the first level of each path, [B, C, h, w].
            paths: noise levels of the teacher's steps, as `sample_paths` returns them.
        """
        return progressive_target(teacher, z, self.level_table, paths)


@dataclass(frozen=True, slots=True)
class PhasedConsistency:
    """Phased consistency (arXiv 2405.18407): from any noise level in a phase the student jumps to the end of the phase.

    A phase is the interval between two consecutive noise levels of the student's timestep grid.

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
        """Empty, because this method does not support image-to-image.

        A noise level that belongs to the grids of several strengths would have no unique end of phase.
        """
        return {}

    def sample_paths(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return three noise levels for each example, as rows of the level table, int64 [count, 3].

        The three levels are a random level of the teacher's grid, the next level of this grid, and the end of the phase
        (interval between two student levels).
        """
        return self._table[torch.from_numpy(rng.integers(len(self._table), size=count))]

    def target(self, teacher: DenoiseFn, student: DenoiseFn, z: Tensor, paths: Tensor) -> Tensor:
        """Return the clean latents with which the student's jump from `z` to the end of the phase is consistent.

        A phase is an interval between two student levels. A jump is consistent if it ends at the same latents as one
        teacher step from `z` and the student's jump after this step.

        Args:
            teacher, student: denoisers with the conditioning of the batch.
            z: noisy latents at the first level of each path, [B, C, h, w].
            paths: noise levels of each example, as `sample_paths` returns them.
        """
        return consistency_target(teacher, student, z, self.level_table, paths)
