"""The interface of a pipeline family, and functions that several families share.

Latents are float32 [channels, height / downscale, width / downscale] from the noise to the decoder. A family whose
denoiser takes packed tokens packs the latents in `feeds` and unpacks the output in `read`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array, ImageRequest, Picture
from stillhouse.diffusion import Branch, Conditioning, Effect, Guidance, SamplingPlan, Schedule
from stillhouse.pipelines.manifest import Latent, Manifest
from stillhouse.pipelines.tokenizers import Tokenizer

MASK_THRESHOLD = 127
"""The brightest mask level at which the picture is kept; brighter parts are inpainted."""

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs or outputs of a network by name, with their batch axis."""


@dataclass(frozen=True, slots=True)
class NetworkCall:
    """A network that runs at each evaluation.

    Args:
        role: role of the component.
        inputs: names of the network's inputs, out of `Family.feeds` and the outputs of earlier calls; empty: all of
            them.
        outputs: maps the name of each output that later calls take to the name of their input.
    """

    role: str
    inputs: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Start of a trajectory: latents [C, h, w], branches by name, and effects that act besides the sampler's steps."""

    latents: Array
    branches: Mapping[str, Branch]
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of an open pipeline that a family may use.

    Args:
        manifest: manifest of the pipeline.
        run: runs a component: takes its role and inputs by name, returns outputs by name; all are NumPy arrays with a
            batch axis.
        encode_prompt: takes a text, returns the result of `Family.encode_prompt` for it, without batch axis; results
            are cached.
    """

    manifest: Manifest
    run: Callable[[str, Tensors], Tensors]
    encode_prompt: Callable[[str], Conditioning]


class Family(Protocol):
    """A kind of pipeline. Its methods have no side effects, except that they run networks through `Context.run`."""

    name: str
    """Name of the family in a manifest."""
    options: type[Any]
    """Dataclass of the fields that the manifest's `family_options` may hold."""

    def is_inpainting(self, manifest: Manifest) -> bool:
        """Return whether the denoiser takes the mask and the masked picture as further input channels."""

    def takes_guidance(self, manifest: Manifest) -> bool:
        """Return whether the denoiser takes the guidance scale as an input, and thus no negative prompt."""

    def schedule(self, manifest: Manifest, width: int, height: int) -> Schedule:
        """Return the noise schedule of a picture of this size in pixels."""

    def guidance(self, manifest: Manifest, request: ImageRequest) -> Guidance:
        """Return how guidance combines the branches of a resolved request.

        Raises:
            InvalidRequest: the pipeline does not support the request's guidance or negative prompt.
        """

    def batch_key(self, manifest: Manifest, request: ImageRequest) -> tuple[int, ...]:
        """Return values that must be equal to share a batch, besides the size: the padded length of texts."""

    def tokenize(self, tokenizers: Mapping[str, Tokenizer], text: str, key: tuple[int, ...]) -> Mapping[str, Tensors]:
        """Return the text encoders' inputs by role, with a batch axis; `key` is the request's `batch_key`.

        Warns:
            PromptTruncated: a part of the text does not fit.
        """

    def encode_prompt(self, run: Callable[[str, Tensors], Tensors], tokens: Mapping[str, Tensors]) -> Conditioning:
        """Return the denoiser's inputs for a text, without batch axis, from the tokens of `tokenize`."""

    def prepare(self, context: Context, request: ImageRequest, noise: Array, plan: SamplingPlan) -> Start:
        """Return the start of the trajectory of a resolved request.

        Args:
            context: the open pipeline.
            request: resolved request.
            noise: standard normal noise of the shape of the latents.
            plan: plan of the request; only branches that its guidance names must be made.
        """

    def calls(self, manifest: Manifest) -> Sequence[NetworkCall]:
        """Return the networks of an evaluation in the order in which they run; the denoiser is the last one."""

    def feeds(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Tensors:
        """Return the networks' inputs, made of latents [R, C, h, w], timesteps [R] and conditioning [R, ...]."""

    def read(self, outputs: Tensors, latents: Array) -> Array:
        """Return the prediction, [R, C, h, w], from the denoiser's outputs and its input latents."""

    def encode_image(self, context: Context, picture: Picture) -> Array:
        """Return the normalised latents of a picture, [C, h, w]."""

    def decode(self, context: Context, latents: Array) -> Array:
        """Return the decoded picture, [3, height, width], -1 to 1, of normalised latents [C, h, w].

        Large pictures are decoded in tiles, so `latents` may be of a part of the picture only.
        """


def normalize_pixels(picture: Picture) -> Array:
    """Convert uint8 [height, width, 3] to float32 [3, height, width], -1 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - 1


def to_pixels(signal: NDArray[Any]) -> Picture:
    """Convert float32 [3, height, width], clipped to -1 to 1, to uint8 [height, width, 3].

    >>> to_pixels(np.zeros((3, 1, 1), np.float32)).tolist()
    [[[128, 128, 128]]]
    """
    levels = np.rint((signal.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255)
    return np.ascontiguousarray(levels, np.uint8)


def latent_shape(latent: Latent, width: int, height: int) -> tuple[int, int, int]:
    """Return the shape [C, h, w] of the latents of a picture of this size in pixels."""
    return latent.channels, height // latent.downscale, width // latent.downscale


def normalize_latents(latent: Latent, encoded: Array) -> Array:
    """Return the encoder's latents [C, h, w], shifted and scaled as the denoiser was trained with them."""
    if latent.std:
        encoded = (encoded - _by_channel(latent.mean)) / _by_channel(latent.std)
    return (encoded - latent.shift_factor) * latent.scaling_factor


def denormalize_latents(latent: Latent, latents: Array) -> Array:
    """Return normalised latents [C, h, w], scaled and shifted back for the decoder."""
    encoded = latents / latent.scaling_factor + latent.shift_factor
    return encoded * _by_channel(latent.std) + _by_channel(latent.mean) if latent.std else encoded


def _by_channel(values: Sequence[float]) -> Array:
    return np.array(values, np.float32)[:, None, None]


def latent_mask(mask: NDArray[np.uint8], downscale: int) -> Array:
    """Return a mask at the size of the latents, float32 [1, h, w], 1 where the picture is inpainted.

    The top left pixel of each latent's square decides, as in diffusers.
    """
    return (mask[None, ::downscale, ::downscale] > MASK_THRESHOLD).astype(np.float32)
