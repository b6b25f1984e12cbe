"""A lesson on walks that are kept: the student is shown where its teacher was, and told where it came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Grid, Prediction, Schedule
from stillhouse.distill.lesson import Weighting, agreement, weighed
from stillhouse.distill.networks import Asked, Denoiser
from stillhouse.distill.targets import Walk, joined, landing, walk_of, walked
from stillhouse.distill.walks import KeptWalks, Shown
from stillhouse.fit.recipe import StageRecipe

OWN = 0.5
"""Of the examples that are not where their walk begins, those where the student itself comes. It is then told the way
back to its teacher's walk: where it is served, its own steps are all that it sees."""


@dataclass(frozen=True, kw_only=True)
class WalkLesson:
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
        weighting, huber, seed, judged, identity: as in `Lesson`.
    """

    name: str
    recipe: StageRecipe
    unet: Any
    schedule: Schedule
    prediction: Prediction
    walks: KeptWalks
    kept: Sequence[Grid]
    served: Sequence[Grid]
    weighting: Weighting = "v"
    huber: float = 0.0
    seed: int = 0
    judged: int = 16
    identity: str = ""

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
        count, walk = self.recipe.batch, self._walk
        steps = torch.from_numpy(rng.integers(self._steps, size=count))
        chosen = self._learnt[torch.from_numpy(rng.integers(len(self._learnt), size=count))]
        shown, begins = self._shown(chosen, steps, steps + 1), self._begins(chosen)
        here = self._placed(shown.here)
        own = (torch.from_numpy(rng.random(count) < OWN) & (steps > 0)).nonzero().squeeze(1)
        if len(own):
            here[own.to(here.device)] = self._mine(chosen[own], steps[own])
        at, after = walk.at(begins + steps), walk.at(begins + steps + 1)
        target = landing(here, self._placed(shown.reached), at, after)
        seen = self.student.sees(self._asked(shown))(here, at)
        error = (seen - target) / at.sigma.view(-1, 1, 1, 1).to(here)
        return weighed(error, at, self.weighting, self.huber)

    def judge(self) -> Mapping[str, float]:
        """How close it comes to its teacher from the same beginnings, see `lesson.agreement`: noise, and pictures."""
        held_out = self._held_out[: self.judged]
        from_noise = self.walks.kinds[held_out] == 0
        parts = {"agreement": held_out[from_noise], "edits": held_out[~from_noise]}
        return {name: agreement(*self._endings(walks)) for name, walks in parts.items() if len(walks)}

    def endings(self, count: int) -> tuple[Tensor, Tensor]:
        """Where student and teacher come from the same beginnings, on walks that are not learnt from; see `Lesson`."""
        return self._endings(self._held_out[torch.arange(count) % len(self._held_out)])

    @torch.no_grad()
    def _endings(self, walks: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.full((len(walks),), self._steps)
        return self._mine(walks, steps), self._placed(self._shown(walks, steps, steps).reached)

    @cached_property
    def _own(self) -> Tensor:
        """The walks of kinds that the student walks, int64."""
        return (self.walks.kinds < len(self.served)).nonzero().squeeze(1)

    @property
    def _learnt(self) -> Tensor:
        """Those that are learnt from: at least half of them; an edit together with the walk that it begins at."""
        learnt = max(len(self._own) - self.judged, (len(self._own) + 1) // 2)
        return self._own[: learnt - learnt % 2 if len(self.served) > 1 and learnt > 1 else learnt]

    @property
    def _held_out(self) -> Tensor:
        return self._own[len(self._learnt) :]

    @property
    def _steps(self) -> int:
        return self.served[0].steps

    @cached_property
    def _walk(self) -> Walk:
        """The levels of every kind, one after the other."""
        return joined([walk_of(one) for one in self.served])

    def _begins(self, walks: Tensor) -> Tensor:
        """Where the levels of these walks begin among them."""
        begins: Tensor = self.walks.kinds[walks] * (self._steps + 1)
        return begins

    @cached_property
    def _places(self) -> Tensor:
        """Where the student's levels, CLEAN included, stand among those that are kept: int64 [kinds, steps + 1]."""
        pairs = zip(self.kept, self.served, strict=True)
        return torch.tensor([[kept.points.index(point) for point in served.points] for kept, served in pairs])

    def _shown(self, walks: Tensor, steps: Tensor, reached: Tensor) -> Shown:
        kinds = self.walks.kinds[walks]
        return self.walks.shown(walks, self._places[kinds, steps], self._places[kinds, reached])

    @torch.no_grad()
    def _mine(self, walks: Tensor, steps: Tensor) -> Tensor:
        """Where the student comes by itself, after so many steps of each of these walks, int64 [B]."""
        nowhere = torch.zeros_like(steps)
        shown = self._shown(walks, nowhere, nowhere)
        path = self._begins(walks)[:, None] + torch.minimum(torch.arange(self._steps + 1)[None], steps[:, None])
        return walked(self.student.sees(self._asked(shown)), self._placed(shown.begun), self._walk, path)

    def _asked(self, shown: Shown) -> Asked:
        said = {name: self._placed(tensor) for name, tensor in shown.said.items()}
        return Asked(said, {}, self._placed(shown.guidance))

    def _placed(self, tensor: Tensor) -> Tensor:
        device: torch.device = next(self.unet.parameters()).device
        return tensor.to(device)
