"""The same pictures as diffusers' own pipelines draw, from the same noise, in float32."""

from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from PIL import Image

from stillhouse.core import ImageRequest
from tests.conftest import NEGATIVE, PROMPT, SIZE, Checkpoint, Opened, sample_picture

MEAN, MOST = 0.2, 2


@pytest.fixture(autouse=True)
def mean_latents(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """diffusers draws an image's latents; ours are their mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    with torch.inference_mode():
        yield


def noise(height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    return torch.randn((1, 4, height // 4, width // 4), generator=torch.Generator().manual_seed(3))


def mask() -> NDArray[np.uint8]:
    area = np.zeros((SIZE, SIZE), np.uint8)
    area[13:50, 9:41] = 255
    return area


def reference(kind: Any, directory: Any, scheduler: Any = None, **fields: Any) -> NDArray[np.uint8]:
    pipeline = kind.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler or pipeline.scheduler
    return np.asarray(pipeline(PROMPT, **{"negative_prompt": NEGATIVE, **fields}).images[0])


def ours(opened: Opened, kind: str, noise: torch.Tensor, **fields: Any) -> NDArray[np.uint8]:
    pipeline = opened(kind)
    request = ImageRequest(PROMPT, **{"negative_prompt": NEGATIVE, **fields})
    draft = pipeline.start(request, noise=noise[0].numpy())
    while not draft.is_done:
        pipeline.advance([draft])
    return pipeline.finish(draft).image


def assert_same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    assert one.shape == other.shape
    assert other.std() > 10, "a grey picture proves nothing"
    difference = np.abs(one.astype(int) - other)
    assert difference.mean() <= MEAN
    assert difference.max() <= MOST


KINDS = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "xl": diffusers.StableDiffusionXLPipeline,
}


@pytest.mark.parametrize("steps", [50, 25, 8, 5, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_text_to_image(checkpoint: Checkpoint, opened: Opened, kind: str, steps: int) -> None:
    theirs = reference(KINDS[kind], checkpoint(kind), latents=noise(), num_inference_steps=steps, guidance_scale=4.0)
    assert_same(ours(opened, kind, noise(), steps=steps, guidance=4.0), theirs)


def test_sizes_that_are_not_square(checkpoint: Checkpoint, opened: Opened) -> None:
    size = {"height": 48, "width": 80}
    fields: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 4, "latents": noise(**size), **size}
    theirs = reference(KINDS["xl"], checkpoint("xl"), **fields)
    assert_same(ours(opened, "xl", noise(**size), steps=4, guidance=4.0, **size), theirs)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_without_a_negative_prompt(checkpoint: Checkpoint, opened: Opened, kind: str, guidance: float) -> None:
    fields: dict[str, Any] = {"guidance_scale": guidance, "num_inference_steps": 5, "latents": noise()}
    theirs = reference(KINDS[kind], checkpoint(kind), negative_prompt=None, **fields)
    assert_same(ours(opened, kind, noise(), negative_prompt="", steps=5, guidance=guidance), theirs)


SAMPLERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(checkpoint: Checkpoint, opened: Opened, sampler: str) -> None:
    scheduler = SAMPLERS[sampler].from_pretrained(checkpoint("sd1") / "scheduler")
    fields: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 10, "latents": noise()}
    theirs = reference(KINDS["sd1"], checkpoint("sd1"), scheduler, **fields)
    assert_same(ours(opened, "sd1", noise(), steps=10, guidance=4.0, sampler=sampler), theirs)


IMG2IMG = {
    "sd1": diffusers.StableDiffusionImg2ImgPipeline,
    "sd2": diffusers.StableDiffusionImg2ImgPipeline,
    "xl": diffusers.StableDiffusionXLImg2ImgPipeline,
}


@pytest.mark.parametrize("kind", IMG2IMG)
@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_image_to_image(checkpoint: Checkpoint, opened: Opened, kind: str, strength: float) -> None:
    fields: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 10, "strength": strength}
    image = sample_picture()
    generator = torch.Generator().manual_seed(3)
    theirs = reference(IMG2IMG[kind], checkpoint(kind), image=Image.fromarray(image), generator=generator, **fields)
    assert_same(ours(opened, kind, noise(), steps=10, guidance=4.0, strength=strength, image=image), theirs)


INPAINT = {
    "inpaint": diffusers.StableDiffusionInpaintPipeline,
    "sd1": diffusers.StableDiffusionInpaintPipeline,
    "xl": diffusers.StableDiffusionXLInpaintPipeline,
}


@pytest.mark.parametrize("kind", INPAINT)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(checkpoint: Checkpoint, opened: Opened, kind: str, strength: float) -> None:
    fields: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 10, "strength": strength}
    image, area = sample_picture(), mask()
    theirs = reference(
        INPAINT[kind],
        checkpoint(kind),
        image=Image.fromarray(image),
        mask_image=Image.fromarray(area),
        generator=torch.Generator().manual_seed(3),
        height=SIZE,
        width=SIZE,
        **fields,
    )
    assert_same(ours(opened, kind, noise(), steps=10, guidance=4.0, strength=strength, image=image, mask=area), theirs)
