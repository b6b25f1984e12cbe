"""Large latents decoded tile by tile: memory for one tile, whatever the picture's size.

As diffusers' `AutoencoderKL.tiled_decode`: tiles overlap by a quarter, and each passes linearly into the next. Where
tiles of that stride fit the picture exactly, both compute the same, up to the corners in which four tiles meet: here
each of the four counts with the product of its two weights, whatever the order, where diffusers blends a row of tiles
that it has blended already. Where they do not fit, diffusers ends with smaller tiles, down to one latent without any
surroundings; here all tiles are of one size and lie closer together, so that a network opened for that one size
serves all of them. And a tile of any size joins without a gap, where diffusers needs one that divides by four.
"""

from collections.abc import Callable

import numpy as np

from stillhouse.core import Array

OVERLAP = 0.25
"""Share of a tile that the next one covers too, at least."""


def decode_tiled(decode: Callable[[Array], Array], latents: Array, tile: int, downscale: int) -> Array:
    """Decode overlapping tiles and join them.

    Args:
        decode: latents [C, y, x] to a signal [c, y * downscale, x * downscale]; it is called once for each tile.
        latents: float32 [C, h, w].
        tile: side of a tile in latents, at least 2.
        downscale: pixels to one latent.

    Returns:
        float32 [c, h * downscale, w * downscale].

    >>> flat = np.ones((1, 5, 9), np.float32)
    >>> bool(np.allclose(decode_tiled(lambda latents: latents, flat, 4, 1), flat))
    True
    """
    height, width = latents.shape[1:]
    picture: Array | None = None
    for top, down in _weights(height, tile, downscale):
        for left, across in _weights(width, tile, downscale):
            signal = decode(latents[:, top : top + tile, left : left + tile])
            if picture is None:
                picture = np.zeros((len(signal), height * downscale, width * downscale), np.float32)
            rows = slice(top * downscale, top * downscale + len(down))
            columns = slice(left * downscale, left * downscale + len(across))
            picture[:, rows, columns] += down[:, None] * across * signal
    assert picture is not None
    return picture


def tile_starts(length: int, tile: int) -> list[int]:
    """Where the tiles along one side begin: as few as overlap enough, evenly spread, the last one ending at the end.

    >>> starts(22, 10), starts(20, 10), starts(8, 10)
    ([0, 6, 12], [0, 5, 10], [0])
    """
    if length <= tile:
        return [0]
    stride = max(int(tile * (1 - OVERLAP)), 1)
    steps = -((tile - length) // stride)
    return [round(step * (length - tile) / steps) for step in range(steps + 1)]


def _weights(length: int, tile: int, downscale: int) -> list[tuple[int, Array]]:
    """Each tile's start in latents and its weights in pixels; at every pixel the weights of all tiles sum to 1."""
    begins, side = tile_starts(length, tile), min(tile, length) * downscale
    blend = max((tile - max(int(tile * (1 - OVERLAP)), 1)) * downscale, 1)
    pixels = np.arange(side)
    weights = [np.ones(side, np.float32) for _ in begins]
    for place in range(1, len(begins)):
        apart = (begins[place] - begins[place - 1]) * downscale
        # In the middle of what both cover, as far as can be from either's edge.
        begin = (side - apart - blend) // 2
        rising = np.clip((pixels - begin) / blend, 0, 1).astype(np.float32)
        weights[place] *= rising
        weights[place - 1][apart:] *= 1 - rising[: side - apart]
    return list(zip(begins, weights, strict=True))
