"""Targets: the clean picture that a student should see in a noisy one. Pure; nothing here knows a network by name.

A student's step from level t to level u is a DDIM step (arXiv 2010.02502), a move of a picture towards the clean one
that is seen in it:

    z_u = kept * z_t + gained * x,   kept = sigma_u / sigma_t,   gained = alpha_u - alpha_t * kept

Whatever point y at level u the student is to reach, there is one x that takes it there:

    x = (y - kept * z_t) / gained                           (Salimans and Ho, arXiv 2202.00512, appendix G)

So every method that teaches where to go differs in its y only:

    guidance     y lies at the student's own next level, one step of a guided teacher away (Meng et al., arXiv
                 2210.03142, section 3.1); x is then what the teacher sees
    progressive  y is where the teacher comes in its steps over the student's interval (section 3.2 there)
    consistency  y is where the student itself comes from one step of the teacher on: the edge of the phase (phased
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
    """Noise levels, one for each picture of a batch: float64 [B] throughout."""

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LevelTable:
    """A grid's levels as tables: float64 [steps + 1], CLEAN last; see also `joined`."""

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor

    def at(self, indices: Tensor) -> Levels:
        """The levels at these places of the grid, int64 [B]."""
        return Levels(self.timesteps[indices], self.alphas[indices], self.sigmas[indices])


def make_level_table(grid: TimestepGrid) -> LevelTable:
    """A grid as tables."""
    timesteps = [point.timestep for point in grid.levels]
    return LevelTable(*(torch.tensor(table, dtype=torch.float64) for table in (timesteps, grid.alphas, grid.sigmas)))


def concat_level_tables(tables: Sequence[LevelTable]) -> LevelTable:
    """Several walks as one table, one after the other; each ends at CLEAN."""
    return LevelTable(
        *(torch.cat([getattr(walk, name) for walk in tables]) for name in ("timesteps", "alphas", "sigmas"))
    )


DenoiseFn: TypeAlias = Callable[[Tensor, Levels], Tensor]
"""A network together with what its batch is asked: the clean pictures that it sees in z [B, C, h, w]; shaped as z."""


def ddim_step(z: Tensor, clean: Tensor, start: Levels, end: Levels) -> Tensor:
    """A DDIM step of each picture of a batch towards its clean one."""
    kept, gained = _ddim_coefficients(start, end)
    return _broadcast(kept, z) * z + _broadcast(gained, z) * clean


def invert_ddim(z: Tensor, z_end: Tensor, start: Levels, end: Levels) -> Tensor:
    """The clean picture for which one DDIM step from `z` lands on `reached`; `end` is cleaner than `start`.

    >>> level = lambda alpha, sigma: Levels(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, alpha, sigma)))
    >>> z, clean = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    >>> start, end = level(0.6, 0.8), level(0.8, 0.6)
    >>> round(landing(z, step(z, clean, start, end), start, end).item(), 12)
    0.5
    """
    kept, gained = _ddim_coefficients(start, end)
    return (z_end - _broadcast(kept, z) * z) / _broadcast(gained, z)


def ddim_rollout(denoise: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """Where a network comes that walks from place to place, one DDIM step each.

    Args:
        sees: the network.
        z: at the first place of each path, [B, C, h, w].
        walk: the levels.
        path: int64 [B, places]; a place that is repeated is left at once, so paths of several lengths go together.
    """
    for before, after in zip(path.unbind(1)[:-1], path.unbind(1)[1:], strict=True):
        start, end = table.at(before), table.at(after)
        stays = before == after
        if bool(stays.all()):
            continue
        # A picture that stays is shown all the same, at a level that exists: CLEAN is none.
        shown = torch.where(start.sigma == 0, torch.zeros_like(before), before)
        moved = ddim_step(z, denoise(z, table.at(shown)), start, end)
        z = torch.where(_broadcast(stays, z), z, moved)
    return z


def progressive_target(denoise: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """The target of progressive distillation: a step to the end of the path, that lands where the teacher comes.

    With paths of two places it is what the teacher sees: a round of equal grids teaches nothing new.

    Args:
        sees: the teacher.
        z, walk, path: as in `walked`.
    """
    start, end = table.at(path[:, 0]), table.at(path[:, -1])
    seen = denoise(z, start)
    reached = ddim_rollout(denoise, ddim_step(z, seen, start, table.at(path[:, 1])), table, path[:, 1:])
    # Said outright, and not found again through two roundings: optimisers that scale by the gradient's own size would
    # make steps of such a difference.
    return torch.where(_broadcast(path[:, 1] == path[:, -1], z), seen, invert_ddim(z, reached, start, end))


def consistency_target(teacher: DenoiseFn, student: DenoiseFn, z: Tensor, table: LevelTable, path: Tensor) -> Tensor:
    """The target of phased consistency: the teacher takes one step, and the student jumps from there to the edge.

    Args:
        teacher, student: both without gradients.
        z, walk: as in `walked`.
        path: int64 [B, 3]: a place, the one after it, and the edge of its phase, which may be the same as that.
    """
    place, after, edge = path.unbind(1)
    between = ddim_rollout(teacher, z, table, torch.stack([place, after], 1))
    reached = ddim_rollout(student, between, table, torch.stack([after, edge], 1))
    return invert_ddim(z, reached, table.at(place), table.at(edge))


def _ddim_coefficients(start: Levels, end: Levels) -> tuple[Tensor, Tensor]:
    kept = end.sigma / start.sigma
    return kept, end.alpha - start.alpha * kept


def _broadcast(weights: Tensor, z: Tensor) -> Tensor:
    """One weight for each picture of z, in its dtype where they are numbers."""
    shaped = weights.view(-1, *[1] * (z.ndim - 1))
    return shaped.to(z.device) if weights.dtype == torch.bool else shaped.to(z)
