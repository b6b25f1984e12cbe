"""A lesson on walks that are kept: the student is shown where its teacher was, and told where it came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, TimestepGrid
from stillhouse.distill.data.teacher_trajectories import TrajectoryBatch, TrajectoryDataset
from stillhouse.distill.training.networks import Denoiser, GuidedInputs
from stillhouse.distill.training.stage import Weighting, latent_psnr, weighted_loss
from stillhouse.distill.training.targets import (
    Levels,
    LevelTable,
    concat_level_tables,
    ddim_rollout,
    invert_ddim,
    make_level_table,
)
from stillhouse.fit.recipe import StageRecipe

ON_POLICY_SHARE = 0.5
"""Of the examples that are not where their walk begins, those where the student itself comes. It is then told the way
back to its teacher's walk: where it is served, its own steps are all that it sees."""
EDIT_SHARE = 0.25
"""Of the examples, edits, where walks are some: they are the shorter walks, and the easier ones."""


@dataclass(frozen=True, slots=True, eq=False)
class RolloutBatch:
    """Where student and teacher come from the same beginnings, [B, C, h, w] both.

    Args:
        ours, theirs: of the student, with gradients where there are any, and of the teacher.
        asked: of both.
        at: the levels where the walks begin.
        kinds: of their grids, int64 [B], on the processor.
    """

    student: Tensor
    teacher: Tensor
    inputs: GuidedInputs
    levels: Levels
    kinds: Tensor


@dataclass(frozen=True, kw_only=True)
class TrajectoryRegressionStage:
    """A stage of `fit`.

    Args:
        name: of its checkpoints.
        recipe: how long and how fast.
        unet: learns.
        schedule, prediction: the student's.
        walks: the teacher's, two or more; the last `judged` of them, half at most, are judged by and not learnt from.
        kept: the grids whose levels the walks are kept at, by their kind: from pure noise, then edits.
        served: the student's, by the same: a part of each, from its first level on, all of as many steps. Walks of
            other kinds are not looked at.
        through: share of the examples at which the student walks all of its steps, and is told where it should have
            come. Gradients pass every step, so what the levels between look like is its own affair. An example costs
            as many updates of others as there are steps.
        weighting, huber, seed, judged, identity: as in `Lesson`.
    """

    name: str
    recipe: StageRecipe
    unet: Any
    schedule: Schedule
    prediction: Prediction
    dataset: TrajectoryDataset
    stored_grids: Sequence[TimestepGrid]
    student_grids: Sequence[TimestepGrid]
    end_to_end_fraction: float = 0.0
    weighting: Weighting = "v"
    huber: float = 0.0
    seed: int = 0
    eval_samples: int = 16
    fingerprint: str = ""

    @property
    def network(self) -> Any:
        """What learns."""
        return self.unet

    @property
    def student(self) -> Denoiser:
        """The same, as it is asked."""
        return Denoiser(self.unet, self.schedule, self.prediction)

    def loss(self, number: int) -> Tensor:
        """Of a fresh batch, decided by its number alone."""
        rng = np.random.default_rng((self.seed, 7, number))
        count = self.recipe.batch_size
        chosen, through = self.sample_indices(rng, count), round(self.end_to_end_fraction * count)
        total = torch.zeros((), device=next(self.unet.parameters()).device)
        if through:
            ended = self.rollout(chosen[:through])
            total = total + self.weighted_error(ended.student, ended.teacher, ended.levels) * (through / count)
        if through < count:
            total = total + self._single_step_loss(rng, chosen[through:]) * (1 - through / count)
        return total

    def sample_indices(self, rng: np.random.Generator, count: int) -> Tensor:
        """So many walks to learn from, int64 [count]."""
        sizes = np.array([len(pool) for pool in self._pools])
        edits = rng.random(count) < (EDIT_SHARE if sizes.all() else float(sizes[0] == 0))
        pool = edits.astype(np.int64)
        places = sizes[0] * pool + (rng.random(count) * sizes[pool]).astype(np.int64)
        return torch.cat(self._pools)[torch.from_numpy(places)]

    @cached_property
    def _pools(self) -> tuple[Tensor, Tensor]:
        """What is learnt from: walks from pure noise, and edits."""
        from_noise = self.dataset.kinds[self._train_indices] == 0
        return self._train_indices[from_noise], self._train_indices[~from_noise]

    def _single_step_loss(self, rng: np.random.Generator, indices: Tensor) -> Tensor:
        """The loss of one step of each of these walks."""
        count, walk = len(indices), self._level_table
        steps = torch.from_numpy(rng.integers(self._student_steps, size=count))
        shown, begins = self._gather(indices, steps, steps + 1), self._table_offsets(indices)
        here = self._to_device(shown.current)
        own = (torch.from_numpy(rng.random(count) < ON_POLICY_SHARE) & (steps > 0)).nonzero().squeeze(1)
        if len(own):
            here[own.to(here.device)] = self._on_policy_latents(indices[own], steps[own])
        at, after = walk.at(begins + steps), walk.at(begins + steps + 1)
        target = invert_ddim(here, self._to_device(shown.end), at, after)
        return self.weighted_error(self.student.denoise_fn(self._guided_inputs(shown))(here, at), target, at)

    def rollout(self, indices: Tensor) -> RolloutBatch:
        """Where the student comes that walks all of its steps where these walks begin, int64 [B]."""
        steps = torch.full((len(indices),), self._student_steps)
        shown = self._gather(indices, torch.zeros_like(steps), steps)
        ours, at = self._student_rollout(shown, indices, steps), self._level_table.at(self._table_offsets(indices))
        return RolloutBatch(
            ours, self._to_device(shown.end), self._guided_inputs(shown), at, self.dataset.kinds[indices]
        )

    def weighted_error(self, predicted: Tensor, target: Tensor, levels: Levels) -> Tensor:
        """The loss of clean pictures that are seen at these levels."""
        away = (predicted - target) / levels.sigma.view(-1, 1, 1, 1).to(predicted)
        return weighted_loss(away, levels, self.weighting, self.huber)

    def evaluate(self) -> Mapping[str, float]:
        """How close it comes to its teacher from the same beginnings, see `lesson.agreement`: noise, and pictures."""
        held_out = self._eval_indices[: self.eval_samples]
        from_noise = self.dataset.kinds[held_out] == 0
        parts = {"agreement": held_out[from_noise], "edits": held_out[~from_noise]}
        return {name: latent_psnr(*self._rollouts(walks)) for name, walks in parts.items() if len(walks)}

    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """Where student and teacher come from the same beginnings, on walks that are not learnt from; see `Lesson`."""
        return self._rollouts(self._eval_indices[torch.arange(count) % len(self._eval_indices)])

    @torch.no_grad()
    def _rollouts(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        ended = self.rollout(indices)
        return ended.student, ended.teacher

    @cached_property
    def _usable(self) -> Tensor:
        """The walks of kinds that the student walks, int64."""
        return (self.dataset.kinds < len(self.student_grids)).nonzero().squeeze(1)

    @property
    def _train_indices(self) -> Tensor:
        """Those that are learnt from: at least half of them; an edit together with the walk that it begins at."""
        learnt = max(len(self._usable) - self.eval_samples, (len(self._usable) + 1) // 2)
        return self._usable[: learnt - learnt % 2 if len(self.student_grids) > 1 and learnt > 1 else learnt]

    @property
    def _eval_indices(self) -> Tensor:
        return self._usable[len(self._train_indices) :]

    @property
    def _student_steps(self) -> int:
        return self.student_grids[0].steps

    @cached_property
    def _level_table(self) -> LevelTable:
        """The levels of every kind, one after the other."""
        return concat_level_tables([make_level_table(one) for one in self.student_grids])

    def _table_offsets(self, indices: Tensor) -> Tensor:
        """Where the levels of these walks begin among them."""
        begins: Tensor = self.dataset.kinds[indices] * (self._student_steps + 1)
        return begins

    @cached_property
    def _stored_positions(self) -> Tensor:
        """Where the student's levels, CLEAN included, stand among those that are kept: int64 [kinds, steps + 1]."""
        pairs = zip(self.stored_grids, self.student_grids, strict=True)
        return torch.tensor([[kept.levels.index(point) for point in served.levels] for kept, served in pairs])

    def _gather(self, indices: Tensor, steps: Tensor, end_steps: Tensor) -> TrajectoryBatch:
        kinds = self.dataset.kinds[indices]
        return self.dataset.gather(
            indices, self._stored_positions[kinds, steps], self._stored_positions[kinds, end_steps]
        )

    @torch.no_grad()
    def _on_policy_latents(self, indices: Tensor, steps: Tensor) -> Tensor:
        nowhere = torch.zeros_like(steps)
        return self._student_rollout(self._gather(indices, nowhere, nowhere), indices, steps)

    def _student_rollout(self, batch: TrajectoryBatch, indices: Tensor, steps: Tensor) -> Tensor:
        """Where the student comes by itself, after so many steps of each of these walks, int64 [B]."""
        path = self._table_offsets(indices)[:, None] + torch.minimum(
            torch.arange(self._student_steps + 1)[None], steps[:, None]
        )
        return ddim_rollout(
            self.student.denoise_fn(self._guided_inputs(batch)), self._to_device(batch.start), self._level_table, path
        )

    def _guided_inputs(self, batch: TrajectoryBatch) -> GuidedInputs:
        said = {name: self._to_device(tensor) for name, tensor in batch.cond.items()}
        return GuidedInputs(said, {}, self._to_device(batch.guidance))

    def _to_device(self, tensor: Tensor) -> Tensor:
        device: torch.device = next(self.unet.parameters()).device
        return tensor.to(device)
