"""Pictures as files, as uint8 arrays, and as the signals from -1 to 1 that an autoencoder takes and gives."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stillhouse.core import Array, Picture
from stillhouse.errors import InvalidRequest


def read_picture(path: Path) -> Picture:
    """Read a picture file as RGB, uint8 [height, width, 3].

    Raises:
        InvalidRequest: there is no such file, or it is no picture.
    """
    return _read(path, "RGB")


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as grey, uint8 [height, width]; above 127 means repaint."""
    return _read(path, "L")


def to_signal(picture: Picture) -> Array:
    """uint8 [height, width, 3] to float32 [3, height, width], -1 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - 1


def to_picture(signal: NDArray[Any]) -> Picture:
    """float32 [3, height, width], -1 to 1 and cut off there, to uint8 [height, width, 3].

    >>> to_picture(np.zeros((3, 1, 1), np.float32)).tolist()
    [[[128, 128, 128]]]
    """
    levels = np.rint((signal.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255)
    return np.ascontiguousarray(levels, np.uint8)


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode), np.uint8)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise InvalidRequest(f"{path} cannot be read as a picture ({error})", allowed="PNG, JPEG, WebP") from error
