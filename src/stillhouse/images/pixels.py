"""Pictures as uint8 arrays, and as the signals from -1 to 1 that an autoencoder takes and gives."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array, Picture


def normalize_pixels(picture: Picture) -> Array:
    """uint8 [height, width, 3] to float32 [3, height, width], -1 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - 1


def to_pixels(signal: NDArray[Any]) -> Picture:
    """float32 [3, height, width], -1 to 1 and cut off there, to uint8 [height, width, 3].

    >>> to_picture(np.zeros((3, 1, 1), np.float32)).tolist()
    [[[128, 128, 128]]]
    """
    levels = np.rint((signal.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255)
    return np.ascontiguousarray(levels, np.uint8)
