"""Pictures on which networks are calibrated and compared: crops of photographs, and pages and lines of text.

The photographs lie in the folder `photographs`, whose README.md names their sources and licences.
"""

from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stillhouse.core import Picture
from stillhouse.images.files import read_picture

COLOUR_CHANNELS = (1, 3, 4)
"""Lengths that an axis of colour channels may have: grey, RGB, and RGB with opacity."""
PIXELS = ("0..1", "0..255", "-1..1", "imagenet")
"""Ranges of the pixels that a network expects; imagenet: 0 to 1, minus ImageNet's mean, divided by its deviation, which
is about -2 to 2.6.
"""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in ImageNet, of values from 0 to 1. Most networks that classify
pictures subtract this mean and divide by this deviation (torchvision.models).
"""
_LUMINANCE = (0.299, 0.587, 0.114)
STRIP_RATIO = 3
"""Least ratio of width to height at which a picture is taken for a line of text."""
_MIN_PAGE_SIDE = 128
"""Least side in pixels of a page of text; letters of smaller pages cannot be read."""
_MIN_SIDE, _MIN_CROP = 8, 0.6
_WORDS = (
    "the light of a small lamp fell on the table and on 12 open letters from March 1987",
    "Total 48.50 EUR Invoice No. 3061 Please keep this page Chapter Two River street",
    "Open daily 9 to 17 water garden window because between",
)


def has_colour_axis(shape: tuple[int, ...]) -> bool:
    """Return whether an array of this shape may hold pictures: height and width of 8 or more, and colour channels.

    The axis of channels is the last or the third from last, and has one of the lengths of COLOUR_CHANNELS.
    """
    if len(shape) < 3 or (shape[-1] not in COLOUR_CHANNELS and shape[-3] not in COLOUR_CHANNELS):
        return False
    return min(shape[-3:-1] if shape[-1] in COLOUR_CHANNELS else shape[-2:]) >= _MIN_SIDE


def make_real_pictures(rng: Generator, shape: tuple[int, ...], index: int) -> NDArray[np.uint8]:
    """Return pictures, uint8 0 to 255 of the given shape, of which each has its darkest value at 0 and lightest at 255.

    Pictures three times as wide as high hold a line of text, every fourth other picture holds a page of text, unless a
    side is below 128 pixels, and all others are crops of photographs. A channel of opacity, the fourth, is 255.

    Args:
        rng: source of crops, reflections and texts.
        shape: shape of the result, which `has_colour_axis` accepts; all axes but the last three count pictures.
        index: index of the set of inputs, so that other sets begin with other photographs.
    """
    is_channels_last = shape[-1] in COLOUR_CHANNELS
    height, width, channels = shape[-3:] if is_channels_last else (*shape[-2:], shape[-3])
    count = int(np.prod(shape[:-3]))
    pictures = np.empty((count, height, width, channels), np.uint8)
    for row in range(count):
        pictures[row] = _to_channels(_draw_picture(rng, index * count + row, height, width), channels)
    return (pictures if is_channels_last else np.moveaxis(pictures, -1, -3)).reshape(shape)


def scale_pixels(pictures: NDArray[np.uint8], pixels: str) -> NDArray[np.float64]:
    """Return uint8 pictures as float64 in a range that a network expects.

    Args:
        pictures: array that `has_colour_axis` accepts, of any height and width.
        pixels: one of PIXELS; for imagenet, grey and opacity get the mean of the three colours' constants.
    """
    if pixels == "0..255":
        return pictures.astype(np.float64)
    if pixels == "-1..1":
        return np.asarray(pictures / 127.5 - 1)
    if pixels == "0..1":
        return np.asarray(pictures / 255)
    is_channels_last = pictures.shape[-1] in COLOUR_CHANNELS
    channels = pictures.shape[-1 if is_channels_last else -3]
    mean, std = (
        np.array([*values, np.mean(values)]) if channels >= 3 else np.array([np.mean(values)])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    constants = (channels,) if is_channels_last else (channels, 1, 1)
    return np.asarray((pictures / 255 - mean[:channels].reshape(constants)) / std[:channels].reshape(constants))


def _draw_picture(rng: Generator, number: int, height: int, width: int) -> Picture:
    if width >= STRIP_RATIO * height:
        return _draw_text(rng, height, width, lines=1)
    if number % 4 == 3 and min(height, width) >= _MIN_PAGE_SIDE:
        return _draw_text(rng, height, width, lines=int(rng.integers(7, 16)))
    photographs = _read_photographs()
    return _crop(rng, photographs[number % len(photographs)], height, width)


@cache
def _read_photographs() -> tuple[Image.Image, ...]:
    folder = files("stillhouse.accelerate.calibration") / "photographs"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".jpg"))
    return tuple(Image.fromarray(read_picture(BytesIO((folder / name).read_bytes()))) for name in names)


def _crop(rng: Generator, photograph: Image.Image, height: int, width: int) -> Picture:
    """Return a random part of a photograph, of 0.6 to 1 times the largest possible side, and mirrored half the time."""
    scale = rng.uniform(_MIN_CROP, 1) * min(photograph.width / width, photograph.height / height)
    crop_width, crop_height = scale * width, scale * height
    left, top = rng.uniform(0, photograph.width - crop_width), rng.uniform(0, photograph.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    pixels = np.asarray(photograph.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _draw_text(rng: Generator, height: int, width: int, lines: int) -> Picture:
    """Return random words, dark on light, in a number of lines that fill the height."""
    paper, ink = rng.integers(200, 256, 3), rng.integers(0, 90, 3)
    picture = Image.new("RGB", (width, height), tuple(map(int, paper)))
    canvas = ImageDraw.Draw(picture)
    line_height = height / lines
    font = ImageFont.load_default(max(4, round(0.7 * line_height)))
    for line in range(lines):
        text = " ".join(rng.choice(" ".join(_WORDS).split(), max(1, width // max(1, height // lines)) + 1))
        canvas.text((0.02 * width, (line + 0.1) * line_height), text, fill=tuple(map(int, ink)), font=font)
    return np.asarray(picture)


def _to_channels(picture: Picture, channels: int) -> NDArray[np.uint8]:
    """Return an RGB picture in 1, 3 or 4 channels, with its contrast stretched to 0 and 255; opacity is 255."""
    colours: NDArray[np.float64] = picture @ np.array(_LUMINANCE)[:, None] if channels == 1 else picture.astype(float)
    low, high = colours.min(), colours.max()
    stretched: NDArray[np.uint8] = np.round(255 * (colours - low) / max(high - low, 1e-6)).astype(np.uint8)
    if channels < 4:
        return stretched
    opacity: NDArray[Any] = np.full((*stretched.shape[:2], 1), 255, np.uint8)
    return np.concatenate([stretched, opacity], axis=-1)
