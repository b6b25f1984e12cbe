"""Distribution matching distillation (DMD, Yin et al., arXiv 2311.18828), combined with trajectory regression.

A second network, the fake score network, is trained to denoise the student's samples. For a noised sample of the
student, the fake score network and the teacher predict the clean picture; the difference of their predictions is the
gradient of the KL divergence between the distributions of student and teacher (equations 3, 4 and 7).

Regression alone makes a one-step student predict the mean over all pictures that it cannot distinguish. Distribution
matching removes this blur; the regression keeps it from collapsing to few modes (section 4.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.diffusion import add_noise, noise_levels
from stillhouse.distill.training.networks import Denoiser, DenoiserInputs, GuidedInputs
from stillhouse.distill.training.targets import Levels
from stillhouse.distill.training.trajectory_regression import RolloutBatch, TrajectoryRegressionStage
from stillhouse.fit.recipe import StageRecipe

_MIN_NOISE, _MAX_NOISE = 0.02, 0.98
"""Smallest and largest noise level of the noised samples, as shares of the schedule."""
_MIN_DISTANCE = 1e-3
"""Lower bound of the distance by which a difference of predictions is divided."""


@dataclass(frozen=True, kw_only=True)
class DistributionMatching:
    """A stage of `fit` that trains a student and a fake score network; its checkpoints hold both.

    Args:
        regression: trajectory regression of the student; its rollouts are the student's samples.
        teacher: denoiser with guidance, whose predictions give the real score.
        fake_score: denoiser of the fake score, initialised from the teacher.
        uncond: inputs of the negative prompt, by name, one row.
        weight: weight of the matching loss relative to the regression loss.
    """

    regression: TrajectoryRegressionStage
    teacher: Denoiser
    fake_score: Any
    uncond: DenoiserInputs
    weight: float

    @property
    def name(self) -> str:
        """See `fit.stage.Stage`."""
        return self.regression.name

    @property
    def fingerprint(self) -> str:
        """See `fit.stage.Stage`."""
        return self.regression.fingerprint

    @property
    def recipe(self) -> StageRecipe:
        """See `fit.stage.Stage`."""
        return self.regression.recipe

    @cached_property
    def network(self) -> nn.Module:
        """The trained networks: the student and the fake score network."""
        return nn.ModuleDict({"student": self.regression.network, "fake_score": self.fake_score})

    @property
    def student(self) -> Denoiser:
        """The student's network with its noise schedule and prediction type."""
        return self.regression.student

    @property
    def eval_samples(self) -> int:
        """See `TrajectoryRegressionStage`."""
        return self.regression.eval_samples

    def loss(self, number: int) -> Tensor:
        """Return the sum of the regression loss, the matching loss and the fake score's loss for batch `number`.

        Edits have no matching loss: the teacher's distribution is conditioned on the prompt, not on the edited picture.
        """
        rng = np.random.default_rng((self.regression.seed, 8, number))
        rollout = self.regression.rollout(self.regression.sample_indices(rng, self.recipe.batch_size))
        loss = self.regression.weighted_error(rollout.student, rollout.teacher, rollout.levels)
        from_noise = rollout.kinds == 0
        return loss + self._matching_loss(rng, rollout, from_noise) if bool(from_noise.any()) else loss

    def evaluate(self) -> Mapping[str, float]:
        """See `TrajectoryRegressionStage`."""
        return self.regression.evaluate()

    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """See `TrajectoryRegressionStage`."""
        return self.regression.rollouts(count)

    def _matching_loss(self, rng: np.random.Generator, rollout: RolloutBatch, mask: Tensor) -> Tensor:
        """Return the matching loss and the fake score network's loss of the samples that the mask selects."""
        student = rollout.student[mask.to(rollout.student.device)]
        inputs = _select_inputs(rollout.inputs, mask, self.uncond)
        levels = self._sample_levels(rng, len(student))
        noise = torch.from_numpy(rng.standard_normal(student.shape, dtype=np.float32)).to(student)
        alpha, sigma = (level.view(-1, 1, 1, 1).to(student) for level in (levels.alpha, levels.sigma))
        sample = student.detach()
        z = add_noise(sample, noise, alpha, sigma)
        fake = Denoiser(self.fake_score, self.teacher.schedule, self.teacher.prediction)
        predicted = fake.single_row_fn(inputs)(z, levels)
        with torch.no_grad():
            gradient = score_difference(sample, predicted, self.teacher.denoise_fn(inputs)(z, levels))
        matching = 0.5 * (student - (sample - gradient)).square().mean()
        denoising = ((predicted - sample) / sigma).square().mean()
        return self.weight * matching + denoising

    def _sample_levels(self, rng: np.random.Generator, count: int) -> Levels:
        alphas, sigmas = (torch.from_numpy(np.array(level)) for level in noise_levels(self.teacher.schedule))
        low, high = (round(share * len(alphas)) for share in (_MIN_NOISE, _MAX_NOISE))
        timesteps = torch.from_numpy(rng.integers(low, high, size=count))
        return Levels(timesteps.double(), alphas[timesteps], sigmas[timesteps])


def score_difference(student: Tensor, fake_score: Tensor, teacher: Tensor) -> Tensor:
    """Return the DMD gradient [B, C, h, w], normalised as in arXiv 2311.18828, equations 7 and 8.

    Args:
        student: samples of the student, [B, C, h, w].
        fake_score, teacher: clean pictures that these two networks predict from the noised samples.
    """
    distance = (student - teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (fake_score - teacher) / distance.clamp(min=_MIN_DISTANCE)


def _select_inputs(inputs: GuidedInputs, mask: Tensor, uncond: DenoiserInputs) -> GuidedInputs:
    """Return the inputs of the rows that the mask selects, together with the negative prompt."""
    count = int(mask.sum())
    cond = {name: tensor[mask.to(tensor.device)] for name, tensor in inputs.cond.items()}
    negative = {name: row.to(cond[name]).expand(count, *row.shape[1:]) for name, row in uncond.items()}
    return GuidedInputs(cond, negative, inputs.guidance[mask.to(inputs.guidance.device)])
