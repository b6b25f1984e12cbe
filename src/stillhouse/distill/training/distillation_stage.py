"""The training stage of one student of a progressive chain, its loss and its evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, add_noise, make_grid
from stillhouse.distill.data.latent_dataset import LatentBatch, LatentDataset
from stillhouse.distill.training.methods import DistillationMethod
from stillhouse.distill.training.networks import Denoiser, DenoiserInputs, GuidedInputs
from stillhouse.distill.training.targets import DenoiseFn, Levels, LevelTable, ddim_rollout, make_level_table
from stillhouse.fit.recipe import StageRecipe

Weighting = Literal["v", "snr_trunc"]
"""Weight of the squared error of the clean picture (Salimans and Ho, arXiv 2202.00512, section 4).

v: SNR + 1, which gives the error of v. snr_trunc: max(SNR, 1), which gives the larger of the errors of the clean
picture and of the noise."""

_EVAL_STEPS = 20
"""Number of sampling steps in the evaluation of a student that has no grid of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationStage:
    """A stage of `fit` that trains a student by a distillation method.

    Args:
        name, recipe, fingerprint: see `fit.stage.Stage`.
        method: distillation method, which decides levels and targets of the examples.
        teacher: denoiser with frozen weights.
        network: the student's network, which is trained.
        schedule, prediction: noise schedule and prediction type of the student.
        dataset: source of clean latents and text inputs.
        guidance: smallest and largest guidance scale of the examples.
        weighting: weights of errors by noise level, see `Weighting`.
        huber: width of the pseudo-Huber loss; 0: squared error.
        seed: decides examples and noise.
        eval_samples: number of pictures in each evaluation.
    """

    name: str
    recipe: StageRecipe
    method: DistillationMethod
    teacher: Denoiser
    network: Any
    schedule: Schedule
    prediction: Prediction
    dataset: LatentDataset
    guidance: tuple[float, float]
    weighting: Weighting = "v"
    huber: float = 0.0
    seed: int = 0
    eval_samples: int = 16
    fingerprint: str = ""

    @property
    def student(self) -> Denoiser:
        """The student's network with its noise schedule and prediction type."""
        return Denoiser(self.network, self.schedule, self.prediction)

    def loss(self, number: int) -> Tensor:
        """Return the loss of batch `number`."""
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
        """Return `latent_psnr` between the student's and the teacher's final latents from the same noise."""
        return {"latent_psnr": latent_psnr(*self.rollouts(self.eval_samples))}

    @torch.no_grad()
    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """Sample student and teacher from the same noise and return the final latents of both, [count, C, h, w].

        The guidance scale is the middle of the trained range; noise and prompts are the same in every call.
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
    """Return the mean loss of a batch, a scalar.

    Args:
        error: error of v, [B, C, h, w].
        levels: noise levels of the examples.
        weighting: see `Weighting`.
        huber: width of the pseudo-Huber loss of each example's root mean square; 0: squared error.
    """
    losses = error.square().mean(dim=(1, 2, 3))
    if huber:
        losses = (losses + huber**2).sqrt() - huber
    if weighting == "snr_trunc":
        losses = losses * torch.maximum(levels.alpha, levels.sigma).square().to(losses)
    return losses.mean()


def latent_psnr(student: Tensor, teacher: Tensor) -> float:
    """Return the PSNR of the student's latents in dB; the peak is the range of the teacher's values."""
    error = float(((student - teacher) ** 2).mean())
    peak = float(teacher.max() - teacher.min())
    return 10 * float(np.log10(peak**2 / max(error, 1e-12)))


def full_rollout(denoise: DenoiseFn, noise: Tensor, table: LevelTable) -> Tensor:
    """Sample over all levels of a table, one DDIM step each, and return the final latents."""
    path = torch.arange(len(table.alphas)).expand(len(noise), -1)
    return ddim_rollout(denoise, noise, table, path)
