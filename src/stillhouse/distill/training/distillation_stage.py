"""Training of one student in a chain of students, in which each student is the teacher of the next."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import add_noise, make_grid
from stillhouse.distill.data.latent_dataset import LatentBatch, LatentDataset
from stillhouse.distill.training.methods import DistillationMethod
from stillhouse.distill.training.networks import Denoiser, DenoiserInputs, GuidedInputs
from stillhouse.distill.training.student_stage import StudentStage, Weighting
from stillhouse.distill.training.targets import DenoiseFn, Levels, LevelTable, ddim_rollout, make_level_table

_EVAL_STEPS = 20
"""Number of sampling steps in the evaluation of a student that may be sampled at any timesteps."""


@dataclass(frozen=True, kw_only=True)
class DistillationStage(StudentStage):
    """Training task for the loop `fit`: a student learns from a teacher by a distillation method.

    See `StudentStage` for the other fields. The fingerprint covers teacher, data and settings.

    Args:
        method: distillation method, which decides noise levels and targets of the examples.
        teacher: denoiser with frozen weights.
        dataset: source of clean latents and text inputs.
        guidance: smallest and largest guidance scale of the examples.
    """

    method: DistillationMethod
    teacher: Denoiser
    dataset: LatentDataset
    guidance: tuple[float, float]

    def loss(self, number: int) -> Tensor:
        """Return the loss of batch `number`, a scalar with gradients in the student's network.

        The batch number and the seed alone decide samples, guidance scales, noise levels and noise.
        """
        rng = np.random.default_rng((self.seed, 2, number))
        count = self.recipe.batch_size
        batch = self.dataset.batch(rng, count)
        scales = torch.from_numpy(rng.uniform(*self.guidance, size=count).astype(np.float32))
        inputs = self._guided_inputs(batch, scales)
        paths = self.method.sample_paths(rng, count)
        levels = self.method.level_table.at(paths[:, 0])
        noise = torch.from_numpy(rng.standard_normal(batch.latents.shape, dtype=np.float32))
        alpha, sigma = (level.view(-1, 1, 1, 1).float() for level in (levels.alpha, levels.sigma))
        z = add_noise(batch.latents, noise, alpha, sigma).to(self._device)
        with torch.no_grad():
            target = self.method.target(self.teacher.denoise_fn(inputs), self.student.denoise_fn(inputs), z, paths)
        error = (self.student.denoise_fn(inputs)(z, levels) - target) / sigma.to(z)
        return weighted_loss(error, levels, self.weighting, self.huber)

    def evaluate(self) -> Mapping[str, float]:
        """Return `latent_psnr`: the PSNR in dB between final latents of student and teacher from the same noise."""
        return {"latent_psnr": latent_psnr(*self.rollouts(self.eval_samples))}

    @torch.no_grad()
    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """Sample the student and the teacher from the same noise and return their final latents.

        The guidance scale is the middle of the trained range. Noise and prompts are the same in every call with this
        count.

        Returns:
            the student's latents and the teacher's latents, float32 [count, C, h, w] each.
        """
        rng = np.random.default_rng((self.seed, 3))
        batch = self.dataset.batch(rng, count)
        inputs = self._guided_inputs(batch, torch.full((count,), sum(self.guidance) / 2))
        noise = torch.from_numpy(rng.standard_normal(batch.latents.shape, dtype=np.float32)).to(self._device)
        pair, default = self.method.grid_pair, make_grid(self.schedule, _EVAL_STEPS)
        student = make_level_table(pair.student if pair else default)
        teacher = make_level_table(pair.teacher if pair else default)
        return (
            full_rollout(self.student.denoise_fn(inputs), noise, student),
            full_rollout(self.teacher.denoise_fn(inputs), noise, teacher),
        )

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    def _guided_inputs(self, batch: LatentBatch, scales: Tensor) -> GuidedInputs:
        def on_device(inputs: DenoiserInputs) -> DenoiserInputs:
            return {name: tensor.to(self._device) for name, tensor in inputs.items()}

        return GuidedInputs(
            on_device(batch.cond), on_device(self.dataset.negative_inputs(len(scales))), scales.to(self._device)
        )


def weighted_loss(error: Tensor, levels: Levels, weighting: Weighting, huber: float) -> Tensor:
    """Return the mean of the examples' weighted losses, a scalar.

    Args:
        error: error of the predicted velocity v, [B, C, h, w].
        levels: noise levels of the examples.
        weighting: weight of the clean picture's error by noise level: v (SNR + 1) or snr_trunc (max(SNR, 1)).
        huber: width of the pseudo-Huber loss of each example's root mean square error; 0: mean squared error.
    """
    losses = error.square().mean(dim=(1, 2, 3))
    if huber:
        losses = (losses + huber**2).sqrt() - huber
    if weighting == "snr_trunc":
        losses = losses * torch.maximum(levels.alpha, levels.sigma).square().to(losses)
    return losses.mean()


def latent_psnr(student: Tensor, teacher: Tensor) -> float:
    """Return the PSNR in dB of the student's latents against the teacher's latents, of the same shape.

    The peak signal is the difference between the largest and the smallest of the teacher's values.
    """
    error = float(((student - teacher) ** 2).mean())
    peak = float(teacher.max() - teacher.min())
    return 10 * float(np.log10(peak**2 / max(error, 1e-12)))


def full_rollout(denoise: DenoiseFn, noise: Tensor, table: LevelTable) -> Tensor:
    """Sample from pure noise [B, C, h, w] to the clean latents, and return the clean latents.

    Args:
        denoise: the network with its conditioning.
        noise: latents at the table's first level.
        table: noise levels of one timestep grid; one DDIM step is made between consecutive levels.
    """
    path = torch.arange(len(table.alphas)).expand(len(noise), -1)
    return ddim_rollout(denoise, noise, table, path)
