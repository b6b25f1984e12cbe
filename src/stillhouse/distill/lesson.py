"""A lesson: one student learns one method from one teacher. `fit` runs it, as it runs whatever learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, grid, noised
from stillhouse.distill.methods import Method
from stillhouse.distill.networks import Asked, Denoiser
from stillhouse.distill.pairs import Pairs
from stillhouse.distill.targets import Levels, Sees, Walk, walk_of, walked
from stillhouse.fit.recipe import StageRecipe

Weighting = Literal["v", "snr_trunc"]
"""v: the error of v as it is, SNR + 1 of the clean picture's. snr_trunc: the larger of the errors of the clean picture
and of the noise, max(SNR, 1) of the clean picture's (Salimans and Ho, arXiv 2202.00512, section 4)."""

_ANY_STEPS = 20
"""Of the walk by which a student is judged that was not taught to walk a grid of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A stage of `fit`.

    Args:
        name: of its checkpoints.
        recipe: how long and how fast.
        method: where it is taught, and what.
        teacher: is asked, and stays as it is.
        unet: learns.
        schedule, prediction: the student's.
        pairs: what both look at.
        guidance: the scales that the student will be asked for, the least and the most.
        weighting: of errors by their levels.
        huber: width of the pseudo-Huber loss; 0, squares.
        seed: of everything that is drawn.
        judged: pictures in each judgement.
    """

    name: str
    recipe: StageRecipe
    method: Method
    teacher: Denoiser
    unet: Any
    schedule: Schedule
    prediction: Prediction
    pairs: Pairs
    guidance: tuple[float, float]
    weighting: Weighting = "v"
    huber: float = 0.0
    seed: int = 0
    judged: int = 64

    @property
    def network(self) -> Any:
        """What learns."""
        return self.unet

    @property
    def student(self) -> Denoiser:
        """The same, as it is asked."""
        return Denoiser(self.unet, self.schedule, self.prediction)

    def loss(self, update: int) -> Tensor:
        """Of a fresh batch, decided by the number of the update alone."""
        rng = np.random.default_rng((self.seed, 2, update))
        count = self.recipe.batch
        pair = self.pairs.batch(rng, count)
        scales = torch.from_numpy(rng.uniform(*self.guidance, size=count).astype(np.float32))
        asked = Asked(pair.said, self.pairs.nothing(count), scales)
        paths = self.method.paths(rng, count)
        at = self.method.walk.at(paths[:, 0])
        noise = torch.from_numpy(rng.standard_normal(pair.latents.shape, dtype=np.float32))
        alpha, sigma = (level.view(-1, 1, 1, 1).float() for level in (at.alpha, at.sigma))
        z = noised(pair.latents, noise, alpha, sigma)
        with torch.no_grad():
            target = self.method.target(self.teacher.sees(asked), self.student.sees(asked), z, paths)
        error = (self.student.sees(asked)(z, at) - target) / sigma
        return self._weighed(error, at)

    def judge(self) -> Mapping[str, float]:
        """How close it comes to its teacher from the same noise: PSNR of latents in dB, their spread taken as peak."""
        rng = np.random.default_rng((self.seed, 3))
        pair = self.pairs.batch(rng, self.judged)
        scales = torch.full((self.judged,), sum(self.guidance) / 2)
        asked = Asked(pair.said, self.pairs.nothing(self.judged), scales)
        noise = torch.from_numpy(rng.standard_normal(pair.latents.shape, dtype=np.float32))
        served = walk_of(self.method.grid or grid(self.schedule, _ANY_STEPS))
        ours = ended(self.student.sees(asked), noise, served)
        theirs = ended(self.teacher.sees(asked), noise, self.method.walk if self.method.grid else served)
        error = float(((ours - theirs) ** 2).mean())
        spread = float(theirs.max() - theirs.min())
        return {"agreement": 10 * float(np.log10(spread**2 / max(error, 1e-12)))}

    def _weighed(self, error: Tensor, at: Levels) -> Tensor:
        """Squares, or pseudo-Huber, of the error of v."""
        each = error.square().mean(dim=(1, 2, 3))
        if self.huber:
            each = (each + self.huber**2).sqrt() - self.huber
        if self.weighting == "snr_trunc":
            each = each * torch.maximum(at.alpha, at.sigma).square().to(each)
        return each.mean()


def ended(sees: Sees, noise: Tensor, walk: Walk) -> Tensor:
    """Where a network comes that walks all of a grid."""
    places = torch.arange(len(walk.alphas)).expand(len(noise), -1)
    return walked(sees, noise, walk, places)
