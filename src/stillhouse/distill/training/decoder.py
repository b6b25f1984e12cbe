"""A tiny decoder, which learns to draw what the autoencoder's own draws: after three steps that is what takes longest.

Beside a decoder of 50 million weights it has one million: attention and norms are left out, as in TAESD (Bohan, 2023),
and the last doubling is a rearrangement of channels, so that nothing is computed at the full size of the picture.
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
"""Residual blocks at every size."""
_EDGE_WEIGHT = 1.0
"""Of the error of differences between neighbours, beside the error of pixels: edges are what the eye misses first."""
_MAX_NOISE = 0.1
"""The most noise on latents, in their standard deviations: those of few steps are not as clean as the autoencoder's."""


class TinyDecoder(nn.Module):
    """Latents [B, c, h, w], as the autoencoder has them, to pictures [B, 3, h * downscale, w * downscale].

    Args:
        latent: channels and downscale, a power of two.
        width: channels at the size of latents; half as many at every doubling, and never below 16.
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
        """Pictures from -1 to 1, and a little beyond."""
        scaled = (latent_sample - self.latent.shift_factor) * self.latent.scaling_factor
        # Far outliers of latents are cut softly: at three standard deviations they would colour whole regions.
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
    """A stage of `fit`: draw what the autoencoder's decoder draws.

    Args:
        recipe: how long and how fast.
        decoder: learns.
        autoencoder: diffusers' AutoencoderKL, stays as it is.
        latent: of the pipeline.
        pairs: whose latents are decoded.
        crop: latents of a side that are decoded at once; larger pictures are cut at random.
        seed: of everything that is drawn.
        judged: pictures in each judgement.
        name: of its checkpoints.
        identity: see `fit.stage.Stage`.
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
        """What learns."""
        return self.decoder

    def loss(self, number: int) -> Tensor:
        """Mean absolute error of pixels, and of differences between neighbours."""
        rng = np.random.default_rng((self.seed, 4, number))
        sample = self._sample_latents(rng, self.recipe.batch_size)
        spread = torch.from_numpy(rng.uniform(0, _MAX_NOISE, len(sample)).astype(np.float32)).view(-1, 1, 1, 1)
        sample = sample + spread.to(sample) / self.latent.scaling_factor * torch.from_numpy(
            rng.standard_normal(sample.shape, dtype=np.float32)
        ).to(sample)
        with torch.no_grad():
            target = self._decode_reference(sample)
        error = self.decoder(sample) - target
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        total: Tensor = error.abs().mean() + _EDGE_WEIGHT * edges
        return total

    def evaluate(self) -> Mapping[str, float]:
        """PSNR in dB between the two decoders' pictures."""
        sample = self._sample_latents(np.random.default_rng((self.seed, 5)), self.eval_samples)
        ours, theirs = (one.clamp(-1, 1) for one in (self.decoder(sample), self._decode_reference(sample)))
        return {"psnr": 10 * float(torch.log10(4 / functional.mse_loss(ours, theirs).clamp(min=1e-12)))}

    def _sample_latents(self, rng: np.random.Generator, count: int) -> Tensor:
        latents = self.dataset.batch(rng, count).latents / self.latent.scaling_factor + self.latent.shift_factor
        top, left = (int(rng.integers(max(1, size - self.crop + 1))) for size in latents.shape[2:])
        device = next(self.decoder.parameters()).device
        return latents[:, :, top : top + self.crop, left : left + self.crop].to(device)

    def _decode_reference(self, sample: Tensor) -> Tensor:
        decoded: Tensor = self.autoencoder.decode(sample, return_dict=False)[0]
        return decoded
