"""Stable Diffusion 1.x, 2.x and 2-inpainting: CLIP, a U-Net over latents, an autoencoder with one scaling factor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse.core import Array, ImageRequest, Picture
from stillhouse.diffusion import (
    CONDITIONAL,
    UNCONDITIONAL,
    Branch,
    Conditioning,
    Guidance,
    InpaintBlend,
    SamplingPlan,
    Schedule,
    add_noise,
    classifier_free,
)
from stillhouse.errors import InvalidRequest, PipelineError
from stillhouse.pipelines.families.base import (
    MASK_THRESHOLD,
    Context,
    NetworkCall,
    Start,
    Tensors,
    denormalize_latents,
    latent_mask,
    normalize_latents,
    normalize_pixels,
)
from stillhouse.pipelines.manifest import Manifest
from stillhouse.pipelines.roles import DECODER, DENOISER, ENCODER
from stillhouse.pipelines.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class StableDiffusionOptions:
    """Options of a U-Net in the manifest's `family_options`.

    Args:
        in_channels: number of the U-Net's input channels: the latents, and for inpainting networks also the mask and
            the masked picture's latents.
        guidance_channels: size of the guidance scale's embedding (diffusers' `time_cond_proj_dim`); None where the
            scale is not an input.
        zero_negative: whether an empty negative prompt is encoded as zeros (XL's `force_zeros_for_empty_prompt`).
    """

    in_channels: int
    guidance_channels: int | None = None
    zero_negative: bool = False


class StableDiffusion:
    """The family of Stable Diffusion 1.x, 2.x and their inpainting models, which implements `base.Family`."""

    name = "stable-diffusion"
    options: type[Any] = StableDiffusionOptions

    def is_inpainting(self, manifest: Manifest) -> bool:
        """Return whether the U-Net has input channels for the mask and the masked picture's latents."""
        return bool(manifest.family_options.get("in_channels") == 2 * manifest.latent.channels + 1)

    def takes_guidance(self, manifest: Manifest) -> bool:
        """Return whether the U-Net takes the embedded guidance scale as an input."""
        return bool(manifest.family_options.get("guidance_channels"))

    def schedule(self, manifest: Manifest, width: int, height: int) -> Schedule:
        """Return the manifest's noise schedule, which does not depend on the size of the picture."""
        return manifest.sampling.schedule

    def guidance(self, manifest: Manifest, request: ImageRequest) -> Guidance:
        """Return classifier-free guidance with the request's scale, interval and rescale.

        For a network that takes the guidance scale as an input, the result is guidance that never acts.
        """
        assert request.guidance is not None and request.guidance_interval is not None
        if self.takes_guidance(manifest) and request.negative_prompt:
            raise InvalidRequest(
                f"the request has a negative prompt for {manifest.name}, which was distilled with its guidance inside",
                allowed="requests without a negative prompt",
                fix="leave the negative prompt out",
            )
        scale = 1.0 if self.takes_guidance(manifest) else request.guidance
        return classifier_free(scale, request.guidance_interval, request.guidance_rescale)

    def batch_key(self, manifest: Manifest, request: ImageRequest) -> tuple[int, ...]:
        """Return an empty tuple, because CLIP pads every text to one length."""
        return ()

    def tokenize(self, tokenizers: Mapping[str, Tokenizer], text: str, key: tuple[int, ...]) -> Mapping[str, Tensors]:
        """Return the token ids of a text for each text encoder, by role: {"input_ids": int64 [1, 77]}."""
        for role, tokenizer in tokenizers.items():
            if tokenizer.start is None or tokenizer.end is None:
                raise PipelineError(
                    f"the tokenizer of {role} does not name both a start token and an end token",
                    allowed="a CLIP tokenizer, whose tokenizer_config.json has bos_token and eos_token",
                    fix="import the model again",
                )
        return {role: {"input_ids": tokenizer(text)[None]} for role, tokenizer in tokenizers.items()}

    def encode_prompt(self, run: Callable[[str, Tensors], Tensors], tokens: Mapping[str, Tensors]) -> Conditioning:
        """Encode a text, and return the U-Net's inputs for it, by name.

        These are encoder_hidden_states [L, D], and text_embeds [E] where the last text encoder has this output.
        """
        outputs = [run(role, feeds) for role, feeds in tokens.items()]
        states = np.concatenate([output["last_hidden_state"][0] for output in outputs], axis=-1)
        encoded = {"encoder_hidden_states": states}
        if "text_embeds" in outputs[-1]:
            encoded["text_embeds"] = outputs[-1]["text_embeds"][0]
        return encoded

    def prepare(self, context: Context, request: ImageRequest, noise: Array, plan: SamplingPlan) -> Start:
        """Return the state of a picture before its first evaluation: pure noise, or a source image with noise.

        A mask becomes input channels of an inpainting network; for other networks it becomes an `InpaintBlend`.
        """
        inputs = self.inputs(context.manifest, request, context.encode_prompt(request.prompt))
        branches = {CONDITIONAL: Branch(inputs)}
        if plan.guidance.base is not None:
            branches[UNCONDITIONAL] = Branch(self.negative_inputs(context, request, inputs))
        if request.image is None:
            return Start(noise, branches)
        return self._start_from_image(context, request, noise, plan, branches)

    def inputs(self, manifest: Manifest, request: ImageRequest, encoded: Conditioning) -> Conditioning:
        """Return the denoiser's inputs besides latents and timestep, by name, for one row, without a batch axis.

        These are the encoded prompt, and the embedded guidance scale where the network takes the scale as an input.
        """
        if not self.takes_guidance(manifest):
            return encoded
        assert request.guidance is not None
        channels = manifest.family_options["guidance_channels"]
        return {**encoded, "timestep_cond": embed_guidance(request.guidance, channels)}

    def negative_inputs(self, context: Context, request: ImageRequest, inputs: Conditioning) -> Conditioning:
        """Return the denoiser's inputs for the negative prompt, by name, for one row, without a batch axis.

        `inputs` are the inputs for the prompt, which only subclasses need.
        """
        return self.inputs(context.manifest, request, context.encode_prompt(request.negative_prompt))

    def calls(self, manifest: Manifest) -> Sequence[NetworkCall]:
        """Return the only network of an evaluation, the U-Net."""
        return (NetworkCall(DENOISER),)

    def feeds(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Tensors:
        """Return the U-Net's inputs by their names in diffusers: sample, timestep, and those of the conditioning."""
        return {"sample": latents, "timestep": timesteps, **conditioning}

    def read(self, outputs: Tensors, latents: Array) -> Array:
        """Return the U-Net's output, [R, C, h, w], as it is."""
        return outputs["out_sample"]

    def encode_image(self, context: Context, picture: Picture) -> Array:
        """Return the normalised latents of a picture, [C, h, w].

        The latents are the mean of the encoder's distribution; diffusers draws a random sample instead.
        """
        return self._encode_signal(context, normalize_pixels(picture))

    def decode(self, context: Context, latents: Array) -> Array:
        """Decode normalised latents [C, h, w], and return the picture, [3, height, width], -1 to 1."""
        encoded = denormalize_latents(context.manifest.latent, latents)
        signal: Array = context.run(DECODER, {"latent_sample": encoded[None]})["sample"][0]
        return signal

    def _encode_signal(self, context: Context, signal: Array) -> Array:
        mean: Array = context.run(ENCODER, {"sample": signal[None]})["mean"][0]
        return normalize_latents(context.manifest.latent, mean)

    def _start_from_image(
        self, context: Context, request: ImageRequest, noise: Array, plan: SamplingPlan, branches: Mapping[str, Branch]
    ) -> Start:
        """Return the state before the first evaluation of a request with a source image.

        With a mask and strength 1, the latents are pure noise, as in diffusers. For an inpainting network, the branches
        of the result also have the mask and the masked image as input channels.

        Args:
            context: the open pipeline.
            request: request with every default filled in.
            noise: standard normal noise of the shape of the latents.
            plan: sampling plan of the request, whose first noise level the noised image has.
            branches: inputs for the prompt and for the negative prompt, by name of the guidance branch.
        """
        manifest, mask = context.manifest, request.mask
        is_inpainting = self.is_inpainting(manifest)
        assert request.image is not None
        latents, effects = noise, tuple[InpaintBlend, ...]()
        is_pure_noise = mask is not None and request.strength == 1
        if not (is_pure_noise and is_inpainting):
            clean, level = self.encode_image(context, request.image), plan.grid.levels[0]
            if not is_pure_noise:
                latents = add_noise(clean, noise, level.alpha, level.sigma)
            if mask is not None and not is_inpainting:
                effects = (InpaintBlend(clean, latent_mask(mask, manifest.latent.downscale), noise),)
        if mask is not None and is_inpainting:
            masked = self._encode_signal(context, normalize_pixels(request.image) * (mask <= MASK_THRESHOLD))
            channels = np.concatenate([latent_mask(mask, manifest.latent.downscale), masked])
            branches = {name: Branch(branch.inputs, channels) for name, branch in branches.items()}
        return Start(latents, branches, effects)


def embed_guidance(guidance: float, channels: int) -> Array:
    """Return the sinusoidal embedding of a guidance scale, float32 [channels], for networks that take it as an input.

    Equal to diffusers' `get_guidance_scale_embedding` of guidance - 1 (arXiv 2310.04378).
    """
    half = channels // 2
    frequencies = np.exp(np.arange(half) * -(np.log(10_000.0) / (half - 1)))
    angles = 1000 * (guidance - 1) * frequencies
    embedded = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(channels % 2)])
    return embedded.astype(np.float32)


STABLE_DIFFUSION = StableDiffusion()
