"""A family unlike Stable Diffusion: a transformer over packed latents, ragged text with a mask, three branches.

Its schedule's shift grows with the picture, its network takes time from 0 to 1 and predicts the negative velocity, and
its latents are normalised by channel. A text is padded to a length that follows from the request's texts alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.core import Array, ImageRequest, Picture
from stillhouse.diffusion import (
    CONDITIONAL,
    UNCONDITIONAL,
    Branch,
    Conditioning,
    Guidance,
    SamplingPlan,
    Schedule,
)
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.families import register_family
from stillhouse.pipelines.families.base import (
    Context,
    NetworkCall,
    Start,
    Tensors,
    denormalize_latents,
)
from stillhouse.pipelines.manifest import Manifest
from stillhouse.pipelines.roles import CONTROLNET, DECODER, DENOISER, TEXT_ENCODERS
from stillhouse.pipelines.tokenizers import Tokenizer

NEGATIVE = "negative"
NEGATIVE_WEIGHT = -0.5
PATCH = 2


@dataclass(frozen=True, slots=True)
class ToyOptions:
    """Options of a toy pipeline.

    Args:
        text_step: texts are padded to a multiple of this many tokens.
        max_tokens: the most tokens that the transformer reads.
    """

    text_step: int
    max_tokens: int


class ToyFamily:
    """See `base.Family`."""

    name = "toy"
    options: type[Any] = ToyOptions

    def is_inpainting(self, manifest: Manifest) -> bool:
        """Return False: the transformer takes latents only."""
        return False

    def takes_guidance(self, manifest: Manifest) -> bool:
        """Return False: guidance combines branches."""
        return False

    def schedule(self, manifest: Manifest, width: int, height: int) -> Schedule:
        """Return the manifest's schedule, shifted by the number of tokens of the picture."""
        side = manifest.latent.downscale * PATCH
        return replace(manifest.sampling.schedule, shift=1 + width * height / (side * side) / 64)

    def guidance(self, manifest: Manifest, request: ImageRequest) -> Guidance:
        """Return guidance from no text to the prompt and away from the negative prompt."""
        assert request.guidance is not None and request.guidance_interval is not None
        if request.image is not None:
            raise InvalidRequest(f"an image for {manifest.name}", allowed="prompts", fix="leave the image out")
        if request.guidance <= 1:
            return Guidance()
        terms = ((NEGATIVE, NEGATIVE_WEIGHT), (CONDITIONAL, request.guidance))
        return Guidance(CONDITIONAL, UNCONDITIONAL, terms, request.guidance_interval, request.guidance_rescale)

    def batch_key(self, manifest: Manifest, request: ImageRequest) -> tuple[int, ...]:
        """Return the length to which the request's texts are padded; a token has one byte or more."""
        step, most = manifest.family_options["text_step"], manifest.family_options["max_tokens"]
        longest = 1 + max(len(text.encode()) for text in (request.prompt, request.negative_prompt))
        return (min(-(-longest // step) * step, most),)

    def tokenize(self, tokenizers: Mapping[str, Tokenizer], text: str, key: tuple[int, ...]) -> Mapping[str, Tensors]:
        """Return the token ids and their mask, int64 [1, L]."""
        (length,) = key
        tokens = tokenizers[TEXT_ENCODERS[0]].encode(text, length)
        return {TEXT_ENCODERS[0]: {"input_ids": tokens.ids[None], "attention_mask": tokens.mask[None]}}

    def encode_prompt(self, run: Callable[[str, Tensors], Tensors], tokens: Mapping[str, Tensors]) -> Conditioning:
        """Return the states of the tokens, [L, D], and their mask, float32 [L]."""
        feeds = tokens[TEXT_ENCODERS[0]]
        states = run(TEXT_ENCODERS[0], feeds)["states"][0]
        return {"encoder_hidden_states": states, "encoder_attention_mask": feeds["attention_mask"][0].astype("float32")}

    def prepare(self, context: Context, request: ImageRequest, noise: Array, plan: SamplingPlan) -> Start:
        """Return the noise, and the branches that the plan's guidance names."""
        texts = {CONDITIONAL: request.prompt}
        if plan.guidance.base is not None:
            texts |= {UNCONDITIONAL: "", NEGATIVE: request.negative_prompt}
        return Start(noise, {name: Branch(context.encode_prompt(text)) for name, text in texts.items()})

    def calls(self, manifest: Manifest) -> Sequence[NetworkCall]:
        """Return the transformer's call, behind a control network's where the pipeline has one."""
        if CONTROLNET not in manifest.components:
            return (NetworkCall(DENOISER),)
        inputs = ("hidden_states", "timestep")
        return NetworkCall(CONTROLNET, inputs, {"residual": "control"}), NetworkCall(DENOISER)

    def feeds(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Tensors:
        """Return packed latents and the time from 0 to 1 under the transformer's names."""
        return {"hidden_states": pack_latents(latents), "timestep": timesteps / 1000, **conditioning}

    def read(self, outputs: Tensors, latents: Array) -> Array:
        """Return the velocity, whose sign the transformer has turned."""
        return -unpack_tokens(outputs["velocity"], tuple(latents.shape))

    def encode_image(self, context: Context, picture: Picture) -> Array:
        """Refuse images: the pipeline has no encoder."""
        raise InvalidRequest(f"an image for {context.manifest.name}", allowed="prompts", fix="leave the image out")

    def decode(self, context: Context, latents: Array) -> Array:
        """Return the decoder's signal of one picture."""
        encoded = denormalize_latents(context.manifest.latent, latents)
        signal: Array = context.run(DECODER, {"latents": encoded[None]})["picture"][0]
        return signal


def pack_latents(latents: Array) -> Array:
    """Return latents [R, C, h, w] as tokens [R, h / 2 * w / 2, C * 4], row by row."""
    rows, channels, height, width = latents.shape
    split = latents.reshape(rows, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    by_token = split.swapaxes(1, 2).swapaxes(2, 4).swapaxes(3, 4)  # rows, h, w, channels, patch, patch
    return by_token.reshape(rows, -1, channels * PATCH * PATCH)


def unpack_tokens(tokens: Array, shape: tuple[int, ...]) -> Array:
    """Return tokens of `pack_latents` as latents of this shape, [R, C, h, w]."""
    rows, channels, height, width = shape
    by_token = tokens.reshape(rows, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return by_token.swapaxes(3, 4).swapaxes(2, 4).swapaxes(1, 2).reshape(rows, channels, height, width)


TOY = ToyFamily()
register_family(TOY)
