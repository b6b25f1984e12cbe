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
"""Largest value of a uint8 mask at which the picture is kept; parts with larger values are inpainted."""

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs or outputs of a network by name, with their batch axis."""


@dataclass(frozen=True, slots=True)
class NetworkCall:
    """A network that runs at each evaluation, such as the denoiser.

    Args:
        role: role of the network in the manifest.
        inputs: names of the network's inputs, out of `Family.feeds` and the outputs of earlier networks; empty: all of
            `Family.feeds`, and for the last network also all outputs of earlier networks.
        outputs: name of each output that later networks take, mapped to the name of the input that takes it.
    """

    role: str
    inputs: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The state of a picture before its first evaluation.

    Args:
        latents: noisy latents [C, h, w].
        branches: inputs of each guidance branch (for example with and without the prompt), by name.
        effects: what acts besides the sampler's steps, for example inpainting's blend with the source image.
    """

    latents: Array
    branches: Mapping[str, Branch]
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of an open pipeline that a family may use.

    Args:
        manifest: manifest of the pipeline.
        run: runs a network: takes its role and its inputs by name, returns its outputs by name. All inputs and outputs
            are NumPy arrays with a batch axis.
        encode_prompt: takes a text, returns the denoiser's inputs for the text, without batch axis; results are cached.
    """

    manifest: Manifest
    run: Callable[[str, Tensors], Tensors]
    encode_prompt: Callable[[str], Conditioning]


class Family(Protocol):
    """A kind of pipeline, such as Stable Diffusion: what its networks take and give.

    The methods have no side effects, except that they run networks through `Context.run`.
    """

    name: str
    """Name of the family in a manifest."""
    options: type[Any]
    """Dataclass of the fields that the manifest's `family_options` may hold."""

    def is_inpainting(self, manifest: Manifest) -> bool:
        """Return whether the denoiser takes the mask and the masked picture as further input channels."""

    def takes_guidance(self, manifest: Manifest) -> bool:
        """Return whether the denoiser takes the guidance scale as an input, and thus no negative prompt."""

    def schedule(self, manifest: Manifest, width: int, height: int) -> Schedule:
        """Return the noise schedule for a picture of this width and height in pixels."""

    def guidance(self, manifest: Manifest, request: ImageRequest) -> Guidance:
        """Return how guidance combines the network's outputs for a request whose defaults are filled in.

        Raises:
            InvalidRequest: the pipeline does not support the request's guidance or negative prompt.
        """

    def batch_key(self, manifest: Manifest, request: ImageRequest) -> tuple[int, ...]:
        """Return the values that pictures must have in common to share a batch, besides their size.

        An example is the length to which texts are padded.
        """

    def tokenize(self, tokenizers: Mapping[str, Tokenizer], text: str, key: tuple[int, ...]) -> Mapping[str, Tensors]:
        """Return the inputs of each text encoder, by role and name, with a batch axis.

        `key` is the result of `batch_key` for the request.

        Warns:
            PromptTruncated: a part of the text does not fit.
        """

    def encode_prompt(self, run: Callable[[str, Tensors], Tensors], tokens: Mapping[str, Tensors]) -> Conditioning:
        """Encode a text, and return the denoiser's inputs for it by name, without batch axis.

        Args:
            run: runs a network: takes its role and inputs by name, returns its outputs by name.
            tokens: result of `tokenize` for the text.
        """

    def prepare(self, context: Context, request: ImageRequest, noise: Array, plan: SamplingPlan) -> Start:
        """Return the state of a request's picture before the first evaluation.

        Args:
            context: the open pipeline.
            request: request with every default filled in.
            noise: standard normal noise of the shape of the latents.
            plan: sampling plan of the request; only the branches that its guidance names are needed.
        """

    def calls(self, manifest: Manifest) -> Sequence[NetworkCall]:
        """Return the networks of an evaluation in the order in which they run; the denoiser is the last one."""

    def feeds(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Tensors:
        """Return the inputs of the networks of one evaluation, by name.

        Args:
            latents: [R, C, h, w], with further channels for example for inpainting.
            timesteps: [R].
            conditioning: the denoiser's other inputs by name, [R, ...].
        """

    def read(self, outputs: Tensors, latents: Array) -> Array:
        """Return the denoiser's prediction, [R, C, h, w].

        Args:
            outputs: outputs of the denoiser, by name.
            latents: the latents for which the denoiser was run.
        """

    def encode_image(self, context: Context, picture: Picture) -> Array:
        """Encode a picture, and return its latents [C, h, w], normalised as the denoiser takes them."""

    def decode(self, context: Context, latents: Array) -> Array:
        """Decode normalised latents [C, h, w], and return the picture, [3, height, width], -1 to 1.

        Large pictures are decoded in tiles, so `latents` may be of a part of the picture only.
        """


def normalize_pixels(picture: Picture) -> Array:
    """Convert the pixels of a picture, uint8 [height, width, 3], to float32 [3, height, width], -1 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - 1


def to_pixels(signal: NDArray[Any]) -> Picture:
    """Convert a float picture [3, height, width] to pixels, uint8 [height, width, 3]; -1 is black, 1 is white.

    Values outside of -1 to 1 are clipped.

    >>> to_pixels(np.zeros((3, 1, 1), np.float32)).tolist()
    [[[128, 128, 128]]]
    """
    levels = np.rint((signal.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255)
    return np.ascontiguousarray(levels, np.uint8)


def latent_shape(latent: Latent, width: int, height: int) -> tuple[int, int, int]:
    """Return the shape [C, h, w] of the latents of a picture of this size in pixels."""
    return latent.channels, height // latent.downscale, width // latent.downscale


def normalize_latents(latent: Latent, encoded: Array) -> Array:
    """Return the encoder's output `encoded`, [C, h, w], shifted and scaled as `latent` says, for the denoiser."""
    if latent.std:
        encoded = (encoded - _by_channel(latent.mean)) / _by_channel(latent.std)
    return (encoded - latent.shift_factor) * latent.scaling_factor


def denormalize_latents(latent: Latent, latents: Array) -> Array:
    """Return normalised latents [C, h, w], scaled and shifted back as `latent` says, for the decoder."""
    encoded = latents / latent.scaling_factor + latent.shift_factor
    return encoded * _by_channel(latent.std) + _by_channel(latent.mean) if latent.std else encoded


def _by_channel(values: Sequence[float]) -> Array:
    return np.array(values, np.float32)[:, None, None]


def latent_mask(mask: NDArray[np.uint8], downscale: int) -> Array:
    """Reduce a mask to the size of the latents: float32 [1, h, w], 1 where the picture is inpainted, else 0.

    Each latent stands for a square of pixels, whose top left pixel decides, as in diffusers.

    Args:
        mask: uint8 [height, width]; parts with values above 127 are inpainted.
        downscale: side in pixels of the square that one latent stands for.
    """
    return (mask[None, ::downscale, ::downscale] > MASK_THRESHOLD).astype(np.float32)
