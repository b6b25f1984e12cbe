"""The oracle: which shapes, colours, sizes, relation and background a picture shows, and whether a caption is met.

It reads pixels only, knows nothing of the model, and is deterministic. A picture's border gives the background;
what differs from it falls into connected components; each component's soft matte (how much of each pixel it
covers) gives centre and radius in closed form, and the shape whose own coverage fits the matte best names it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stillhouse.core import Picture
from stillhouse.shapes.caption import Description
from stillhouse.shapes.scene import (
    CANVAS,
    PALETTE,
    SHAPES,
    SIZE_BOUNDARY,
    PixelMap,
    composite,
    coverage,
    signed_distance,
)

ATTRIBUTES = ("count", "background", "shape", "colour", "size", "relation")

_BACKGROUND_TOLERANCE = 60.0
"""RGB distance beyond which a pixel is no longer background; the palette's nearest colours are 109 apart."""
_SMALLEST_FIGURE = 40
"""Pixels; the smallest figure drawn (a cross of radius 7) covers 108."""
_STRAY_PIXELS, _MATTE_ERROR, _COLOUR_ERROR, _COLOUR_SPREAD = 4, 0.10, 40.0, 10.0
_NAMES = tuple(PALETTE)
_COLOURS = np.array([PALETTE[name] for name in _NAMES], np.float32)


@dataclass(frozen=True, slots=True)
class DetectedFigure:
    """A figure read from pixels, with how far it is from a clean one.

    `matte_error` is the share of its area by which the matte differs from the named shape; `colour_error` the RGB
    distance to the named colour; `spread` the mean RGB deviation inside it.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]
    matte_error: float
    colour_error: float
    spread: float


@dataclass(frozen=True, slots=True)
class SceneReading:
    """A whole picture as read. `stray` counts pixels that are neither background nor part of a figure."""

    figures: tuple[DetectedFigure, ...]
    background: str
    background_rgb: tuple[float, float, float]
    background_error: float
    stray_pixels: int

    @property
    def is_clean(self) -> bool:
        """No stray blobs, sharp edges, flat colours."""
        return (
            self.stray_pixels <= _STRAY_PIXELS
            and self.background_error < _COLOUR_ERROR
            and all(
                f.matte_error < _MATTE_ERROR and f.colour_error < _COLOUR_ERROR and f.spread < _COLOUR_SPREAD
                for f in self.figures
            )
        )


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """How well a picture meets a caption. Each attribute is a share of the caption's phrases, 0 to 1.

    `rerender` is the PSNR in dB between the picture and a clean drawing of what was read in it.
    """

    count: float
    background: float
    shape: float
    colour: float
    size: float
    relation: float
    clean: bool
    rerender: float

    @property
    def all_correct(self) -> bool:
        """Everything that the caption says is in the picture, and nothing else."""
        return all(getattr(self, attribute) == 1.0 for attribute in ATTRIBUTES)

    @property
    def strict(self) -> bool:
        """All correct and clean."""
        return self.all_correct and self.clean


def read_scene(picture: Picture) -> SceneReading:
    """Read a picture, uint8 [64, 64, 3].

    >>> from stillhouse.shapes.scene import Figure, Scene, draw
    >>> read(draw(Scene((Figure("cross", "blue", "small", 30, 35, 7.5),), "white"))).figures[0].shape
    'cross'
    """
    pixels = picture.astype(np.float32)
    background = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    name, error = _nearest_colour(background)
    different = np.sqrt(((pixels - background) ** 2).sum(-1)) > _BACKGROUND_TOLERANCE
    labels, count = ndimage.label(different)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    figures = tuple(
        _read_figure(pixels, background, labels, label)
        for label in range(1, count + 1)
        if areas[label - 1] >= _SMALLEST_FIGURE
    )
    stray = int(areas[areas < _SMALLEST_FIGURE].sum())
    return SceneReading(figures, name, _rgb_tuple(background), error, stray)


def score_picture(picture: Picture, caption: Description) -> CaptionScore:
    """Score a picture against what a caption says. A wrong number of figures scores zero on what is said of them."""
    return score_reading(read_scene(picture), caption, picture)


def score_reading(reading: SceneReading, caption: Description, picture: Picture) -> CaptionScore:
    """`score` for a picture that was read already."""
    rerender = _psnr(picture, render_reading(reading))
    background = float(caption.background in (None, reading.background))
    if len(reading.figures) != len(caption.phrases):
        return CaptionScore(0.0, background, 0.0, 0.0, 0.0, 0.0, reading.is_clean, rerender)
    orders = (_match(caption, order) for order in permutations(reading.figures))
    shape, colour, size, relation = max(orders, key=sum)
    return CaptionScore(1.0, background, shape, colour, size, relation, reading.is_clean, rerender)


def render_reading(reading: SceneReading) -> Picture:
    """A clean drawing of what was read, in the colours that were read."""
    return composite([(coverage(f.shape, f.x, f.y, f.radius), f.rgb) for f in reading.figures], reading.background_rgb)


def _match(caption: Description, order: tuple[DetectedFigure, ...]) -> tuple[float, float, float, float]:
    pairs = list(zip(caption.phrases, order, strict=True))

    def share(hits: Iterable[bool]) -> float:
        return sum(hits) / len(pairs)

    relation = caption.relation is None or caption.relation == _relation(order[0], order[1])
    return (
        share(seen.shape == said.shape for said, seen in pairs),
        share(said.colour in (None, seen.colour) for said, seen in pairs),
        share(said.size in (None, seen.size) for said, seen in pairs),
        float(relation),
    )


def _relation(first: DetectedFigure, second: DetectedFigure) -> str:
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _read_figure(
    pixels: NDArray[np.float32], background: NDArray[np.float32], labels: NDArray[np.signedinteger], label: int
) -> DetectedFigure:
    region = labels == label
    core = ndimage.binary_erosion(region, iterations=2)
    inside = pixels[core if core.sum() >= 9 else region]
    colour = np.median(inside, axis=0)
    name, error = _nearest_colour(colour)
    direction = colour - background
    matte = np.clip((pixels - background) @ direction / max(float(direction @ direction), 1e-6), 0, 1)
    near = ndimage.binary_dilation(region, iterations=2)
    matte = np.where(near & ((labels == label) | (labels == 0)), matte, 0).astype(np.float32)
    if matte.sum() < 1:  # a figure whose colours cancel out has no direction away from the background
        matte = region.astype(np.float32)
    shape, matte_error, x, y, radius = min((_fit_shape(shape, matte) for shape in SHAPES), key=lambda fit: fit[1])
    return DetectedFigure(
        shape,
        name,
        "small" if radius < SIZE_BOUNDARY else "big",
        x,
        y,
        radius,
        _rgb_tuple(colour),
        matte_error,
        error,
        float(np.abs(inside - colour).mean()),
    )


def _fit_shape(shape: str, matte: PixelMap) -> tuple[str, float, float, float, float]:
    """(shape, error, x, y, radius) of the figure with the matte's own area and centroid."""
    area = float(matte.sum())
    centres = np.arange(CANVAS, dtype=np.float32) + np.float32(0.5)
    mean_x, mean_y = float(matte.sum(0) @ centres) / area, float(matte.sum(1) @ centres) / area
    unit_area, unit_y = _moments(shape)
    radius = math.sqrt(area / unit_area)
    x, y = mean_x, mean_y - unit_y * radius
    error = float(np.abs(coverage(shape, x, y, radius) - matte).sum()) / area
    return shape, error, x, y, radius


@cache
def _moments(shape: str) -> tuple[float, float]:
    """Area and height of the centroid of the shape with radius 1, by quadrature on a fine grid."""
    y, x = np.mgrid[-1.5:1.5:1200j, -1.5:1.5:1200j].astype(np.float32)
    inside = signed_distance(shape, x, y, 1.0) <= 0
    return float(inside.mean()) * 9.0, float(y[inside].mean())


def _nearest_colour(rgb: NDArray[np.float32]) -> tuple[str, float]:
    distances = np.sqrt(((_COLOURS - rgb) ** 2).sum(-1))
    nearest = int(distances.argmin())
    return _NAMES[nearest], float(distances[nearest])


def _psnr(picture: Picture, other: Picture) -> float:
    """PSNR in dB, capped at 60."""
    error = float(((picture.astype(np.float32) - other.astype(np.float32)) ** 2).mean())
    return 10 * math.log10(255**2 / max(error, 0.065025))


def _rgb_tuple(rgb: NDArray[np.float32]) -> tuple[float, float, float]:
    return float(rgb[0]), float(rgb[1]), float(rgb[2])
