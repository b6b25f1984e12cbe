"""Kinds of arrays that trajectories are computed on: NumPy arrays, or the arrays of the runtime of the denoiser.

Arithmetic is the same for all kinds. An `Arrays` does what differs: it joins pictures to a batch, and moves arrays to
the device and back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Arrays(Protocol):
    """A kind of arrays on one device. All pictures of a batch are of one kind."""

    @property
    def fused_step(self) -> Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]] | None:
        """A kernel that guides and steps a batch in one pass; None where the device has no such kernel.

        Takes z, outputs, rows as int32 [P, 1 + T] (None where the rows of picture i are 2 * i and 2 * i + 1), weights
        as float32 [P, 5 + T], and the previous denoised pictures; see `step.step_batch`.
        """

    def to_device(self, array: NDArray[Any], /) -> Any:
        """Return a NumPy array as an array on the device, with the same dtype; it may share memory."""

    def stack(self, parts: Sequence[Any], /) -> Any:
        """Return a new array that joins arrays of one shape along a new first axis."""

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
