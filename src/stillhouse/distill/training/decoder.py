"""Distil the autoencoder's decoder into a tiny decoder, because decoding dominates when sampling takes few steps.

The tiny decoder has one million weights instead of 50 million. It has no attention and no norms, like TAESD (Bohan,
2023). Its last upsampling is a pixel shuffle, so that no convolution runs at the full size of the picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.distill.data.latent_dataset import LatentDataset
from stillhouse.fit.recipe import StageRecipe
from stillhouse.pipelines.manifest import Latent

BLOCKS_PER_LEVEL = 2
"""Number of residual blocks at each resolution."""
_EDGE_WEIGHT = 1.0
"""Weight of the error of differences between adjacent pixels; the error of the pixels themselves has weight 1."""
_MAX_NOISE = 0.1
"""Largest standard deviation of the noise that is added to training latents, in units of scaled latents.

The noise is needed because latents that were sampled in few steps retain some noise."""


class TinyDecoder(nn.Module):
    """Network that decodes unscaled latents [B, c, h, w] into pictures [B, 3, h * downscale, w * downscale].

    Args:
        latent: number of channels, downscale (a power of two), scaling and shift factor of the latents.
        width: number of channels of the layers at the resolution of the latents. Each doubling of the resolution halves
            this number, but not below 16.
    """

    def __init__(self, latent: Latent, width: int) -> None:
        super().__init__()
        self.latent = latent
        doublings = latent.downscale.bit_length() - 1
        widths = [max(16, width >> number) for number in range(max(1, doublings))]
        layers: list[nn.Module] = [nn.Conv2d(latent.channels, widths[0], 3, padding=1)]
        for number, channels in enumerate(widths):
            layers += [_DecoderBlock(channels) for _ in range(BLOCKS_PER_LEVEL)]
            if number + 1 < len(widths):
                layers += [
                    nn.Upsample(scale_factor=2, mode="nearest"),
                    nn.Conv2d(channels, widths[number + 1], 3, padding=1),
                ]
        last = 2 if doublings else 1
        layers += [nn.Conv2d(widths[-1], 3 * last**2, 3, padding=1), nn.PixelShuffle(last)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Return pictures for unscaled latents [B, c, h, w], with values approximately from -1 to 1.

        Pictures are [B, 3, h * downscale, w * downscale].
        """
        scaled = (latent_sample - self.latent.shift_factor) * self.latent.scaling_factor
        # The latents are softly clipped at three standard deviations, because outliers would discolour whole regions of
        # the picture.
        output: Tensor = self.layers(3 * torch.tanh(scaled / 3))
        return output


class _DecoderBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = functional.silu(x + self.second(functional.silu(self.first(x))))
        return output


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStage:
    """Training task for the loop `fit`: a tiny decoder learns to reproduce the pictures of the autoencoder's decoder.

    Args:
        recipe: hyper-parameters of the training.
        decoder: the network that is trained.
        autoencoder: diffusers' AutoencoderKL, whose decoder is the teacher.
        latent: scaling and shift factor of the latents.
        dataset: source of clean scaled latents.
        crop: height and width in latents of the random crops that are decoded; smaller latents are used whole.
        seed: decides samples, crops and noise.
        eval_samples: number of pictures in each evaluation.
        name: stem of the names of checkpoints and logs.
        fingerprint: hash of the training data and settings; checkpoints with another fingerprint are refused.
    """

    recipe: StageRecipe
    decoder: TinyDecoder
    autoencoder: Any
    latent: Latent
    dataset: LatentDataset
    crop: int = 24
    seed: int = 0
    eval_samples: int = 32
    name: str = "decoder"
    fingerprint: str = ""

    @property
    def network(self) -> nn.Module:
        """The network that is trained: the tiny decoder."""
        return self.decoder

    def loss(self, number: int) -> Tensor:
        """Return the loss of batch `number`, a scalar with gradients.

        The loss is the mean absolute error of pixels plus that of the differences between adjacent pixels.
        """
        rng = np.random.default_rng((self.seed, 4, number))
        sample = self._sample_latents(rng, self.recipe.batch_size)
        deviation = torch.from_numpy(rng.uniform(0, _MAX_NOISE, len(sample)).astype(np.float32)).view(-1, 1, 1, 1)
        sample = sample + deviation.to(sample) / self.latent.scaling_factor * torch.from_numpy(
            rng.standard_normal(sample.shape, dtype=np.float32)
        ).to(sample)
        with torch.no_grad():
            target = self._decode_reference(sample)
        error = self.decoder(sample) - target
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        total: Tensor = error.abs().mean() + _EDGE_WEIGHT * edges
        return total

    def evaluate(self) -> Mapping[str, float]:
        """Return `psnr`: the PSNR in dB between the pictures of the tiny decoder and of the autoencoder's decoder."""
        sample = self._sample_latents(np.random.default_rng((self.seed, 5)), self.eval_samples)
        student, teacher = self.decoder(sample).clamp(-1, 1), self._decode_reference(sample).clamp(-1, 1)
        return {"psnr": 10 * float(torch.log10(4 / functional.mse_loss(student, teacher).clamp(min=1e-12)))}

    def _sample_latents(self, rng: np.random.Generator, count: int) -> Tensor:
        latents = self.dataset.batch(rng, count).latents / self.latent.scaling_factor + self.latent.shift_factor
        top, left = (int(rng.integers(max(1, size - self.crop + 1))) for size in latents.shape[2:])
        device = next(self.decoder.parameters()).device
        return latents[:, :, top : top + self.crop, left : left + self.crop].to(device)

    def _decode_reference(self, sample: Tensor) -> Tensor:
        decoded: Tensor = self.autoencoder.decode(sample, return_dict=False)[0]
        return decoded
