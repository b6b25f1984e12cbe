"""First part of training the model that ships with the package: the autoencoder."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stillhouse.shapes.caption import describe
from stillhouse.shapes.scene import render_scene, sample_scene
from stillhouse.shapes.train.architectures import build_autoencoder
from stillhouse.shapes.train.pictures import (
    full_pictures,
    mean_scores,
    outline_crops,
    seeded_rng,
    to_pictures,
    to_tensor,
)
from stillhouse.shapes.train.training_plan import TrainingPlan

_EVAL_SAMPLES = 200
_FULL_PICTURES_FROM, _EDGES_FROM = 0.85, 0.6
_DIVERGENCE_WEIGHT, _EDGE_WEIGHT = 1e-4, 0.3


class AutoencoderStage:
    """Training task for the loop `fit`: the autoencoder learns to reconstruct rendered pictures.

    The loss is the absolute error plus the squared error plus a small KL divergence. After 60 % of the updates the
    error of the differences between adjacent pixels is added. The examples are crops around outlines in the first 85 %
    of the updates, and full pictures after that.

    Args:
        plan: seed, and hyper-parameters of the training.
    """

    name = "autoencoder"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan) -> None:
        self.seed, self.recipe = plan.seed, plan.autoencoder
        self.network: Any = build_autoencoder()
        rng = seeded_rng(self.seed, 1)
        self._scenes = [sample_scene(rng) for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> torch.Tensor:
        """Return the loss of batch number `update`, a scalar with gradients."""
        pictures = self._batch(update)
        posterior = self.network.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(update))
        error = self.network.decode(posterior.mean + posterior.std * noise).sample - pictures
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss: torch.Tensor = error.abs().mean() + (error**2).mean() + _DIVERGENCE_WEIGHT * divergence
        if update > _EDGES_FROM * self.recipe.updates:
            edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
            loss = loss + _EDGE_WEIGHT * edges
        return loss

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate the reconstruction of 200 pictures.

        Returns:
            scores of the reconstructed pictures by name: the oracle's mean scores, which no denoiser can exceed, and
            `psnr`, the PSNR in dB. The oracle recognises the figures in pictures.
        """
        originals = [render_scene(scene) for scene in self._scenes]
        decoded = [
            reconstruct(self.network, to_tensor(originals[start : start + 50])) for start in range(0, _EVAL_SAMPLES, 50)
        ]
        pictures = np.concatenate(decoded)
        error = float(((pictures.astype(np.float32) - np.stack(originals)) ** 2).mean())
        scores = mean_scores(pictures, [describe(scene) for scene in self._scenes])
        return {**scores, "psnr": 10 * math.log10(255**2 / error)}

    def _batch(self, update: int) -> torch.Tensor:
        rng = seeded_rng(self.seed, 2, update)
        if update >= _FULL_PICTURES_FROM * self.recipe.updates:
            return full_pictures(rng, self.recipe.batch_size // 4)
        return outline_crops(rng, self.recipe.batch_size)


def reconstruct(autoencoder: Any, pictures: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Encode pictures and decode the modes of their posteriors, uint8 [pictures, height, width, 3].

    Args:
        autoencoder: diffusers' AutoencoderKL.
        pictures: float32 [pictures, 3, height, width] from -1 to 1.
    """
    return to_pictures(autoencoder.decode(autoencoder.encode(pictures).latent_dist.mode()).sample)
