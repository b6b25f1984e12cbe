"""A lesson on what is drawn: beside where its teacher came, a student is told how its pictures differ from a teacher's.

A second network, the fake, learns what the student draws, as its teacher once learnt from pictures. Shown a picture of
the student's with noise over it, both see a clean one. Where the two differ, the student draws what its teacher seldom
does, and moves towards what that sees: by the difference of two scores, the gradient of the divergence between what the
two networks draw (Yin et al., arXiv 2311.18828, equations 3, 4 and 7).

A student of one step that learns from walks alone draws the middle of all that it cannot tell apart. Matching decides;
and the walks see to it that it decides for all of them, and not for a few (section 4.3 there).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.diffusion import add_noise, noise_levels
from stillhouse.distill.training.networks import Asked, Denoiser, Inputs
from stillhouse.distill.training.targets import Levels
from stillhouse.distill.training.trajectory_regression import Ended, WalkLesson
from stillhouse.fit.recipe import StageRecipe

_FROM, _TO = 0.02, 0.98
"""Of the schedule, where pictures are shown with noise over them."""
_LEAST = 1e-3
"""Of the distance by which a difference is divided."""


@dataclass(frozen=True, kw_only=True)
class MatchLesson:
    """A stage of `fit`. What it fits are two networks: a checkpoint holds both, and a student is made of one.

    Args:
        walks: the student's lesson, which it goes through from beginning to end at every example.
        teacher: is asked, guided.
        fake: U-Net that learns what the student draws; it begins as the teacher.
        unsaid: the negative prompt, by input, one row.
        weight: of the matching beside the walks.
    """

    walks: WalkLesson
    teacher: Denoiser
    fake: Any
    unsaid: Inputs
    weight: float

    @property
    def name(self) -> str:
        """Of its checkpoints."""
        return self.walks.name

    @property
    def identity(self) -> str:
        """See `fit.stage.Stage`."""
        return self.walks.identity

    @property
    def recipe(self) -> StageRecipe:
        """How long and how fast."""
        return self.walks.recipe

    @cached_property
    def network(self) -> nn.Module:
        """What learns: the student, and the fake."""
        return nn.ModuleDict({"student": self.walks.unet, "fake": self.fake})

    @property
    def student(self) -> Denoiser:
        """The student, as it is asked."""
        return self.walks.student

    @property
    def judged(self) -> int:
        """See `WalkLesson`."""
        return self.walks.judged

    def loss(self, number: int) -> Tensor:
        """Of a fresh batch, decided by its number alone: the student's on its walks, its matching, and the fake's.

        Edits are not matched: a teacher who is told their prompt knows nothing of the picture that they begin at.
        """
        rng = np.random.default_rng((self.walks.seed, 8, number))
        ended = self.walks.ended(self.walks.drawn(rng, self.recipe.batch))
        loss = self.walks.error(ended.ours, ended.theirs, ended.at)
        matched = ended.kinds == 0
        return loss + self._matched(rng, ended, matched) if bool(matched.any()) else loss

    def judge(self) -> Mapping[str, float]:
        """See `WalkLesson`."""
        return self.walks.judge()

    def endings(self, count: int) -> tuple[Tensor, Tensor]:
        """See `WalkLesson`."""
        return self.walks.endings(count)

    def _matched(self, rng: np.random.Generator, ended: Ended, matched: Tensor) -> Tensor:
        """The rest of the loss, of those pictures of a batch."""
        ours = ended.ours[matched.to(ended.ours.device)]
        asked = _of(ended.asked, matched, self.unsaid)
        at = self._levels(rng, len(ours))
        noise = torch.from_numpy(rng.standard_normal(ours.shape, dtype=np.float32)).to(ours)
        alpha, sigma = (level.view(-1, 1, 1, 1).to(ours) for level in (at.alpha, at.sigma))
        shown = ours.detach()
        z = add_noise(shown, noise, alpha, sigma)
        seen = Denoiser(self.fake, self.teacher.schedule, self.teacher.prediction).alone(asked)(z, at)
        with torch.no_grad():
            away = difference(shown, seen, self.teacher.sees(asked)(z, at))
        matching = 0.5 * (ours - (shown - away)).square().mean()
        learning = ((seen - shown) / sigma).square().mean()
        return self.weight * matching + learning

    def _levels(self, rng: np.random.Generator, count: int) -> Levels:
        alphas, sigmas = (torch.from_numpy(np.array(level)) for level in noise_levels(self.teacher.schedule))
        low, high = (round(share * len(alphas)) for share in (_FROM, _TO))
        timesteps = torch.from_numpy(rng.integers(low, high, size=count))
        return Levels(timesteps.double(), alphas[timesteps], sigmas[timesteps])


def difference(ours: Tensor, fake: Tensor, teacher: Tensor) -> Tensor:
    """How much what the fake sees differs from what the teacher sees, in parts of the picture's distance from that.

    Args:
        ours: the student's pictures, [B, C, h, w].
        fake, teacher: what both see in them with noise over them.
    """
    away = (ours - teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (fake - teacher) / away.clamp(min=_LEAST)


def _of(asked: Asked, some: Tensor, unsaid: Inputs) -> Asked:
    """Of a batch what some are asked, with the negative prompt."""
    count = int(some.sum())
    said = {name: tensor[some.to(tensor.device)] for name, tensor in asked.said.items()}
    nothing = {name: row.to(said[name]).expand(count, *row.shape[1:]) for name, row in unsaid.items()}
    return Asked(said, nothing, asked.guidance[some.to(asked.guidance.device)])
