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
from stillhouse.distill.training.networks import Denoiser, GuidedInputs, UNetInputs
from stillhouse.distill.training.targets import Levels
from stillhouse.distill.training.trajectory_regression import RolloutBatch, TrajectoryRegressionStage
from stillhouse.fit.recipe import StageRecipe

_MIN_NOISE, _MAX_NOISE = 0.02, 0.98
"""Of the schedule, where pictures are shown with noise over them."""
_MIN_DISTANCE = 1e-3
"""Of the distance by which a difference is divided."""


@dataclass(frozen=True, kw_only=True)
class DistributionMatching:
    """A stage of `fit`. What it fits are two networks: a checkpoint holds both, and a student is made of one.

    Args:
        walks: the student's lesson, which it goes through from beginning to end at every example.
        teacher: is asked, guided.
        fake: U-Net that learns what the student draws; it begins as the teacher.
        unsaid: the negative prompt, by input, one row.
        weight: of the matching beside the walks.
    """

    regression: TrajectoryRegressionStage
    teacher: Denoiser
    fake_score: Any
    uncond: UNetInputs
    weight: float

    @property
    def name(self) -> str:
        """Of its checkpoints."""
        return self.regression.name

    @property
    def fingerprint(self) -> str:
        """See `fit.stage.Stage`."""
        return self.regression.fingerprint

    @property
    def recipe(self) -> StageRecipe:
        """How long and how fast."""
        return self.regression.recipe

    @cached_property
    def network(self) -> nn.Module:
        """What learns: the student, and the fake."""
        return nn.ModuleDict({"student": self.regression.unet, "fake": self.fake_score})

    @property
    def student(self) -> Denoiser:
        """The student, as it is asked."""
        return self.regression.student

    @property
    def eval_samples(self) -> int:
        """See `WalkLesson`."""
        return self.regression.eval_samples

    def loss(self, number: int) -> Tensor:
        """Of a fresh batch, decided by its number alone: the student's on its walks, its matching, and the fake's.

        Edits are not matched: a teacher who is told their prompt knows nothing of the picture that they begin at.
        """
        rng = np.random.default_rng((self.regression.seed, 8, number))
        ended = self.regression.rollout(self.regression.sample_indices(rng, self.recipe.batch_size))
        loss = self.regression.weighted_error(ended.student, ended.teacher, ended.levels)
        matched = ended.kinds == 0
        return loss + self._matching_loss(rng, ended, matched) if bool(matched.any()) else loss

    def evaluate(self) -> Mapping[str, float]:
        """See `WalkLesson`."""
        return self.regression.evaluate()

    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """See `WalkLesson`."""
        return self.regression.rollouts(count)

    def _matching_loss(self, rng: np.random.Generator, rollout: RolloutBatch, mask: Tensor) -> Tensor:
        """The rest of the loss, of those pictures of a batch."""
        ours = rollout.student[mask.to(rollout.student.device)]
        asked = _select_inputs(rollout.inputs, mask, self.uncond)
        at = self._sample_levels(rng, len(ours))
        noise = torch.from_numpy(rng.standard_normal(ours.shape, dtype=np.float32)).to(ours)
        alpha, sigma = (level.view(-1, 1, 1, 1).to(ours) for level in (at.alpha, at.sigma))
        shown = ours.detach()
        z = add_noise(shown, noise, alpha, sigma)
        seen = Denoiser(self.fake_score, self.teacher.schedule, self.teacher.prediction).single_row_fn(asked)(z, at)
        with torch.no_grad():
            away = score_difference(shown, seen, self.teacher.denoise_fn(asked)(z, at))
        matching = 0.5 * (ours - (shown - away)).square().mean()
        learning = ((seen - shown) / sigma).square().mean()
        return self.weight * matching + learning

    def _sample_levels(self, rng: np.random.Generator, count: int) -> Levels:
        alphas, sigmas = (torch.from_numpy(np.array(level)) for level in noise_levels(self.teacher.schedule))
        low, high = (round(share * len(alphas)) for share in (_MIN_NOISE, _MAX_NOISE))
        timesteps = torch.from_numpy(rng.integers(low, high, size=count))
        return Levels(timesteps.double(), alphas[timesteps], sigmas[timesteps])


def score_difference(student: Tensor, fake_score: Tensor, teacher: Tensor) -> Tensor:
    """How much what the fake sees differs from what the teacher sees, in parts of the picture's distance from that.

    Args:
        ours: the student's pictures, [B, C, h, w].
        fake, teacher: what both see in them with noise over them.
    """
    away = (student - teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (fake_score - teacher) / away.clamp(min=_MIN_DISTANCE)


def _select_inputs(inputs: GuidedInputs, mask: Tensor, uncond: UNetInputs) -> GuidedInputs:
    """Of a batch what some are asked, with the negative prompt."""
    count = int(mask.sum())
    said = {name: tensor[mask.to(tensor.device)] for name, tensor in inputs.cond.items()}
    nothing = {name: row.to(said[name]).expand(count, *row.shape[1:]) for name, row in uncond.items()}
    return GuidedInputs(said, nothing, inputs.guidance[mask.to(inputs.guidance.device)])
