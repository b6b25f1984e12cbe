"""Training targets of students: the clean picture x that a student should predict from noisy latents z.

A student's step from level t to level u is a DDIM step (arXiv 2010.02502, equation 12):

    z_u = a * z_t + b * x,   a = sigma_u / sigma_t,   b = alpha_u - alpha_t * a

For any latents y at level u there is exactly one prediction x whose step ends at y:

    x = (y - a * z_t) / b                                   (Salimans and Ho, arXiv 2202.00512, appendix G)

The methods differ in y only:

    guidance     one step of the guided teacher to the student's next level (Meng et al., arXiv 2210.03142, section
                 3.1); x is then the teacher's prediction
    progressive  the end of the teacher's steps over the student's interval (section 3.2 there)
    consistency  the end of the student's own jump, to the end of the phase, after one step of the teacher (phased
                 consistency, arXiv 2405.18407, section 3.2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from stillhouse.diffusion import TimestepGrid


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Noise levels of the samples of a batch, float64 [B] each: z = alpha * x + sigma * noise."""

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LevelTable:
    """Levels of a grid as float64 tensors [steps + 1], CLEAN last; for several grids see `concat_level_tables`."""

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor

    def at(self, indices: Tensor) -> Levels:
        """Return the levels at indices, int64 [B]."""
        return Levels(self.timesteps[indices], self.alphas[indices], self.sigmas[indices])


def make_level_table(grid: TimestepGrid) -> LevelTable:
    """Return the levels of a grid as a table."""
    timesteps = [level.timestep for level in grid.levels]
    return LevelTable(*(torch.tensor(table, dtype=torch.float64) for table in (timesteps, grid.alphas, grid.sigmas)))


def concat_level_tables(tables: Sequence[LevelTable]) -> LevelTable:
    """Concatenate tables; each part ends at CLEAN."""
    return LevelTable(
        *(torch.cat([getattr(table, name) for table in tables]) for name in ("timesteps", "alphas", "sigmas"))
    )


DenoiseFn: TypeAlias = Callable[[Tensor, Levels], Tensor]
"""Network with the conditioning of one batch: maps latents z at noise levels to predicted clean latents, both
[B, C, h, w]."""


def ddim_step(z: Tensor, clean: Tensor, start: Levels, end: Levels) -> Tensor:
    """Return the latents after one DDIM step of a batch, from predicted clean latents."""
    z_weight, clean_weight = _ddim_coefficients(start, end)
    return _broadcast(z_weight, z) * z + _broadcast(clean_weight, z) * clean


def invert_ddim(z: Tensor, z_end: Tensor, start: Levels, end: Levels) -> Tensor:
    """Return the clean latents for which one DDIM step from `z` ends at `z_end`; `end` is less noisy than `start`.

    >>> level = lambda alpha, sigma: Levels(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, alpha, sigma)))
    >>> z, clean = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    >>> start, end = level(0.6, 0.8), level(0.8, 0.6)
    >>> round(invert_ddim(z, ddim_step(z, clean, start, end), start, end).item(), 12)
    0.5
    """
    z_weight, clean_weight = _ddim_coefficients(start, end)
    return (z_end - _broadcast(z_weight, z) * z) / _broadcast(clean_weight, z)


def ddim_rollout(denoise: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Sample a batch over paths of levels, one DDIM step between consecutive levels, and return the final latents.

    Args:
        denoise: the network.
        z: latents at the first level of each path, [B, C, h, w].
        table: the levels.
        path: indices of levels, int64 [B, levels]. A repeated index leaves the latents unchanged, so that paths of
            different lengths can be padded.
    """
    for before, after in zip(path.unbind(1)[:-1], path.unbind(1)[1:], strict=True):
        start, end = table.at(before), table.at(after)
        is_padding = before == after
        if bool(is_padding.all()):
            continue
        # Rows of shorter paths end at CLEAN, where the network is not defined. They are evaluated at row 0 of the table
        # instead, and the result is not used.
        evaluated = torch.where(start.sigma == 0, torch.zeros_like(before), before)
        moved = ddim_step(z, denoise(z, table.at(evaluated)), start, end)
        z = torch.where(_broadcast(is_padding, z), z, moved)
    return z


def progressive_target(denoise: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Return the target of progressive distillation: with it, one step ends where the teacher's steps end.

    For paths of two levels the target is the teacher's prediction.

    Args:
        denoise: the teacher.
        z, table, path: as in `ddim_rollout`.
    """
    start, end = table.at(path[:, 0]), table.at(path[:, -1])
    predicted = denoise(z, start)
    z_end = ddim_rollout(denoise, ddim_step(z, predicted, start, table.at(path[:, 1])), table, path[:, 1:])
    # For paths of two levels the target is the prediction itself. Inverting its step would add a rounding error, which
    # optimizers that normalise gradients turn into updates.
    return torch.where(_broadcast(path[:, 1] == path[:, -1], z), predicted, invert_ddim(z, z_end, start, end))


def consistency_target(teacher: DenoiseFn, student: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Return the target of phased consistency: one teacher step, then the student's jump to the end of the phase.

    Args:
        teacher, student: denoisers, which are evaluated without gradients.
        z, table: as in `ddim_rollout`.
        path: int64 [B, 3]: a level, the next one, and the end of the phase, which may equal the next level.
    """
    start, after, edge = path.unbind(1)
    between = ddim_rollout(teacher, z, table, torch.stack([start, after], 1))
    z_end = ddim_rollout(student, between, table, torch.stack([after, edge], 1))
    return invert_ddim(z, z_end, table.at(start), table.at(edge))


def _ddim_coefficients(start: Levels, end: Levels) -> tuple[Tensor, Tensor]:
    """Return the weights of z and of the clean latents in the DDIM step, float64 [B] each."""
    z_weight = end.sigma / start.sigma
    return z_weight, end.alpha - start.alpha * z_weight


def _broadcast(weights: Tensor, z: Tensor) -> Tensor:
    """Reshape values [B] to broadcast over z, on the device of z; values that are not bool get the dtype of z."""
    shaped = weights.view(-1, *[1] * (z.ndim - 1))
    return shaped.to(z.device) if weights.dtype == torch.bool else shaped.to(z)
