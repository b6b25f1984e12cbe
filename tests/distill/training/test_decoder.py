"""The tiny decoder: size of its pictures, number of weights, and training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.distill.data.latent_dataset import LatentBatch
from stillhouse.distill.training.decoder import DecoderStage, TinyDecoder
from stillhouse.distill.training.networks import DenoiserInputs
from stillhouse.fit.fit import fit
from stillhouse.fit.recipe import StageRecipe
from stillhouse.pipelines.manifest import Latent

LATENT = Latent(channels=4, scaling_factor=0.18, shift_factor=0.1, downscale=4)
"""With the scale of Stable Diffusion: the standard deviation is 5.5."""
RECIPE = StageRecipe(updates=60, batch_size=4, learning_rate=3e-3, warmup_updates=5, decay_fraction=0.5, eval_every=60)


class SmoothLatents:
    """Latents that vary slowly."""

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        coarse = torch.from_numpy(rng.standard_normal((count, 4, 4, 4))).float()
        return LatentBatch(torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear"), {})

    def negative_inputs(self, count: int) -> DenoiserInputs:
        return {}


class UpsamplingAutoencoder(torch.nn.Module):
    """An autoencoder whose decoder enlarges three of the channels."""

    def decode(self, sample: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (torch.nn.functional.interpolate((sample[:, :3] / 10).clamp(-1, 1), scale_factor=4),)


def decoder_stage(**changes: object) -> DecoderStage:
    torch.manual_seed(0)
    stage = DecoderStage(
        recipe=RECIPE,
        decoder=TinyDecoder(LATENT, 32),
        autoencoder=UpsamplingAutoencoder(),
        latent=LATENT,
        dataset=SmoothLatents(),
    )
    return replace(stage, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("downscale", [1, 2, 4, 8])
def test_pictures_have_the_size_of_the_autoencoders(downscale: int) -> None:
    decoder = TinyDecoder(replace(LATENT, downscale=downscale), 32)
    assert decoder(torch.zeros(2, 4, 6, 5)).shape == (2, 3, 6 * downscale, 5 * downscale)


def test_it_has_a_fortieth_of_the_weights_of_stable_diffusions_decoder() -> None:
    tiny = TinyDecoder(Latent(4, 0.18215, 0.0, 8), 128)
    assert sum(parameter.numel() for parameter in tiny.parameters()) < 49.5e6 / 40


def test_training_approaches_the_reference_decoder(tmp_path: Path) -> None:
    stage = decoder_stage()
    with torch.no_grad():
        before = stage.evaluate()["psnr"]
    assert fit(stage, tmp_path, lambda log: None).scores["psnr"] > before + 5


def test_the_number_decides_the_batch_and_large_latents_are_cropped() -> None:
    first, second = decoder_stage(crop=8), decoder_stage(crop=8)
    assert torch.equal(first.loss(3), second.loss(3)) and not torch.equal(first.loss(3), second.loss(4))
    assert first._sample_latents(np.random.default_rng(0), 2).shape == (2, 4, 8, 8)
    assert decoder_stage()._sample_latents(np.random.default_rng(0), 2).shape == (2, 4, 16, 16)
