"""Where a walk's pictures lie: in the processor's memory as NumPy arrays, or with whatever runs the network.

A walk is arithmetic, which any array can do. What differs is how a batch is made of pictures, how numbers that the
processor knows get to them, and how they get back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Arrays(Protocol):
    """A kind of arrays in one place. All pictures of a batch are of one kind."""

    @property
    def fused_step(self) -> Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]] | None:
        """Guidance and step of a batch in one pass, or None where there is no kernel for it.

        Takes z, outputs, rows as int32 [P, 1 + T] (None where they are pairs in order), weights as float32 [P, 5 + T],
        and the previous denoised pictures; see `step.step_batch`.
        """

    def to_device(self, array: NDArray[Any], /) -> Any:
        """The same numbers there; of the same dtype."""

    def stack(self, parts: Sequence[Any], /) -> Any:
        """One array of several of one shape, along a new first axis; a copy."""

    def concatenate(self, parts: Sequence[Any], axis: int, /) -> Any:
        """One array of several, along one of their axes."""

    def to_numpy(self, array: Any, /) -> NDArray[Any]:
        """The same numbers as a NumPy array; NumPy's pass."""

    def synchronize(self) -> None:
        """Return when everything that was asked for there is done."""


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
"""NumPy's own, in the processor's memory."""
