"""The contract of a pipeline family, and what several families share.

Latents are float32 [channels, height / downscale, width / downscale] from the noise to the decoder; a family whose
denoiser takes packed tokens packs them in `feeds` and unpacks them in `read`.
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
"""The brightest level of a mask that keeps the picture as it is."""

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs or outputs of a network by name, with their batch axis."""


@dataclass(frozen=True, slots=True)
class NetworkCall:
    """A network that runs at each evaluation.

    Args:
        role: of the component.
        inputs: names of what it takes, out of `Family.feeds` and of earlier calls' results; empty: all of them.
        outputs: name of each output that later calls take, with the name under which they take it.
    """

    role: str
    inputs: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a trajectory starts with: latents [C, h, w], branches by name, and effects besides the sampler's steps."""

    latents: Array
    branches: Mapping[str, Branch]
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a family may use of an open pipeline.

    Args:
        manifest: of the pipeline.
        run: runs a component: role, inputs by name -> outputs by name; NumPy arrays with a batch axis.
        encode_prompt: text -> what `Family.encode_prompt` makes of it, without batch axis; results are cached.
    """

    manifest: Manifest
    run: Callable[[str, Tensors], Tensors]
    encode_prompt: Callable[[str], Conditioning]


class Family(Protocol):
    """A kind of pipeline. Methods are pure but for `Context.run`, which calls networks."""

    name: str
    """As in the manifest."""
    options: type[Any]
    """A dataclass: what the manifest's `family_options` may hold."""

    def schedule(self, manifest: Manifest, width: int, height: int) -> Schedule:
        """Return the noise schedule of a picture of this size in pixels."""

    def guidance(self, manifest: Manifest, request: ImageRequest) -> Guidance:
        """Return how the branches of a resolved request are combined.

        Raises:
            InvalidRequest: the pipeline has no such guidance.
        """

    def batch_key(self, manifest: Manifest, request: ImageRequest) -> tuple[int, ...]:
        """Return what requests of one size must share to share a batch: the padded length of ragged texts."""

    def tokenize(self, tokenizers: Mapping[str, Tokenizer], text: str, key: tuple[int, ...]) -> Mapping[str, Tensors]:
        """Return the text encoders' inputs by role, with a batch axis; `key` is the request's `batch_key`.

        Warns:
            PromptTruncated: a part of the text does not fit.
        """

    def encode_prompt(self, run: Callable[[str, Tensors], Tensors], tokens: Mapping[str, Tensors]) -> Conditioning:
        """Return the denoiser's inputs that follow from a text, without batch axis."""

    def prepare(self, context: Context, request: ImageRequest, noise: Array, plan: SamplingPlan) -> Start:
        """Return what the trajectory of a resolved request starts with.

        Args:
            context: the open pipeline.
            request: resolved.
            noise: standard normal, of the latents' shape.
            plan: of the request; branches that its guidance does not name need not be made.
        """

    def calls(self, manifest: Manifest) -> Sequence[NetworkCall]:
        """Return the networks of an evaluation in their order; the denoiser is the last one."""

    def feeds(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Tensors:
        """Return the networks' inputs of a batch: latents [R, C, h, w], timesteps [R], conditioning [R, ...]."""

    def read(self, outputs: Tensors, latents: Array) -> Array:
        """Return the prediction, [R, C, h, w], out of the denoiser's outputs."""

    def encode_image(self, context: Context, picture: Picture) -> Array:
        """Return a picture's latents, normalised, [C, h, w]."""

    def decode(self, context: Context, latents: Array) -> Array:
        """Return the decoder's signal, [3, height, width], -1 to 1, of normalised latents [C, h, w].

        A large picture is decoded tile by tile, so that the latents may be a part of the picture's.
        """


def latent_shape(latent: Latent, width: int, height: int) -> tuple[int, int, int]:
    """Return the shape [C, h, w] of the latents of a picture of this size in pixels."""
    return latent.channels, height // latent.downscale, width // latent.downscale


def normalize_latents(latent: Latent, encoded: Array) -> Array:
    """Return the encoder's latents [C, h, w] in the units in which the denoiser was trained."""
    if latent.std:
        encoded = (encoded - _by_channel(latent.mean)) / _by_channel(latent.std)
    return (encoded - latent.shift_factor) * latent.scaling_factor


def denormalize_latents(latent: Latent, latents: Array) -> Array:
    """Return latents [C, h, w] in the units of the decoder."""
    encoded = latents / latent.scaling_factor + latent.shift_factor
    return encoded * _by_channel(latent.std) + _by_channel(latent.mean) if latent.std else encoded


def _by_channel(values: Sequence[float]) -> Array:
    return np.array(values, np.float32)[:, None, None]


def latent_mask(mask: NDArray[np.uint8], downscale: int) -> Array:
    """Return a mask over latents, float32 [1, h, w], 1 where the picture is inpainted.

    The first pixel of each latent decides, as in diffusers.
    """
    return (mask[None, ::downscale, ::downscale] > MASK_THRESHOLD).astype(np.float32)
