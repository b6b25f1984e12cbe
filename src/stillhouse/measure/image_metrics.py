"""Measures of the difference between two pictures, PSNR and SSIM, and a picture that shows the difference."""

import math

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Picture

MAX_PSNR = 99.0
"""PSNR in dB of equal pictures, and the upper limit for all other pictures."""

_WHITE = 255.0
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def psnr(reference: Picture, other: Picture) -> float:
    """Return the peak signal to noise ratio in dB, 10 log10(255^2 / mean squared error), at most 99.

    Args:
        reference, other: uint8 [height, width, 3], of the same shape.

    Raises:
        ValueError: the shapes differ, or there are no pixels.

    >>> psnr(np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8))
    0.0
    """
    _check(reference, other)
    error = float(np.mean(np.square(reference.astype(np.float64) - other)))
    return min(MAX_PSNR, 10 * math.log10(_WHITE**2 / error)) if error else MAX_PSNR


def ssim(reference: Picture, other: Picture) -> float:
    """Return the mean structural similarity, at most 1 (Wang et al., IEEE Transactions on Image Processing 13, 2004).

    As in the paper, the window is Gaussian with 11 pixels and a standard deviation of 1.5, K1 is 0.01, K2 is 0.03, and
    the mean is taken over the positions where the window lies inside the picture. The index is computed for red, green
    and blue and averaged, so that a wrong colour of the same brightness lowers the result. In a picture smaller than
    the window, the window has the length of the shorter side.

    Args:
        reference, other: uint8 [height, width, 3], of the same shape.

    Raises:
        ValueError: the shapes differ, or there are no pixels.

    >>> ssim(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))
    1.0
    """
    _check(reference, other)
    window = _gaussian_window(min(_WINDOW, *reference.shape[:2]))
    x, y = reference.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _filter(x, window), _filter(y, window)
    var_x = _filter(x * x, window) - mean_x**2
    var_y = _filter(y * y, window) - mean_y**2
    covariance = _filter(x * y, window) - mean_x * mean_y
    c1, c2 = (_K1 * _WHITE) ** 2, (_K2 * _WHITE) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(numerator / denominator))


def difference_image(reference: Picture, other: Picture, gain: float = 4) -> Picture:
    """Return the absolute difference of two pictures times `gain`, clipped to white.

    Args:
        reference, other: uint8 [height, width, 3], of the same shape.
        gain: factor by which the difference is multiplied.

    Raises:
        ValueError: the shapes differ, or there are no pixels.

    >>> int(difference_image(np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 13, np.uint8))[0, 0, 0])
    12
    """
    _check(reference, other)
    error = np.abs(reference.astype(np.float64) - other)
    return np.asarray(np.rint((gain * error).clip(0, _WHITE)), np.uint8)


def _check(reference: Picture, other: Picture) -> None:
    if reference.shape != other.shape:
        raise ValueError(
            f"the pictures have shapes {list(reference.shape)} and {list(other.shape)}; both need the same shape"
        )
    if not reference.size:
        raise ValueError(
            f"the pictures are without pixels: their shape is {list(reference.shape)}; allowed: sides from 1 pixel"
        )


def _gaussian_window(length: int) -> NDArray[np.float64]:
    offsets = np.arange(length) - (length - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    return np.asarray(weights / weights.sum(), np.float64)


def _filter(plane: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weighted means over height and width at the positions where the window lies inside the picture.

    Args:
        plane: one colour channel, [height, width].
        window: weights along one axis, [length], used for both axes.
    """
    from scipy.ndimage import correlate1d

    length = len(window)
    for axis in (0, 1):
        first, count = length // 2, plane.shape[axis] - length + 1
        plane = np.asarray(correlate1d(plane, window, axis, mode="nearest"), np.float64)
        plane = plane.take(range(first, first + count), axis)
    return plane
