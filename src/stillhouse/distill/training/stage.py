"""A lesson: one student learns one method from one teacher. `fit` runs it, as it runs whatever learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, add_noise, make_grid
from stillhouse.distill.data.latent_dataset import LatentBatch, LatentDataset
from stillhouse.distill.training.methods import DistillationMethod
from stillhouse.distill.training.networks import Denoiser, GuidedInputs, UNetInputs
from stillhouse.distill.training.targets import DenoiseFn, Levels, LevelTable, ddim_rollout, make_level_table
from stillhouse.fit.recipe import StageRecipe

Weighting = Literal["v", "snr_trunc"]
"""v: the error of v as it is, SNR + 1 of the clean picture's. snr_trunc: the larger of the errors of the clean picture
and of the noise, max(SNR, 1) of the clean picture's (Salimans and Ho, arXiv 2202.00512, section 4)."""

_EVAL_STEPS = 20
"""Of the walk by which a student is judged that was not taught to walk a grid of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationStage:
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
        identity: see `fit.stage.Stage`.
    """

    name: str
    recipe: StageRecipe
    method: DistillationMethod
    teacher: Denoiser
    unet: Any
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
    def network(self) -> Any:
        """What learns."""
        return self.unet

    @property
    def student(self) -> Denoiser:
        """The same, as it is asked."""
        return Denoiser(self.unet, self.schedule, self.prediction)

    def loss(self, number: int) -> Tensor:
        """Of a fresh batch, decided by its number alone."""
        rng = np.random.default_rng((self.seed, 2, number))
        count = self.recipe.batch_size
        pair = self.dataset.batch(rng, count)
        asked = self._guided_inputs(pair, torch.from_numpy(rng.uniform(*self.guidance, size=count).astype(np.float32)))
        paths = self.method.sample_paths(rng, count)
        at = self.method.level_table.at(paths[:, 0])
        noise = torch.from_numpy(rng.standard_normal(pair.latents.shape, dtype=np.float32))
        alpha, sigma = (level.view(-1, 1, 1, 1).float() for level in (at.alpha, at.sigma))
        z = add_noise(pair.latents, noise, alpha, sigma).to(self._device)
        with torch.no_grad():
            target = self.method.target(self.teacher.denoise_fn(asked), self.student.denoise_fn(asked), z, paths)
        error = (self.student.denoise_fn(asked)(z, at) - target) / sigma.to(z)
        return weighted_loss(error, at, self.weighting, self.huber)

    def evaluate(self) -> Mapping[str, float]:
        """How close it comes to its teacher from the same noise, see `agreement`."""
        return {"agreement": latent_psnr(*self.rollouts(self.eval_samples))}

    @torch.no_grad()
    def rollouts(self, count: int) -> tuple[Tensor, Tensor]:
        """Where student and teacher come from the same noise: the latents of both, float32 [count, C, h, w].

        By scales in the middle of what the student is taught, and always of the same noise and prompts.
        """
        rng = np.random.default_rng((self.seed, 3))
        pair = self.dataset.batch(rng, count)
        asked = self._guided_inputs(pair, torch.full((count,), sum(self.guidance) / 2))
        noise = torch.from_numpy(rng.standard_normal(pair.latents.shape, dtype=np.float32)).to(self._device)
        one = self.method.grid_pair
        any_grid = make_grid(self.schedule, _EVAL_STEPS)
        ours = full_rollout(self.student.denoise_fn(asked), noise, make_level_table(one.student if one else any_grid))
        theirs = full_rollout(self.teacher.denoise_fn(asked), noise, make_level_table(one.teacher if one else any_grid))
        return ours, theirs

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.unet.parameters()).device
        return device

    def _guided_inputs(self, batch: LatentBatch, scales: Tensor) -> GuidedInputs:
        def placed(inputs: UNetInputs) -> UNetInputs:
            return {name: tensor.to(self._device) for name, tensor in inputs.items()}

        return GuidedInputs(
            placed(batch.cond), placed(self.dataset.negative_inputs(len(scales))), scales.to(self._device)
        )


def weighted_loss(error: Tensor, levels: Levels, weighting: Weighting, huber: float) -> Tensor:
    """Squares, or pseudo-Huber of that width, of the error of v, [B, C, h, w], in the mean; a scalar."""
    each = error.square().mean(dim=(1, 2, 3))
    if huber:
        each = (each + huber**2).sqrt() - huber
    if weighting == "snr_trunc":
        each = each * torch.maximum(levels.alpha, levels.sigma).square().to(each)
    return each.mean()


def latent_psnr(student: Tensor, teacher: Tensor) -> float:
    """PSNR of latents in dB, the spread of `theirs` taken as the peak."""
    error = float(((student - teacher) ** 2).mean())
    spread = float(teacher.max() - teacher.min())
    return 10 * float(np.log10(spread**2 / max(error, 1e-12)))


def full_rollout(denoise: DenoiseFn, noise: Tensor, table: LevelTable) -> Tensor:
    """Where a network comes that walks all of a grid."""
    places = torch.arange(len(table.alphas)).expand(len(noise), -1)
    return ddim_rollout(denoise, noise, table, places)
