"""Conversion between uint8 pixels and an autoencoder's float32 pictures, -1 to 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array, Picture


def normalize_pixels(picture: Picture) -> Array:
    """Convert uint8 [height, width, 3] to float32 [3, height, width], -1 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - 1


def to_pixels(signal: NDArray[Any]) -> Picture:
    """Convert float32 [3, height, width], clipped to -1 to 1, to uint8 [height, width, 3].

    >>> to_pixels(np.zeros((3, 1, 1), np.float32)).tolist()
    [[[128, 128, 128]]]
    """
    levels = np.rint((signal.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255)
    return np.ascontiguousarray(levels, np.uint8)
