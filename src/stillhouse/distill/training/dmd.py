"""Distribution matching distillation (DMD, Yin et al., arXiv 2311.18828), combined with trajectory regression.

A second network, the fake score network, is trained to denoise the student's samples. The fake score network and the
teacher predict the clean picture of a noised sample of the student. The difference of the two predictions is the
gradient of the KL divergence between the distributions of student and teacher (equations 3, 4 and 7).

Regression alone blurs: a one-step student predicts the mean over all pictures that are possible for its input.
Distribution matching removes the blur. Without the regression, distribution matching would let the student collapse to
few kinds of pictures (section 4.3).
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
"""Smallest and largest timestep at which the student's samples are noised, as shares of the schedule's timesteps."""
_MIN_DISTANCE = 1e-3
"""Smallest divisor of the normalised gradient in `score_difference`, which prevents a division by zero."""


@dataclass(frozen=True, kw_only=True)
class DistributionMatching:
    """Training task for the loop `fit`: a student learns by regression and by distribution matching (DMD).

    The student and the fake score network (the denoiser of the student's samples) are trained together, and the
    checkpoints contain both networks.

    Args:
        regression: training of the same student by trajectory regression, which also samples the student.
        teacher: denoiser with guidance, whose predictions give the real score.
        fake_score: the fake score network, a copy of the teacher's network at first.
        uncond: the denoiser's inputs of the negative prompt, by name, float32, one row.
        weight: weight of the matching loss; the regression loss has weight 1.
    """

    regression: TrajectoryRegressionStage
    teacher: Denoiser
    fake_score: Any
    uncond: DenoiserInputs
    weight: float

    @property
    def name(self) -> str:
        """Stem of the names of checkpoints and logs."""
        return self.regression.name

    @property
    def fingerprint(self) -> str:
        """Hash of teacher, data and settings; checkpoints with another fingerprint are refused."""
        return self.regression.fingerprint

    @property
    def recipe(self) -> StageRecipe:
        """Hyper-parameters of the training."""
        return self.regression.recipe

    @cached_property
    def network(self) -> nn.Module:
        """The networks that are trained, as one module: the student and the fake score network."""
        return nn.ModuleDict({"student": self.regression.network, "fake_score": self.fake_score})

    @property
    def student(self) -> Denoiser:
        """The student's network with its noise schedule and prediction type."""
        return self.regression.student

    @property
    def eval_samples(self) -> int:
        """Number of trajectories in each evaluation."""
        return self.regression.eval_samples

    def loss(self, number: int) -> Tensor:
        """Return the sum of the regression loss, the matching loss and the fake score network's loss of batch `number`.

        Image-to-image examples have the regression loss only, because the teacher's distribution depends on the prompt,
        but not on the edited picture.
        """
        rng = np.random.default_rng((self.regression.seed, 8, number))
        rollout = self.regression.rollout(self.regression.sample_indices(rng, self.recipe.batch_size))
        loss = self.regression.weighted_error(rollout.student, rollout.teacher, rollout.levels)
        from_noise = rollout.kinds == 0
        return loss + self._matching_loss(rng, rollout, from_noise) if bool(from_noise.any()) else loss

    def evaluate(self) -> Mapping[str, float]:
        """Return PSNRs in dB between final latents of student and teacher on held-out trajectories.

        Returns:
            `latent_psnr` for trajectories from pure noise, and `edits` for image-to-image; a kind that is not among the
            held-out trajectories has no entry.
        """
        return self.regression.evaluate()

    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """Return final latents of student and teacher on held-out trajectories, float32 [count, C, h, w] each."""
        return self.regression.rollouts(count)

    def _matching_loss(self, rng: np.random.Generator, rollout: RolloutBatch, mask: Tensor) -> Tensor:
        """Return the weighted matching loss plus the fake score network's loss, a scalar.

        The loss is that of the student's samples in `rollout` that `mask`, bool [B], selects. `rng` decides noise
        levels and noise.
        """
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
    """Return the gradient of distribution matching, [B, C, h, w], normalised as in arXiv 2311.18828, equations 7, 8.

    Args:
        student: clean latents that the student sampled, [B, C, h, w].
        fake_score: clean latents that the fake score network predicts from the noised samples, [B, C, h, w].
        teacher: clean latents that the teacher predicts from the noised samples, [B, C, h, w].
    """
    distance = (student - teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    return (fake_score - teacher) / distance.clamp(min=_MIN_DISTANCE)


def _select_inputs(inputs: GuidedInputs, mask: Tensor, uncond: DenoiserInputs) -> GuidedInputs:
    """Return the conditioning of the samples that a mask selects, with the negative prompt added for guidance.

    Args:
        inputs: conditioning of B samples.
        mask: which samples are selected, bool [B].
        uncond: the denoiser's inputs of the negative prompt, by name, one row.
    """
    count = int(mask.sum())
    cond = {name: tensor[mask.to(tensor.device)] for name, tensor in inputs.cond.items()}
    negative = {name: row.to(cond[name]).expand(count, *row.shape[1:]) for name, row in uncond.items()}
    return GuidedInputs(cond, negative, inputs.guidance[mask.to(inputs.guidance.device)])
