"""Effects on a trajectory besides its sampler: inpainting's blend with the source image, and feature caching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np  # noqa: F401 # doctests use it
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion.arrays import Arrays
from stillhouse.diffusion.prediction import add_noise
from stillhouse.diffusion.timestep_grid import NoiseLevel


class Effect:
    """An effect on one picture. The methods of this base class do nothing; an effect overrides the ones it needs."""

    def reuse_features(self, branches: Sequence[str], index: int) -> Sequence[NDArray[Any]] | None:
        """Return the cached features of each branch for evaluation `index`; None to run the whole network."""
        return None

    def cache_features(self, features: Mapping[str, NDArray[Any]], index: int) -> None:
        """Store the features that the network computed at evaluation `index`, by branch."""

    def after_step(self, latents: Array, level: NoiseLevel) -> Array:
        """Return the latents after the sampler's step, which ends at `level`; float32 [C, h, w]."""
        return latents

    def to_device(self, arrays: Arrays) -> Self:
        """Return the effect with its arrays on the device of the latents."""
        return self


@dataclass(frozen=True, slots=True)
class InpaintBlend(Effect):
    """Keep the source image's latents outside of the mask, for networks without inpainting channels.

    Args:
        clean: latents of the source image, float32 [C, h, w].
        mask: float32 [1, h, w] or [C, h, w], 1 where the picture is inpainted.
        noise: the noise that the trajectory starts with, float32 [C, h, w].
    """

    clean: Array
    mask: Array
    noise: Array

    def after_step(self, latents: Array, level: NoiseLevel) -> Array:
        """Return the latents, replaced outside of the mask by the source image's with the noise of `level`."""
        source = add_noise(self.clean, self.noise, level.alpha, level.sigma)
        return source * (1 - self.mask) + latents * self.mask

    def to_device(self, arrays: Arrays) -> "InpaintBlend":
        """Return the effect with its arrays on the device of the latents."""
        return InpaintBlend(*(arrays.to_device(array) for array in (self.clean, self.mask, self.noise)))


@dataclass(slots=True)
class FeatureCache(Effect):
    """Deep features of a split network, computed anew every `interval` evaluations.

    As in DeepCache (Ma et al., arXiv 2312.00858, section 3.3): deep features change slowly along a trajectory. Only the
    picture's own plan decides at which evaluations they are computed.

    Args:
        interval: largest number of evaluations from one run of the whole network to the next, 1 or more.
    """

    interval: int
    _features: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    _index: int = 0

    def reuse_features(self, branches: Sequence[str], index: int) -> Sequence[NDArray[Any]] | None:
        """Return the cached features of each branch; None where they are too old or a branch has no features.

        All branches of a picture are computed anew at the same evaluation, because guidance would amplify a difference
        between features of different ages.

        >>> cache = FeatureCache(2)
        >>> cache.cache_features({"conditional": np.zeros(8)}, index=3)
        >>> pairs = ((["conditional"], 4), (["conditional"], 5), (["unconditional", "conditional"], 4))
        >>> [cache.reuse_features(branches, index) is not None for branches, index in pairs]
        [True, False, False]
        """
        if index - self._index >= self.interval or not self._features.keys() >= set(branches):
            return None
        return [self._features[branch] for branch in branches]

    def cache_features(self, features: Mapping[str, NDArray[Any]], index: int) -> None:
        """Replace the cached features by the features of evaluation `index`, by branch, without a batch axis."""
        self._features, self._index = features, index
