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
class Walk:
    """A grid's levels as tables: float64 [steps + 1], CLEAN last; see also `joined`."""

    timesteps: Tensor
    alphas: Tensor
    sigmas: Tensor

    def at(self, places: Tensor) -> Levels:
        """The levels at these places of the grid, int64 [B]."""
        return Levels(self.timesteps[places], self.alphas[places], self.sigmas[places])


def walk_of(grid: TimestepGrid) -> Walk:
    """A grid as tables."""
    timesteps = [point.timestep for point in grid.levels]
    return Walk(*(torch.tensor(table, dtype=torch.float64) for table in (timesteps, grid.alphas, grid.sigmas)))


def joined(walks: Sequence[Walk]) -> Walk:
    """Several walks as one table, one after the other; each ends at CLEAN."""
    return Walk(*(torch.cat([getattr(walk, name) for walk in walks]) for name in ("timesteps", "alphas", "sigmas")))


Sees: TypeAlias = Callable[[Tensor, Levels], Tensor]
"""A network together with what its batch is asked: the clean pictures that it sees in z [B, C, h, w]; shaped as z."""


def step(z: Tensor, clean: Tensor, start: Levels, end: Levels) -> Tensor:
    """A DDIM step of each picture of a batch towards its clean one."""
    kept, gained = _move(start, end)
    return _per(kept, z) * z + _per(gained, z) * clean


def landing(z: Tensor, reached: Tensor, start: Levels, end: Levels) -> Tensor:
    """The clean picture for which one DDIM step from `z` lands on `reached`; `end` is cleaner than `start`.

    >>> level = lambda alpha, sigma: Levels(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, alpha, sigma)))
    >>> z, clean = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    >>> start, end = level(0.6, 0.8), level(0.8, 0.6)
    >>> round(landing(z, step(z, clean, start, end), start, end).item(), 12)
    0.5
    """
    kept, gained = _move(start, end)
    return (reached - _per(kept, z) * z) / _per(gained, z)


def walked(sees: Sees, z: Tensor, walk: Walk, path: Tensor) -> Tensor:
    """Where a network comes that walks from place to place, one DDIM step each.

    Args:
        sees: the network.
        z: at the first place of each path, [B, C, h, w].
        walk: the levels.
        path: int64 [B, places]; a place that is repeated is left at once, so paths of several lengths go together.
    """
    for before, after in zip(path.unbind(1)[:-1], path.unbind(1)[1:], strict=True):
        start, end = walk.at(before), walk.at(after)
        stays = before == after
        if bool(stays.all()):
            continue
        # A picture that stays is shown all the same, at a level that exists: CLEAN is none.
        shown = torch.where(start.sigma == 0, torch.zeros_like(before), before)
        moved = step(z, sees(z, walk.at(shown)), start, end)
        z = torch.where(_per(stays, z), z, moved)
    return z


def along(sees: Sees, z: Tensor, walk: Walk, path: Tensor) -> Tensor:
    """The target of progressive distillation: a step to the end of the path, that lands where the teacher comes.

    With paths of two places it is what the teacher sees: a round of equal grids teaches nothing new.

    Args:
        sees: the teacher.
        z, walk, path: as in `walked`.
    """
    start, end = walk.at(path[:, 0]), walk.at(path[:, -1])
    seen = sees(z, start)
    reached = walked(sees, step(z, seen, start, walk.at(path[:, 1])), walk, path[:, 1:])
    # Said outright, and not found again through two roundings: optimisers that scale by the gradient's own size would
    # make steps of such a difference.
    return torch.where(_per(path[:, 1] == path[:, -1], z), seen, landing(z, reached, start, end))


def to_edge(teacher: Sees, student: Sees, z: Tensor, walk: Walk, path: Tensor) -> Tensor:
    """The target of phased consistency: the teacher takes one step, and the student jumps from there to the edge.

    Args:
        teacher, student: both without gradients.
        z, walk: as in `walked`.
        path: int64 [B, 3]: a place, the one after it, and the edge of its phase, which may be the same as that.
    """
    place, after, edge = path.unbind(1)
    between = walked(teacher, z, walk, torch.stack([place, after], 1))
    reached = walked(student, between, walk, torch.stack([after, edge], 1))
    return landing(z, reached, walk.at(place), walk.at(edge))


def _move(start: Levels, end: Levels) -> tuple[Tensor, Tensor]:
    kept = end.sigma / start.sigma
    return kept, end.alpha - start.alpha * kept


def _per(weights: Tensor, z: Tensor) -> Tensor:
    """One weight for each picture of z, in its dtype where they are numbers."""
    shaped = weights.view(-1, *[1] * (z.ndim - 1))
    return shaped.to(z.device) if weights.dtype == torch.bool else shaped.to(z)
