"""Tiled decoding: large latents are decoded tile by tile, with the memory of one tile.

As in diffusers' `AutoencoderKL.tiled_decode`, tiles overlap by a quarter and are blended linearly. Where such tiles fit
the picture exactly, the pixels equal diffusers' pixels, except in corners where four tiles meet: here each tile is
weighted by the product of its two weights, while diffusers blends tiles that are blended already. Where tiles do not
fit, diffusers makes the last tiles smaller; here all tiles have one size and overlap more, so that one network with
static shapes decodes all of them. Tiles may have any size; in diffusers, the size must be divisible by four.
"""

from collections.abc import Callable

import numpy as np

from stillhouse.core import Array

OVERLAP = 0.25
"""Least share of a tile's side by which the next tile overlaps it."""


def decode_tiled(decode: Callable[[Array], Array], latents: Array, tile: int, downscale: int) -> Array:
    """Decode latents in overlapping tiles, and return the joined picture before its conversion to pixels.

    Args:
        decode: takes latents [C, y, x], returns a decoded tile [c, y * downscale, x * downscale]; called once for each
            tile.
        latents: float32 [C, h, w].
        tile: side of a tile in latents, at least 2.
        downscale: side of one latent in pixels.

    Returns:
        the picture, float32 [c, h * downscale, w * downscale].

    >>> flat = np.ones((1, 5, 9), np.float32)
    >>> bool(np.allclose(decode_tiled(lambda latents: latents, flat, 4, 1), flat))
    True
    """
    height, width = latents.shape[1:]
    joined: Array | None = None
    for top, down in _weights(height, tile, downscale):
        for left, across in _weights(width, tile, downscale):
            signal = decode(latents[:, top : top + tile, left : left + tile])
            if joined is None:
                joined = np.zeros((len(signal), height * downscale, width * downscale), np.float32)
            rows = slice(top * downscale, top * downscale + len(down))
            columns = slice(left * downscale, left * downscale + len(across))
            joined[:, rows, columns] += down[:, None] * across * signal
    assert joined is not None
    return joined


def tile_starts(length: int, tile: int) -> list[int]:
    """Return the index of the first latent of each tile along one side of the latents.

    There are as few tiles as an overlap of at least `OVERLAP` allows, and they are evenly spread.

    Args:
        length: length of the side, in latents.
        tile: side of a tile, in latents.

    >>> tile_starts(22, 10), tile_starts(20, 10), tile_starts(8, 10)
    ([0, 6, 12], [0, 5, 10], [0])
    """
    if length <= tile:
        return [0]
    stride = max(int(tile * (1 - OVERLAP)), 1)
    steps = -((tile - length) // stride)
    return [round(step * (length - tile) / steps) for step in range(steps + 1)]


def _weights(length: int, tile: int, downscale: int) -> list[tuple[int, Array]]:
    """Return, for each tile along one side of the picture, the index of its first latent and the weights of its pixels.

    The weights of all tiles sum to 1 at every pixel of the side. `length` is the length of the side in latents, `tile`
    the side of a tile in latents, and `downscale` the side of one latent in pixels.
    """
    starts, side = tile_starts(length, tile), min(tile, length) * downscale
    blend = max((tile - max(int(tile * (1 - OVERLAP)), 1)) * downscale, 1)
    pixels = np.arange(side)
    weights = [np.ones(side, np.float32) for _ in starts]
    for place in range(1, len(starts)):
        stride = (starts[place] - starts[place - 1]) * downscale
        # `first` is the pixel where the blend of two tiles begins. The blend lies in the middle of the overlap, so that
        # it is far from the edges of both tiles.
        first = (side - stride - blend) // 2
        rising = np.clip((pixels - first) / blend, 0, 1).astype(np.float32)
        weights[place] *= rising
        weights[place - 1][stride:] *= 1 - rising[: side - stride]
    return list(zip(starts, weights, strict=True))
