"""Trajectory regression: a student of few steps is trained to end where the teacher's stored trajectories end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import TimestepGrid
from stillhouse.distill.data.teacher_trajectories import TrajectoryBatch, TrajectoryDataset
from stillhouse.distill.training.distillation_stage import latent_psnr, weighted_loss
from stillhouse.distill.training.networks import GuidedInputs
from stillhouse.distill.training.student_stage import StudentStage
from stillhouse.distill.training.targets import (
    Levels,
    LevelTable,
    concat_level_tables,
    ddim_rollout,
    invert_ddim,
    make_level_table,
)

ON_POLICY_SHARE = 0.5
"""Share of the examples that start from the student's own latents instead of the teacher's, except at the first step.

At inference a student's inputs are its own outputs, so the student must learn to return to the teacher's trajectory."""
EDIT_SHARE = 0.25
"""Share of image-to-image examples (edits) in training, where the dataset has any; small, because edits are easier."""


@dataclass(frozen=True, slots=True, eq=False)
class RolloutBatch:
    """Final latents of student and teacher from the same initial latents.

    Args:
        student: the student's final latents, float32 [B, C, h, w], with gradients unless the caller disables them.
        teacher: the teacher's stored final latents, float32 [B, C, h, w].
        inputs: conditioning of student and teacher.
        levels: noise levels of the initial latents.
        kinds: 0 for a trajectory from pure noise, n for an edit (image-to-image) at the n-th strength; int64 [B], on
            the CPU.
    """

    student: Tensor
    teacher: Tensor
    inputs: GuidedInputs
    levels: Levels
    kinds: Tensor


@dataclass(frozen=True, kw_only=True)
class TrajectoryRegressionStage(StudentStage):
    """Training task for the loop `fit`: a student learns from stored trajectories of its teacher.

    A trajectory starts from pure noise (kind 0), or is an edit (image-to-image) at the n-th strength (kind n). See
    `StudentStage` for the other fields. The fingerprint covers initial weights, data and settings.

    Args:
        dataset: two trajectories or more; the last `eval_samples` of them, at most half, are held out for evaluation.
        stored_grids: timestep grid at whose levels the trajectories are stored, for each kind.
        student_grids: timestep grid of the student, for each kind. Each is a subset of the stored grid with the same
            first level, and all have the same number of steps. Trajectories of kinds without a grid are ignored.
        end_to_end_fraction: share of the examples, 0 to 1, in which the student takes all of its steps. The loss of
            these examples compares the final latents only, with gradients through every step. Where the student
            has n steps, such an example costs as much as n other examples.
    """

    dataset: TrajectoryDataset
    stored_grids: Sequence[TimestepGrid]
    student_grids: Sequence[TimestepGrid]
    end_to_end_fraction: float = 0.0

    def loss(self, number: int) -> Tensor:
        """Return the loss of batch `number`, a scalar with gradients in the student's network.

        The batch number and the seed alone decide trajectories and steps.
        """
        rng = np.random.default_rng((self.seed, 7, number))
        count = self.recipe.batch_size
        indices, end_to_end = self.sample_indices(rng, count), round(self.end_to_end_fraction * count)
        total = torch.zeros((), device=next(self.network.parameters()).device)
        if end_to_end:
            rollout = self.rollout(indices[:end_to_end])
            error = self.weighted_error(rollout.student, rollout.teacher, rollout.levels)
            total = total + error * (end_to_end / count)
        if end_to_end < count:
            total = total + self._single_step_loss(rng, indices[end_to_end:]) * (1 - end_to_end / count)
        return total

    def sample_indices(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return indices in the dataset of random training trajectories, int64 [count].

        A quarter of them are edits (image-to-image) where the dataset has both kinds.
        """
        sizes = np.array([len(pool) for pool in self._pools])
        is_edit = rng.random(count) < (EDIT_SHARE if sizes.all() else float(sizes[0] == 0))
        pool = is_edit.astype(np.int64)
        positions = sizes[0] * pool + (rng.random(count) * sizes[pool]).astype(np.int64)
        return torch.cat(self._pools)[torch.from_numpy(positions)]

    @cached_property
    def _pools(self) -> tuple[Tensor, Tensor]:
        """Indices in the dataset of the training trajectories: first those from pure noise, then the edits."""
        from_noise = self.dataset.kinds[self._train_indices] == 0
        return self._train_indices[from_noise], self._train_indices[~from_noise]

    def _single_step_loss(self, rng: np.random.Generator, indices: Tensor) -> Tensor:
        """Return the mean loss of one random student step of each trajectory, a scalar.

        Args:
            rng: decides the steps, and which of them start from the student's own latents.
            indices: indices of trajectories in the dataset, int64 [B].
        """
        count = len(indices)
        steps = torch.from_numpy(rng.integers(self._student_steps, size=count))
        batch, offsets = self._gather(indices, steps, steps + 1), self._table_offsets(indices)
        z = self._to_device(batch.current)
        on_policy = (torch.from_numpy(rng.random(count) < ON_POLICY_SHARE) & (steps > 0)).nonzero().squeeze(1)
        if len(on_policy):
            z[on_policy.to(z.device)] = self._on_policy_latents(indices[on_policy], steps[on_policy])
        start, end = self._level_table.at(offsets + steps), self._level_table.at(offsets + steps + 1)
        target = invert_ddim(z, self._to_device(batch.end), start, end)
        predicted = self.student.denoise_fn(self._guided_inputs(batch))(z, start)
        return self.weighted_error(predicted, target, start)

    def rollout(self, indices: Tensor) -> RolloutBatch:
        """Sample the student with all of its steps from the initial latents of stored trajectories.

        Args:
            indices: indices of the trajectories in the dataset, int64 [B].
        """
        steps = torch.full((len(indices),), self._student_steps)
        batch = self._gather(indices, torch.zeros_like(steps), steps)
        return RolloutBatch(
            student=self._student_rollout(batch, indices, steps),
            teacher=self._to_device(batch.end),
            inputs=self._guided_inputs(batch),
            levels=self._level_table.at(self._table_offsets(indices)),
            kinds=self.dataset.kinds[indices],
        )

    def weighted_error(self, predicted: Tensor, target: Tensor, levels: Levels) -> Tensor:
        """Return the mean weighted loss of predicted clean latents, a scalar.

        Args:
            predicted: clean latents that the student predicts, [B, C, h, w].
            target: clean latents that it should predict, [B, C, h, w].
            levels: noise levels of the student's inputs.
        """
        error = (predicted - target) / levels.sigma.view(-1, 1, 1, 1).to(predicted)
        return weighted_loss(error, levels, self.weighting, self.huber)

    def evaluate(self) -> Mapping[str, float]:
        """Return the PSNR in dB between final latents of student and teacher on held-out trajectories.

        Returns:
            `latent_psnr` for trajectories from pure noise, and `edits` for image-to-image; a kind that is not among the
            held-out trajectories has no entry.
        """
        held_out = self._eval_indices[: self.eval_samples]
        from_noise = self.dataset.kinds[held_out] == 0
        parts = {"latent_psnr": held_out[from_noise], "edits": held_out[~from_noise]}
        return {name: latent_psnr(*self._rollouts(indices)) for name, indices in parts.items() if len(indices)}

    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """Return final latents of student and teacher on held-out trajectories, float32 [count, C, h, w] each.

        Where fewer than `count` trajectories are held out, the held-out trajectories are repeated.
        """
        return self._rollouts(self._eval_indices[torch.arange(count) % len(self._eval_indices)])

    @torch.no_grad()
    def _rollouts(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rollout = self.rollout(indices)
        return rollout.student, rollout.teacher

    @cached_property
    def _usable(self) -> Tensor:
        """Indices in the dataset of the trajectories of those kinds for which there is a student grid, int64.

        A trajectory's kind is 0 for pure noise, and n for an edit (image-to-image) at the n-th strength.
        """
        return (self.dataset.kinds < len(self.student_grids)).nonzero().squeeze(1)

    @property
    def _train_indices(self) -> Tensor:
        """Indices in the dataset of the trajectories for training: at least half of those that have a student grid.

        An edit (image-to-image) and the trajectory that gave its picture are either both for training or both held out.
        """
        count = max(len(self._usable) - self.eval_samples, (len(self._usable) + 1) // 2)
        return self._usable[: count - count % 2 if len(self.student_grids) > 1 and count > 1 else count]

    @property
    def _eval_indices(self) -> Tensor:
        return self._usable[len(self._train_indices) :]

    @property
    def _student_steps(self) -> int:
        return self.student_grids[0].steps

    @cached_property
    def _level_table(self) -> LevelTable:
        """Noise levels of all student grids, one grid after the other in one table."""
        return concat_level_tables([make_level_table(grid) for grid in self.student_grids])

    def _table_offsets(self, indices: Tensor) -> Tensor:
        """Return for each trajectory the row of its first noise level in the level table, int64 [B]."""
        offsets: Tensor = self.dataset.kinds[indices] * (self._student_steps + 1)
        return offsets

    @cached_property
    def _stored_positions(self) -> Tensor:
        """Index of each student level among the stored levels, int64 [kinds, steps + 1], clean latents last."""
        pairs = zip(self.stored_grids, self.student_grids, strict=True)
        return torch.tensor([[stored.levels.index(level) for level in grid.levels] for stored, grid in pairs])

    def _gather(self, indices: Tensor, steps: Tensor, end_steps: Tensor) -> TrajectoryBatch:
        kinds = self.dataset.kinds[indices]
        return self.dataset.gather(
            indices, self._stored_positions[kinds, steps], self._stored_positions[kinds, end_steps]
        )

    @torch.no_grad()
    def _on_policy_latents(self, indices: Tensor, steps: Tensor) -> Tensor:
        first = torch.zeros_like(steps)
        return self._student_rollout(self._gather(indices, first, first), indices, steps)

    def _student_rollout(self, batch: TrajectoryBatch, indices: Tensor, steps: Tensor) -> Tensor:
        """Return the student's latents after the first `steps` steps of each trajectory, float32 [B, C, h, w].

        Args:
            batch: initial latents and conditioning of the trajectories.
            indices: indices of the trajectories in the dataset, int64 [B].
            steps: number of steps that the student takes in each trajectory, int64 [B].
        """
        path = self._table_offsets(indices)[:, None] + torch.minimum(
            torch.arange(self._student_steps + 1)[None], steps[:, None]
        )
        return ddim_rollout(
            self.student.denoise_fn(self._guided_inputs(batch)), self._to_device(batch.start), self._level_table, path
        )

    def _guided_inputs(self, batch: TrajectoryBatch) -> GuidedInputs:
        cond = {name: self._to_device(tensor) for name, tensor in batch.cond.items()}
        return GuidedInputs(cond, {}, self._to_device(batch.guidance))

    def _to_device(self, tensor: Tensor) -> Tensor:
        device: torch.device = next(self.network.parameters()).device
        return tensor.to(device)
