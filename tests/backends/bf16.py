"""bf16 as uint16, the upper half of a float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Round to the nearest bf16; NaN stays NaN."""
    bits = np.asarray(values, np.float32, order="C").view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bf16(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 of the same value."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
