"""Training targets of students: the clean picture x that a student should predict from noisy latents z.

A student's step from noise level t to a less noisy level u is a DDIM step (arXiv 2010.02502, equation 12):

    z_u = a * z_t + b * x,   a = sigma_u / sigma_t,   b = alpha_u - alpha_t * a

For any latents y at level u there is exactly one prediction x whose step ends at y:

    x = (y - a * z_t) / b                                   (Salimans and Ho, arXiv 2202.00512, appendix G)

The distillation methods differ only in the latents y at which the student's step should end:

    guidance     y is the end of one step of the guided teacher, so x is the teacher's prediction (Meng et al., arXiv
                 2210.03142, section 3.1)
    progressive  y is the end of several teacher steps from t to u (arXiv 2210.03142, section 3.2)
    consistency  y is where the student's own step ends at u after one teacher step from t (phased consistency, arXiv
                 2405.18407, section 3.2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from stillhouse.diffusion import TimestepGrid


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Noise level of each sample in a batch, float64 [B] each field: z = alpha * x + sigma * noise."""

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LevelTable:
    """Noise levels of a timestep grid as float64 tensors [steps + 1], from the noisiest level to the clean picture.

    A table may also hold several grids one after the other, as `concat_level_tables` makes it.
    """

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor

    def at(self, indices: Tensor) -> Levels:
        """Return the noise levels in the rows `indices`, int64 [B]."""
        return Levels(self.timesteps[indices], self.alphas[indices], self.sigmas[indices])


def make_level_table(grid: TimestepGrid) -> LevelTable:
    """Return the noise levels of a timestep grid, clean picture included, as a table of tensors."""
    timesteps = [level.timestep for level in grid.levels]
    return LevelTable(*(torch.tensor(table, dtype=torch.float64) for table in (timesteps, grid.alphas, grid.sigmas)))


def concat_level_tables(tables: Sequence[LevelTable]) -> LevelTable:
    """Concatenate the level tables of several timestep grids in their order into one table."""
    return LevelTable(
        *(torch.cat([getattr(table, name) for table in tables]) for name in ("timesteps", "alphas", "sigmas"))
    )


DenoiseFn: TypeAlias = Callable[[Tensor, Levels], Tensor]
"""A denoising network with the conditioning of a batch: maps noisy latents and their noise levels to predicted clean
latents, [B, C, h, w] each."""


def ddim_step(z: Tensor, clean: Tensor, start: Levels, end: Levels) -> Tensor:
    """Return the latents of a batch after one DDIM step.

    Args:
        z: noisy latents before the step, [B, C, h, w].
        clean: predicted clean latents, in the shape of `z`.
        start, end: noise levels before and after the step.
    """
    z_weight, clean_weight = _ddim_coefficients(start, end)
    return _broadcast(z_weight, z) * z + _broadcast(clean_weight, z) * clean


def invert_ddim(z: Tensor, z_end: Tensor, start: Levels, end: Levels) -> Tensor:
    """Return the clean latents for which one DDIM step from `z` ends at `z_end`, [B, C, h, w] each.

    The step goes from the noise level `start` to the less noisy level `end`.

    >>> level = lambda alpha, sigma: Levels(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, alpha, sigma)))
    >>> z, clean = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    >>> start, end = level(0.6, 0.8), level(0.8, 0.6)
    >>> round(invert_ddim(z, ddim_step(z, clean, start, end), start, end).item(), 12)
    0.5
    """
    z_weight, clean_weight = _ddim_coefficients(start, end)
    return (z_end - _broadcast(z_weight, z) * z) / _broadcast(clean_weight, z)


def ddim_rollout(denoise: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Sample each row of a batch along its own path of noise levels, and return the final latents, [B, C, h, w].

    Args:
        denoise: the network with the batch's conditioning. One DDIM step is made between consecutive levels of a path.
        z: latents at the first level of each path, [B, C, h, w].
        path: for each row the indices of its levels in `table`, int64 [B, levels]. A repeated index leaves the latents
            unchanged, so that shorter paths can be padded.
    """
    for before, after in zip(path.unbind(1)[:-1], path.unbind(1)[1:], strict=True):
        start, end = table.at(before), table.at(after)
        is_padding = before == after
        if bool(is_padding.all()):
            continue
        # A row with a shorter path has already reached the clean picture, where the network must not be evaluated. The
        # network is evaluated at the table's first level instead, and the result for this row is dropped.
        evaluated = torch.where(start.sigma == 0, torch.zeros_like(before), before)
        moved = ddim_step(z, denoise(z, table.at(evaluated)), start, end)
        z = torch.where(_broadcast(is_padding, z), z, moved)
    return z


def progressive_target(denoise: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Return the clean latents with which one step from `z` ends where several teacher steps end (progressive target).

    Args:
        denoise: the teacher with the conditioning of the batch.
        z: latents at the first level of each path, [B, C, h, w].
        table: table of noise levels.
        path: for each row the levels of the teacher's steps, as indices in the table, int64 [B, levels]. A repeated
            index means no step. A path of one step has the teacher's prediction as its target.
    """
    start, end = table.at(path[:, 0]), table.at(path[:, -1])
    predicted = denoise(z, start)
    z_end = ddim_rollout(denoise, ddim_step(z, predicted, start, table.at(path[:, 1])), table, path[:, 1:])
    # For a single teacher step the target is the teacher's prediction itself. Inverting the step would add a rounding
    # error, which optimizers such as Adam amplify to whole updates, because they normalise gradients.
    return torch.where(_broadcast(path[:, 1] == path[:, -1], z), predicted, invert_ddim(z, z_end, start, end))


def consistency_target(teacher: DenoiseFn, student: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Return the clean latents with which one step from `z` ends where the student ends after a teacher step.

    This is the target of phased consistency: one teacher step to the next level, then the student's step from there to
    the end of the phase (interval of noise levels that the student crosses in one step).

    Args:
        teacher, student: denoisers with the conditioning of the batch; the caller disables gradients.
        z: latents at the first level of each path, [B, C, h, w].
        table: table of noise levels.
        path: for each row three indices in the table, int64 [B, 3]: the level of `z`, the teacher's next level, and the
            end of the phase, which may equal the next level.
    """
    start, after, edge = path.unbind(1)
    between = ddim_rollout(teacher, z, table, torch.stack([start, after], 1))
    z_end = ddim_rollout(student, between, table, torch.stack([after, edge], 1))
    return invert_ddim(z, z_end, table.at(start), table.at(edge))


def _ddim_coefficients(start: Levels, end: Levels) -> tuple[Tensor, Tensor]:
    """Return the weights of noisy and clean latents in the DDIM step from `start` to `end`, float64 [B] each."""
    z_weight = end.sigma / start.sigma
    return z_weight, end.alpha - start.alpha * z_weight


def _broadcast(weights: Tensor, z: Tensor) -> Tensor:
    """Reshape `weights`, [B], to [B, 1, 1, ...] so that they broadcast over `z`, and move them to the device of `z`.

    Weights that are not bool also get the dtype of `z`.
    """
    shaped = weights.view(-1, *[1] * (z.ndim - 1))
    return shaped.to(z.device) if weights.dtype == torch.bool else shaped.to(z)
