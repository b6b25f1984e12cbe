"""The nouns that travel between rooms: what is asked, what comes back, and what a network takes."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.uint8]
"""RGB, uint8, [height, width, 3]."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRequest:
    """One picture as asked for. None means: as the pipeline's manifest says.

    Args:
        prompt: what to draw.
        negative_prompt: what to stay away from; has an effect only where guidance is above 1.
        seed: any whole number from 0 to 2**63 - 1. With the rest of the request it decides every pixel.
        steps: sampler steps, 1 to 1000. With an image, `strength` decides how many of them are walked.
        guidance: classifier-free guidance scale as in diffusers; 1 turns it off and halves the work.
        sampler: a name out of `stillhouse.SAMPLERS`.
        width, height: in pixels, multiples of the pipeline's own granularity.
        image: picture to start from, uint8 [height, width, 3].
        mask: where to repaint the image, uint8 [height, width], above 127 means repaint.
        strength: how far to go back from the image, above 0 (nothing changes) to 1 (only its size is kept).
        guidance_rescale: 0 to 1, phi of Lin et al. (arXiv 2305.08891), equation 16.
        guidance_interval: part of the walk that is guided, as shares from 0 (pure noise) to 1 (clean).
        eta: share of fresh noise in every DDIM step, 0 to 1.
        cache_interval: every how many evaluations the denoiser's deep features are computed anew; 1 means always. More
            is quicker and less exact, for pipelines whose denoiser `stillhouse accelerate` has split for it.

    >>> ImageRequest("a red circle", seed=7).steps is None
    True
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    width: int | None = None
    height: int | None = None
    image: Picture | None = None
    mask: NDArray[np.uint8] | None = None
    strength: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    eta: float = 0.0
    cache_interval: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageResult:
    """A finished picture, the request with every default filled in, and the seconds from start to finish."""

    image: Picture
    request: ImageRequest
    seconds: float


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a network: its name, numpy dtype name, and shape with None where it is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
