"""Contact sheets: one picture that shows many pictures, each with a label below."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stillhouse.core import Picture

_GROUND, _INK, _RULE = (252, 252, 250), (45, 45, 48), (222, 222, 218)
_CELL, _NARROWEST, _MARGIN, _GAP = 256, 128, 32, 24
_TEXT, _LEADING, _ABOVE_TEXT, _MOST_LINES = 16, 21, 10, 4


@dataclass(frozen=True, slots=True)
class _Tile:
    picture: Image.Image
    lines: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(self.picture.width, _NARROWEST)

    @property
    def height(self) -> int:
        return self.picture.height + _ABOVE_TEXT + _LEADING * len(self.lines)


def contact_sheet(pictures: Sequence[Picture], labels: Sequence[str]) -> Picture:
    """Return one picture that shows all pictures in rows, each above its label, on a near-white background.

    Small pictures are enlarged and large pictures reduced by a whole factor.

    Args:
        pictures: uint8 [height, width, 3], at least one; sizes may differ.
        labels: a label for each picture, in ASCII, because pillow's font has no other characters. Labels are wrapped,
            and cut after four lines.

    Returns:
        the sheet, uint8 [height, width, 3].

    >>> contact_sheet([np.zeros((64, 64, 3), np.uint8)] * 2, ["one", "two"]).shape
    (351, 600, 3)
    """
    tiles = [_tile(picture, label) for picture, label in zip(pictures, labels, strict=True)]
    columns = len(tiles) if len(tiles) < 5 else math.ceil(math.sqrt(len(tiles) * 4 / 3))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max(tile.width for tile in tiles)
    heights = [max(tile.height for tile in row) for row in rows]
    size = (2 * _MARGIN + columns * cell + (columns - 1) * _GAP, 2 * _MARGIN + sum(heights) + (len(rows) - 1) * _GAP)
    sheet = Image.new("RGB", size, _GROUND)
    canvas = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            _paste(sheet, canvas, tile, _MARGIN + column * (cell + _GAP), top)
        top += height + _GAP
    return np.array(sheet)


def _paste(sheet: Image.Image, canvas: ImageDraw.ImageDraw, tile: _Tile, left: int, top: int) -> None:
    right, bottom = left + tile.picture.width, top + tile.picture.height
    canvas.rectangle((left - 1, top - 1, right, bottom), outline=_RULE)
    sheet.paste(tile.picture, (left, top))
    for number, line in enumerate(tile.lines):
        canvas.text((left, bottom + _ABOVE_TEXT + number * _LEADING), line, _INK, _font())


def _tile(picture: Picture, label: str) -> _Tile:
    """Scale a picture for a contact sheet, and wrap its label into lines.

    Small pictures are enlarged without smoothing, large pictures are reduced by averaging.
    """
    image, longest = Image.fromarray(picture), max(picture.shape[:2])
    if longest > 2 * _CELL:
        image = image.reduce(math.ceil(longest / (2 * _CELL)))
    elif factor := _CELL // longest:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return _Tile(image, tuple(_wrapped(label, max(image.width, _NARROWEST))))


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap a text into at most four lines of `width` pixels; lines that are cut end in dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or _font().getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    last = " ".join(lines[_MOST_LINES - 1 : _MOST_LINES + 1])
    return [_shortened(line, width) for line in (*lines[: _MOST_LINES - 1], last) if line]


def _shortened(line: str, width: int) -> str:
    line = line[:width]  # no more characters can fit, because each is at least one pixel wide
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line.rstrip()}..."


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT)
