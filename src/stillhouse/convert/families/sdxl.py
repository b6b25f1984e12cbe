"""Conversion of Stable Diffusion XL."""

from collections.abc import Mapping
from typing import Any

import transformers

from stillhouse.convert.families.stable_diffusion import StableDiffusionConversion
from stillhouse.convert.source import Source
from stillhouse.pipelines.roles import TEXT_ENCODERS


class StableDiffusionXLConversion(StableDiffusionConversion):
    """Conversion of Stable Diffusion XL, which has a second text encoder.

    The U-Net also takes the pooled output of this encoder and the picture's size.
    """

    name = "stable-diffusion-xl"
    pipelines: tuple[str, ...] = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    text_encoders: Mapping[str, type[Any]] = {
        TEXT_ENCODERS[0]: transformers.CLIPTextModel,
        TEXT_ENCODERS[1]: transformers.CLIPTextModelWithProjection,
    }
    uses_penultimate_states = True
    addition_embed_type = "text_time"
    steps_offset = None
    guidance = 5.0

    def zeros_negative(self, source: Source) -> bool:
        """Return whether an empty negative prompt is encoded as zeros, which is diffusers' default."""
        return bool(source.index.get("force_zeros_for_empty_prompt", True))


SDXL = StableDiffusionXLConversion()
