"""Scenes that the package's own model is trained on: one or two flat figures on a plain background, 64x64 pixels.

A `Scene` decides every pixel of its picture.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Picture

CANVAS = 64
PixelMap: TypeAlias = NDArray[np.floating[Any]]
"""Array with one floating-point value for each pixel, [height, width]."""

PALETTE: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 68),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "purple": (150, 60, 190),
    "cyan": (60, 205, 220),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "big")
RELATIONS = ("left of", "right of", "above", "below")
RADIUS: Mapping[str, tuple[float, float]] = {"small": (7.0, 8.0), "big": (12.0, 13.0)}
"""Smallest and largest radius of a figure in pixels, by size; the gap between the ranges makes sizes unambiguous."""
SIZE_BOUNDARY = 10.0

_INNER, _OUTER = 16.0, 48.0
_MAJOR_JITTER, _MINOR_JITTER, _SINGLE_JITTER = 1.0, 4.0, 6.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: names of its shape, colour and size, and its centre and radius in pixels; y points downwards."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two figures on a background of one colour.

    Args:
        figures: the figures in the order in which they are drawn.
        background: name of the background's colour.
        relation: position of the first figure relative to the second, such as "left of"; None for one figure.
    """

    figures: tuple[Figure, ...]
    background: str
    relation: str | None = None


def signed_distance(shape: str, x: PixelMap, y: PixelMap, radius: float) -> PixelMap:
    """Return the distance in pixels of points to the outline of a figure at the origin; negative inside the figure.

    The distance is exact for circles, and near the straight edges of the other shapes. Anti-aliasing needs no more.

    Args:
        shape: name of the figure's shape.
        x, y: coordinates of the points.
        radius: radius of the figure in pixels.
    """
    return _OUTLINES[shape](x, y, radius)


def coverage(shape: str, x: float, y: float, radius: float, canvas: int = CANVAS) -> PixelMap:
    """Return the share of each pixel that a figure covers, 0 to 1, as an array [canvas, canvas].

    Args:
        shape: name of the figure's shape.
        x, y, radius: centre and radius of the figure in pixels.
        canvas: width and height of the picture in pixels.
    """
    px, py = _pixel_centres(canvas)
    covered: PixelMap = np.clip(0.5 - signed_distance(shape, px - np.float32(x), py - np.float32(y), radius), 0, 1)
    return covered


def render_scene(scene: Scene) -> Picture:
    """Render a scene as an anti-aliased picture, uint8 [64, 64, 3].

    >>> picture = render_scene(Scene((Figure("circle", "red", "big", 32, 32, 12.5),), "white"))
    >>> picture[32, 32].tolist(), picture[0, 0].tolist()
    ([214, 39, 40], [245, 245, 245])
    """
    return composite(
        [(coverage(f.shape, f.x, f.y, f.radius), PALETTE[f.colour]) for f in scene.figures], PALETTE[scene.background]
    )


def composite(
    layers: list[tuple[PixelMap, tuple[float, float, float]]], background: tuple[float, float, float]
) -> Picture:
    """Draw layers one above the other over a background of one colour, and return the picture, uint8 [64, 64, 3].

    Args:
        layers: for each layer the share of each pixel that it covers, [64, 64], and its RGB colour, 0 to 255. The first
            layer is drawn first.
        background: RGB colour of the background, 0 to 255.
    """
    picture = np.empty((CANVAS, CANVAS, 3), np.float32)
    picture[:] = background
    for cover, colour in layers:
        picture += cover[..., None] * (np.asarray(colour, np.float32) - picture)
    rounded: Picture = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return rounded


def sample_scene(rng: np.random.Generator, figures: int | None = None) -> Scene:
    """Return a random scene of one or two figures.

    Two figures differ in shape, colour or size. They lie in opposite halves of the picture, at least four pixels apart.

    Args:
        rng: source of randomness.
        figures: number of figures, 1 or 2; None: 1 with a probability of 40 %, else 2.
    """
    count = figures or (1 if rng.random() < 0.4 else 2)
    background = _choose(rng, tuple(PALETTE))
    inks = tuple(colour for colour in PALETTE if colour != background)
    relation = _choose(rng, RELATIONS) if count == 2 else None
    while True:
        placed = tuple(_sample_figure(rng, inks, x, y) for x, y in _figure_centres(rng, relation))
        if len({(f.shape, f.colour, f.size) for f in placed}) == count:
            return Scene(placed, background, relation)


def _sample_figure(rng: np.random.Generator, inks: tuple[str, ...], x: float, y: float) -> Figure:
    size = _choose(rng, SIZES)
    return Figure(_choose(rng, SHAPES), _choose(rng, inks), size, x, y, float(rng.uniform(*RADIUS[size])))


def _figure_centres(rng: np.random.Generator, relation: str | None) -> list[tuple[float, float]]:
    """Return random centres (x, y) in pixels of two figures that have a relation, the first figure's centre first.

    Without a relation, return the centre of a single figure.
    """

    def near(centre: float, jitter: float) -> float:
        return float(centre + rng.uniform(-jitter, jitter))

    if relation is None:
        return [(near(CANVAS / 2, _SINGLE_JITTER), near(CANVAS / 2, _SINGLE_JITTER))]
    major = [near(_INNER, _MAJOR_JITTER), near(_OUTER, _MAJOR_JITTER)]
    minor = [near(CANVAS / 2, _MINOR_JITTER), near(CANVAS / 2, _MINOR_JITTER)]
    if relation in ("right of", "below"):
        major.reverse()
    horizontal = relation in ("left of", "right of")
    return list(zip(major, minor, strict=True)) if horizontal else list(zip(minor, major, strict=True))


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


@cache
def _pixel_centres(canvas: int) -> tuple[PixelMap, PixelMap]:
    y, x = np.mgrid[0:canvas, 0:canvas].astype(np.float32) + np.float32(0.5)
    return x, y


def _circle(x: PixelMap, y: PixelMap, radius: float) -> PixelMap:
    outline: PixelMap = np.hypot(x, y) - radius
    return outline


def _square(x: PixelMap, y: PixelMap, radius: float) -> PixelMap:
    outline: PixelMap = np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    return outline


def _triangle(x: PixelMap, y: PixelMap, radius: float) -> PixelMap:
    """Return the distance in pixels of points (x, y) to an upright isosceles triangle; negative inside.

    Width and height of the triangle are 1.9 times `radius`; the origin is in the middle of both.
    """
    half = 0.95 * radius
    outline: PixelMap = np.maximum(y - half, (2 * np.abs(x) - (y + half)) / math.sqrt(5))
    return outline


def _cross(x: PixelMap, y: PixelMap, radius: float) -> PixelMap:
    reach, arm = 0.98 * radius, 0.34 * radius
    ax, ay = np.abs(x), np.abs(y)
    outline: PixelMap = np.minimum(np.maximum(ax - reach, ay - arm), np.maximum(ax - arm, ay - reach))
    return outline


_Outline: TypeAlias = Callable[[PixelMap, PixelMap, float], PixelMap]
_OUTLINES: Mapping[str, _Outline] = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
