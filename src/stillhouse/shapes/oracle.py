"""The oracle: recognises the geometric figures in a picture, and scores the picture against a caption.

The oracle reads pixels only and is deterministic. The background colour is the median colour of the picture's border.
Connected pixels of other colours form a figure. The figure's matte is the share of each pixel that the figure covers.
Centre and radius follow from the matte in closed form. The shape is the one whose ideal matte fits best.
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
"""RGB distance from the background colour above which a pixel belongs to a figure.

The two most similar colours of the palette are 109 apart."""
_SMALLEST_FIGURE = 40
"""Smallest number of connected pixels that counts as a figure.

The smallest rendered figure, a cross of radius 7, covers 108 pixels."""
_STRAY_PIXELS, _MATTE_ERROR, _COLOUR_ERROR, _COLOUR_SPREAD = 4, 0.10, 40.0, 10.0
_NAMES = tuple(PALETTE)
_COLOURS = np.array([PALETTE[name] for name in _NAMES], np.float32)


@dataclass(frozen=True, slots=True)
class DetectedFigure:
    """A figure that the oracle recognised in a picture, and how much it deviates from an ideal figure.

    Args:
        shape, colour, size: names of the shape, palette colour and size that fit best, such as "circle".
        x, y, radius: centre and radius in pixels; y points downwards.
        rgb: median colour of the figure, 0 to 255.
        matte_error: sum of the differences between the pixels' measured and ideal coverage by the figure, divided by
            the figure's area.
        colour_error: RGB distance between `rgb` and the palette colour.
        spread: mean absolute deviation of the figure's RGB values from `rgb`.
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
    """The scene (figures on a background) that the oracle recognised in a picture.

    Args:
        figures: recognised figures, in the order in which `scipy.ndimage.label` finds them.
        background: name of the palette colour that is nearest to the background's colour.
        background_rgb: median colour of the background, 0 to 255.
        background_error: RGB distance between `background_rgb` and the palette colour `background`.
        stray_pixels: number of pixels that are neither background nor part of a figure.
    """

    figures: tuple[DetectedFigure, ...]
    background: str
    background_rgb: tuple[float, float, float]
    background_error: float
    stray_pixels: int

    @property
    def is_clean(self) -> bool:
        """Whether the picture has sharp edges, flat palette colours, and only pixels of background and figures."""
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
    """Agreement between a picture and a caption, as the oracle scores it.

    Args:
        count: 1 where the number of figures is right, else 0.
        background: 1 where the background's colour is right or not mentioned, else 0.
        shape, colour, size: share of the caption's figures whose shape, colour or size is right or not mentioned, 0 to
            1; 0 where `count` is 0.
        relation: 1 where the position of the figures is right or not mentioned, else 0; 0 where `count` is 0.
        clean: whether the picture has sharp edges, flat palette colours and no stray pixels.
        rerender: PSNR in dB between the picture and an ideal rendering of the recognised scene, at most 60.
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
        """Whether the picture shows everything that the caption says, and no additional figure."""
        return all(getattr(self, attribute) == 1.0 for attribute in ATTRIBUTES)

    @property
    def strict(self) -> bool:
        """Whether the picture shows what the caption says (`all_correct`), and does so cleanly (`clean`)."""
        return self.all_correct and self.clean


def read_scene(picture: Picture) -> SceneReading:
    """Recognise the figures and the background in a picture, uint8 [64, 64, 3].

    >>> from stillhouse.shapes.scene import Figure, Scene, render_scene
    >>> read_scene(render_scene(Scene((Figure("cross", "blue", "small", 30, 35, 7.5),), "white"))).figures[0].shape
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
    """Score how well a picture, uint8 [64, 64, 3], shows what a caption says.

    If the number of figures is wrong, the scores of shape, colour, size and relation are 0.
    """
    return score_reading(read_scene(picture), caption, picture)


def score_reading(reading: SceneReading, caption: Description, picture: Picture) -> CaptionScore:
    """Score how well a picture shows what a caption says, when its scene is already recognised.

    Args:
        reading: the scene that `read_scene` recognised in the picture.
        caption: the caption.
        picture: uint8 [64, 64, 3], from which only the PSNR `rerender` is computed.
    """
    rerender = _psnr(picture, render_reading(reading))
    background = float(caption.background in (None, reading.background))
    if len(reading.figures) != len(caption.phrases):
        return CaptionScore(0.0, background, 0.0, 0.0, 0.0, 0.0, reading.is_clean, rerender)
    orders = (_match(caption, order) for order in permutations(reading.figures))
    shape, colour, size, relation = max(orders, key=sum)
    return CaptionScore(1.0, background, shape, colour, size, relation, reading.is_clean, rerender)


def render_reading(reading: SceneReading) -> Picture:
    """Render the ideal figures of a recognised scene in the colours that were measured, uint8 [64, 64, 3]."""
    return composite([(coverage(f.shape, f.x, f.y, f.radius), f.rgb) for f in reading.figures], reading.background_rgb)


def _match(caption: Description, order: tuple[DetectedFigure, ...]) -> tuple[float, float, float, float]:
    pairs = list(zip(caption.phrases, order, strict=True))

    def share(hits: Iterable[bool]) -> float:
        return sum(hits) / len(pairs)

    relation = caption.relation is None or caption.relation == _relation(order[0], order[1])
    return (
        share(figure.shape == phrase.shape for phrase, figure in pairs),
        share(phrase.colour in (None, figure.colour) for phrase, figure in pairs),
        share(phrase.size in (None, figure.size) for phrase, figure in pairs),
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
    # The matte (opacity of the figure at each pixel) is empty if the median colour of the figure equals the background.
    # The region is then used as the matte.
    if matte.sum() < 1:
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
    """Fit a figure of a given shape to a matte (share of each pixel that the figure covers), by area and centroid.

    Returns:
        the shape; the summed difference between the matte and the figure's ideal matte, divided by the figure's area;
        and x, y and radius in pixels.
    """
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
    """Return the area of a shape of radius 1 and the y coordinate of its centroid, by integration on a fine grid."""
    y, x = np.mgrid[-1.5:1.5:1200j, -1.5:1.5:1200j].astype(np.float32)
    inside = signed_distance(shape, x, y, 1.0) <= 0
    return float(inside.mean()) * 9.0, float(y[inside].mean())


def _nearest_colour(rgb: NDArray[np.float32]) -> tuple[str, float]:
    distances = np.sqrt(((_COLOURS - rgb) ** 2).sum(-1))
    nearest = int(distances.argmin())
    return _NAMES[nearest], float(distances[nearest])


def _psnr(picture: Picture, other: Picture) -> float:
    """Return the PSNR in dB between two pictures, uint8 of the same shape; at most 60."""
    error = float(((picture.astype(np.float32) - other.astype(np.float32)) ** 2).mean())
    return 10 * math.log10(255**2 / max(error, 0.065025))


def _rgb_tuple(rgb: NDArray[np.float32]) -> tuple[float, float, float]:
    return float(rgb[0]), float(rgb[1]), float(rgb[2])
