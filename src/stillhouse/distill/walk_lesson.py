"""A lesson on walks that are kept: the student is shown where its teacher was, and told where it came."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Grid, Prediction, Schedule
from stillhouse.distill.lesson import Weighting, agreement, ended, weighed
from stillhouse.distill.networks import Asked, Denoiser
from stillhouse.distill.targets import Walk, landing, walk_of, walked
from stillhouse.distill.walks import KeptWalks, Shown
from stillhouse.fit.recipe import StageRecipe

OWN = 0.5
"""Of the examples that are not at pure noise, those that begin where the student itself comes. It is then told the way
back to its teacher's walk: where it is served, its own steps are all that it sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkLesson:
    """A stage of `fit`.

    Args:
        name: of its checkpoints.
        recipe: how long and how fast.
        unet: learns.
        schedule, prediction: the student's.
        walks: the teacher's, two or more; the last `judged` of them, half at most, are judged by and not learnt from.
        kept: the grid whose levels the walks are kept at.
        served: the student's: a part of it, from the first level on.
        weighting, huber, seed, judged, identity: as in `Lesson`.
    """

    name: str
    recipe: StageRecipe
    unet: Any
    schedule: Schedule
    prediction: Prediction
    walks: KeptWalks
    kept: Grid
    served: Grid
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
        count, walk, places = self.recipe.batch, walk_of(self.served), self._places
        steps = torch.from_numpy(rng.integers(self.served.steps, size=count))
        chosen = torch.from_numpy(rng.integers(self._learnt, size=count))
        shown = self.walks.shown(chosen, places[steps], places[steps + 1])
        here = self._placed(shown.here)
        own = torch.from_numpy(rng.random(count) < OWN) & (steps > 0)
        if bool(own.any()):
            here[own] = self._mine(self.walks.shown(chosen[own], places[:1], places[:1]), walk, steps[own])
        at, after = walk.at(steps), walk.at(steps + 1)
        target = landing(here, self._placed(shown.reached), at, after)
        seen = self.student.sees(self._asked(shown))(here, at)
        error = (seen - target) / at.sigma.view(-1, 1, 1, 1).to(here)
        return weighed(error, at, self.weighting, self.huber)

    def judge(self) -> Mapping[str, float]:
        """How close it comes to its teacher from the same noise, see `lesson.agreement`."""
        return {"agreement": agreement(*self.endings(self.judged))}

    @torch.no_grad()
    def endings(self, count: int) -> tuple[Tensor, Tensor]:
        """Where student and teacher come from the same noise, on walks that are not learnt from; see `Lesson`."""
        chosen = self._learnt + torch.arange(count) % (len(self.walks) - self._learnt)
        shown = self.walks.shown(chosen, self._places[:1].expand(count), self._places[-1:].expand(count))
        ours = ended(self.student.sees(self._asked(shown)), self._placed(shown.begun), walk_of(self.served))
        return ours, self._placed(shown.reached)

    @property
    def _learnt(self) -> int:
        """Walks that are learnt from: at least half of them."""
        return max(len(self.walks) - self.judged, (len(self.walks) + 1) // 2)

    @property
    def _places(self) -> Tensor:
        """Where the student's levels, CLEAN included, stand among those that are kept."""
        return torch.tensor([self.kept.points.index(point) for point in self.served.points])

    @torch.no_grad()
    def _mine(self, shown: Shown, walk: Walk, steps: Tensor) -> Tensor:
        """Where the student comes by itself, after so many steps of each walk, int64 [B]."""
        path = torch.minimum(torch.arange(self.served.steps)[None], steps[:, None])
        return walked(self.student.sees(self._asked(shown)), self._placed(shown.begun), walk, path)

    def _asked(self, shown: Shown) -> Asked:
        said = {name: self._placed(tensor) for name, tensor in shown.said.items()}
        return Asked(said, {}, self._placed(shown.guidance))

    def _placed(self, tensor: Tensor) -> Tensor:
        device: torch.device = next(self.unet.parameters()).device
        return tensor.to(device)
