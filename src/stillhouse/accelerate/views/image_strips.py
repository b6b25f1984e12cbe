"""Strips of pictures: the same prompts and seeds, a row for each candidate, and what differs from the baseline."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from stillhouse.accelerate.views.rows import ReportRow
from stillhouse.core import Picture
from stillhouse.errors import StillhouseError
from stillhouse.images.png import encode_png, read_picture
from stillhouse.measure.image_metrics import difference_image

DIFFERENCE_GAIN = 4
"""How many times differences are amplified."""

_MAX_SIDE = 384


@dataclass(frozen=True, slots=True)
class StripCell:
    """One picture of a strip.

    Args:
        picture: as a data: URI; None where its file is missing or damaged.
        difference: from the baseline's, amplified; None for the baseline, and where there is nothing to compare with.
        equal: whether it has the baseline's very pixels.
    """

    picture: str | None
    difference: str | None = None
    equal: bool = False


@dataclass(frozen=True, slots=True)
class ImageStrip:
    """The pictures of one candidate."""

    row: ReportRow
    cells: tuple[StripCell, ...]


def build_strips(rows: Sequence[ReportRow], directory: Path) -> tuple[ImageStrip, ...]:
    """The strips of one component, the baseline's first, then the choice, then fastest first.

    Args:
        found: its rows.
        directory: what the files of `Pictures` are relative to.
    """
    shown = sorted((row for row in rows if _files(row)), key=lambda row: (not row.baseline, not row.chosen))
    width = max((len(_files(row)) for row in shown), default=0)
    base = next((_pictures(row, directory, width) for row in shown if row.baseline), [None] * width)
    return tuple(
        ImageStrip(
            row, tuple(_build_cell(own, None if row.baseline else one) for own, one in zip(pictures, base, strict=True))
        )
        for row in shown
        for pictures in [_pictures(row, directory, width)]
    )


def _files(row: ReportRow) -> tuple[str, ...]:
    return row.trial.pictures.files if row.trial.pictures else ()


def _pictures(row: ReportRow, directory: Path, width: int) -> list[Picture | None]:
    found = [_read_picture(directory, file) for file in _files(row)]
    return [*found, *([None] * (width - len(found)))]


def _read_picture(directory: Path, file: str) -> Picture | None:
    """A report may come from a stranger: what lies outside its directory is not shown."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        return None
    try:
        return read_picture(directory / path)
    except StillhouseError:
        return None


def _build_cell(picture: Picture | None, base: Picture | None) -> StripCell:
    if picture is None:
        return StripCell(None)
    if base is None or base.shape != picture.shape:
        return StripCell(_data_uri(picture))
    return StripCell(
        _data_uri(picture), _data_uri(difference_image(base, picture, DIFFERENCE_GAIN)), np.array_equal(base, picture)
    )


def _data_uri(picture: Picture) -> str:
    """A PNG in words; a large picture is reduced by a whole number, so that the page stays light."""
    factor = math.ceil(max(picture.shape[:2]) / _MAX_SIDE)
    small = picture if factor == 1 else np.array(Image.fromarray(picture).reduce(factor))
    return f"data:image/png;base64,{base64.b64encode(encode_png(small)).decode()}"
