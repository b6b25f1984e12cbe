"""Stable Diffusion XL: two text encoders, a pooled text embedding, and the picture's size as an input."""

import numpy as np

from stillhouse.core import ImageRequest
from stillhouse.diffusion import Conditioning
from stillhouse.pipelines.families.base import Context
from stillhouse.pipelines.families.stable_diffusion import StableDiffusion
from stillhouse.pipelines.manifest import Manifest


class StableDiffusionXL(StableDiffusion):
    """The family of Stable Diffusion XL: Stable Diffusion with the picture's size as a further input (time_ids).

    An empty negative prompt is encoded as zeros where the manifest's option zero_negative says so.
    """

    name = "stable-diffusion-xl"

    def inputs(self, manifest: Manifest, request: ImageRequest, encoded: Conditioning) -> Conditioning:
        """Return the U-Net's inputs besides latents and timestep, by name, for one row.

        These are the encoded prompt and time_ids: original size, crop and target size, [6].
        """
        size = (request.height, request.width)
        time_ids = np.array([*size, 0, 0, *size], np.float32)
        return super().inputs(manifest, request, {**encoded, "time_ids": time_ids})

    def negative_inputs(self, context: Context, request: ImageRequest, inputs: Conditioning) -> Conditioning:
        """Return the U-Net's inputs for the negative prompt, by name, for one row.

        `inputs` are the inputs for the prompt. With the manifest's option zero_negative, an empty negative prompt has
        zeros in place of the encoded text.
        """
        if request.negative_prompt or not context.manifest.family_options.get("zero_negative"):
            return super().negative_inputs(context, request, inputs)
        zeros = {name: np.zeros_like(inputs[name]) for name in ("encoder_hidden_states", "text_embeds")}
        return {**inputs, **zeros}


SDXL = StableDiffusionXL()
