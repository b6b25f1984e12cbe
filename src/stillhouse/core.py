"""Types that every package uses: an image request, its result, and the description of a network's tensor."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.uint8]
"""An RGB picture: uint8 [height, width, 3]."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRequest:
    """A request for one picture. Where a field is None, the pipeline's default is used.

    Args:
        prompt: text that describes the picture.
        negative_prompt: text that describes what the picture must not show; has an effect where guidance is above 1.
        seed: whole number from 0 to 2**63 - 1. The seed and the other fields decide every pixel.
        steps: sampler steps, 1 to 1000. With an image, `strength` decides how many of the steps are taken.
        guidance: classifier-free guidance scale as in diffusers; 1 turns guidance off and halves the work.
        sampler: a name out of `stillhouse.SAMPLERS`.
        width, height: in pixels, multiples of `granularity` in the pipeline's manifest.
        image: picture to start from, uint8 [height, width, 3].
        mask: the part of the image to inpaint, uint8 [height, width]; pixels above 127 are inpainted.
        strength: noise that is added to the image, above 0 (nothing changes) to 1 (only the image's size counts).
        guidance_rescale: 0 to 1, phi of Lin et al. (arXiv 2305.08891), equation 16.
        guidance_interval: where guidance acts: start and end, as shares of denoising from 0 (pure noise) to 1 (clean).
        eta: share of fresh noise in every DDIM step, from 0 (none) to 1, as eta in diffusers.
        cache_interval: with n, the denoiser's deep features are computed at every n-th evaluation and estimated in
            between (DeepCache); 1: always computed. Larger values are faster and less exact. Needs a pipeline whose
            denoiser `stillhouse accelerate` has split.

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
    """A generated picture, its request with every default filled in, and the seconds that generating it took."""

    image: Picture
    request: ImageRequest
    seconds: float


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a network: its name, NumPy dtype name, and shape with None for dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
