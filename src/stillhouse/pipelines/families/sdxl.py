"""Stable Diffusion XL: two text encoders, a pooled text embedding, and the picture's size as an input."""

import numpy as np

from stillhouse.core import ImageRequest
from stillhouse.diffusion import Conditioning
from stillhouse.pipelines.families.base import Context
from stillhouse.pipelines.families.stable_diffusion import StableDiffusion
from stillhouse.pipelines.manifest import Manifest


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion with time ids; an empty negative prompt is encoded as zeros where the checkpoint says so."""

    name = "stable-diffusion-xl"

    def inputs(self, manifest: Manifest, request: ImageRequest, encoded: Conditioning) -> Conditioning:
        """Return the U-Net's inputs besides latents and timestep; time_ids are original size, crop and target size."""
        size = (request.height, request.width)
        time_ids = np.array([*size, 0, 0, *size], np.float32)
        return super().inputs(manifest, request, {**encoded, "time_ids": time_ids})

    def negative_inputs(self, context: Context, request: ImageRequest, inputs: Conditioning) -> Conditioning:
        """Return the U-Net's inputs for the negative prompt; an empty negative prompt may be encoded as zeros."""
        if request.negative_prompt or not context.manifest.family_options.get("zero_negative"):
            return super().negative_inputs(context, request, inputs)
        zeros = {name: np.zeros_like(inputs[name]) for name in ("encoder_hidden_states", "text_embeds")}
        return {**inputs, **zeros}


SDXL = StableDiffusionXL()
