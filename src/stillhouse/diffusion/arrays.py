"""Kinds of arrays that pictures are denoised in: NumPy arrays, or the arrays of the denoiser's runtime on its device.

Arithmetic is the same for all kinds. The class `Arrays` has the operations that differ: joining pictures to a batch,
and moving arrays to the device and back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Arrays(Protocol):
    """The operations that differ between kinds of arrays, such as NumPy arrays and torch tensors on a GPU.

    All pictures of a batch use arrays of the same kind, on the same device.
    """

    @property
    def fused_step(self) -> Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]] | None:
        """A kernel that applies guidance and the sampler's step to a batch; None where the device has no such kernel.

        The kernel takes five arguments, for P pictures with at most T guidance weights each:

        - the pictures' latents, float32 [P, C, h, w]
        - the network's outputs, [R, C, h, w]
        - the indices of each picture's outputs, int32 [P, 1 + T]; None where they are 2 * i and 2 * i + 1 for picture i
        - the weights of each picture, float32 [P, 5 + T]: `step.STEP_WEIGHTS`, then the guidance weights
        - the denoised pictures of the previous evaluation, [P, C, h, w], or None where no picture needs them

        The kernel returns the latents after the step and the denoised pictures, both [P, C, h, w].
        """

    def to_device(self, array: NDArray[Any], /) -> Any:
        """Return a NumPy array as an array on the device, with the same dtype. Both may share memory."""

    def stack(self, parts: Sequence[Any], /) -> Any:
        """Return a new array that joins arrays of equal shape along a new first axis."""

    def concatenate(self, parts: Sequence[Any], axis: int, /) -> Any:
        """Return a new array that joins arrays along one of their axes."""

    def to_numpy(self, array: Any, /) -> NDArray[Any]:
        """Return an array as a NumPy array; a NumPy array is returned as it is."""

    def synchronize(self) -> None:
        """Wait until the device has done all of its work."""


class _NumpyArrays:
    fused_step = None

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def stack(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.array(parts)

    def concatenate(self, parts: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
        return np.concatenate(parts, axis)

    def to_numpy(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def synchronize(self) -> None:
        pass


NUMPY: Arrays = _NumpyArrays()
"""NumPy arrays, in main memory."""
