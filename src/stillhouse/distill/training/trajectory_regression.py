"""A lesson on walks that are kept: the student is shown where its teacher was, and told where it came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, TimestepGrid
from stillhouse.distill.data.teacher_trajectories import KeptWalks, Shown
from stillhouse.distill.training.networks import Asked, Denoiser
from stillhouse.distill.training.stage import Weighting, agreement, weighed
from stillhouse.distill.training.targets import Levels, Walk, joined, landing, walk_of, walked
from stillhouse.fit.recipe import StageRecipe

OWN = 0.5
"""Of the examples that are not where their walk begins, those where the student itself comes. It is then told the way
back to its teacher's walk: where it is served, its own steps are all that it sees."""
EDITED = 0.25
"""Of the examples, edits, where walks are some: they are the shorter walks, and the easier ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """Where student and teacher come from the same beginnings, [B, C, h, w] both.

    Args:
        ours, theirs: of the student, with gradients where there are any, and of the teacher.
        asked: of both.
        at: the levels where the walks begin.
        kinds: of their grids, int64 [B], on the processor.
    """

    ours: Tensor
    theirs: Tensor
    asked: Asked
    at: Levels
    kinds: Tensor


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
    walks: KeptWalks
    kept: Sequence[TimestepGrid]
    served: Sequence[TimestepGrid]
    through: float = 0.0
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
        count = self.recipe.batch
        chosen, through = self.drawn(rng, count), round(self.through * count)
        total = torch.zeros((), device=next(self.unet.parameters()).device)
        if through:
            ended = self.ended(chosen[:through])
            total = total + self.error(ended.ours, ended.theirs, ended.at) * (through / count)
        if through < count:
            total = total + self._of_steps(rng, chosen[through:]) * (1 - through / count)
        return total

    def drawn(self, rng: np.random.Generator, count: int) -> Tensor:
        """So many walks to learn from, int64 [count]."""
        sizes = np.array([len(pool) for pool in self._pools])
        edits = rng.random(count) < (EDITED if sizes.all() else float(sizes[0] == 0))
        pool = edits.astype(np.int64)
        places = sizes[0] * pool + (rng.random(count) * sizes[pool]).astype(np.int64)
        return torch.cat(self._pools)[torch.from_numpy(places)]

    @cached_property
    def _pools(self) -> tuple[Tensor, Tensor]:
        """What is learnt from: walks from pure noise, and edits."""
        from_noise = self.walks.kinds[self._learnt] == 0
        return self._learnt[from_noise], self._learnt[~from_noise]

    def _of_steps(self, rng: np.random.Generator, chosen: Tensor) -> Tensor:
        """The loss of one step of each of these walks."""
        count, walk = len(chosen), self._walk
        steps = torch.from_numpy(rng.integers(self._steps, size=count))
        shown, begins = self._shown(chosen, steps, steps + 1), self._begins(chosen)
        here = self._placed(shown.here)
        own = (torch.from_numpy(rng.random(count) < OWN) & (steps > 0)).nonzero().squeeze(1)
        if len(own):
            here[own.to(here.device)] = self._mine(chosen[own], steps[own])
        at, after = walk.at(begins + steps), walk.at(begins + steps + 1)
        target = landing(here, self._placed(shown.reached), at, after)
        return self.error(self.student.sees(self._asked(shown))(here, at), target, at)

    def ended(self, walks: Tensor) -> Ended:
        """Where the student comes that walks all of its steps where these walks begin, int64 [B]."""
        steps = torch.full((len(walks),), self._steps)
        shown = self._shown(walks, torch.zeros_like(steps), steps)
        ours, at = self._walked(shown, walks, steps), self._walk.at(self._begins(walks))
        return Ended(ours, self._placed(shown.reached), self._asked(shown), at, self.walks.kinds[walks])

    def error(self, seen: Tensor, target: Tensor, at: Levels) -> Tensor:
        """The loss of clean pictures that are seen at these levels."""
        away = (seen - target) / at.sigma.view(-1, 1, 1, 1).to(seen)
        return weighed(away, at, self.weighting, self.huber)

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
        ended = self.ended(walks)
        return ended.ours, ended.theirs

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
        return torch.tensor([[kept.levels.index(point) for point in served.levels] for kept, served in pairs])

    def _shown(self, walks: Tensor, steps: Tensor, reached: Tensor) -> Shown:
        kinds = self.walks.kinds[walks]
        return self.walks.shown(walks, self._places[kinds, steps], self._places[kinds, reached])

    @torch.no_grad()
    def _mine(self, walks: Tensor, steps: Tensor) -> Tensor:
        nowhere = torch.zeros_like(steps)
        return self._walked(self._shown(walks, nowhere, nowhere), walks, steps)

    def _walked(self, shown: Shown, walks: Tensor, steps: Tensor) -> Tensor:
        """Where the student comes by itself, after so many steps of each of these walks, int64 [B]."""
        path = self._begins(walks)[:, None] + torch.minimum(torch.arange(self._steps + 1)[None], steps[:, None])
        return walked(self.student.sees(self._asked(shown)), self._placed(shown.begun), self._walk, path)

    def _asked(self, shown: Shown) -> Asked:
        said = {name: self._placed(tensor) for name, tensor in shown.said.items()}
        return Asked(said, {}, self._placed(shown.guidance))

    def _placed(self, tensor: Tensor) -> Tensor:
        device: torch.device = next(self.unet.parameters()).device
        return tensor.to(device)
