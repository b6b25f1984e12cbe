"""Kinds of arrays that trajectories are computed on: NumPy's, or those of the runtime that runs the network.

Trajectories need arithmetic only, which any array has. An `Arrays` does the rest: it makes a batch of pictures, and
moves arrays to the device and back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Arrays(Protocol):
    """A kind of arrays on one device. All pictures of a batch are of one kind."""

    @property
    def fused_step(self) -> Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]] | None:
        """A kernel for guidance and step of a batch in one pass; None where the device has none.

        Takes z, outputs, rows as int32 [P, 1 + T] (None where they are pairs in order), weights as float32 [P, 5 + T],
        and the previous denoised pictures; see `step.step_batch`.
        """

    def to_device(self, array: NDArray[Any], /) -> Any:
        """Return a NumPy array on the device; of the same dtype."""

    def stack(self, parts: Sequence[Any], /) -> Any:
        """Return arrays of one shape joined along a new first axis; a copy."""

    def concatenate(self, parts: Sequence[Any], axis: int, /) -> Any:
        """Return arrays joined along one of their axes; a copy."""

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
"""NumPy arrays, in the processor's memory."""
