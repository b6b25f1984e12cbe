"""Sample pictures for the report page: a strip for each candidate, with differences from the baseline's pictures."""

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
from stillhouse.images.files import encode_png, read_picture
from stillhouse.measure.image_metrics import difference_image

DIFFERENCE_GAIN = 4
"""Factor by which differences of pixels are multiplied to be visible."""

_MAX_SIDE = 384


@dataclass(frozen=True, slots=True)
class StripCell:
    """One picture of a candidate's strip, as a `data:` URI, which contains the whole image.

    Args:
        picture: URI of the picture; None where its file is missing or damaged.
        difference: URI of the amplified difference from the baseline's picture; None for the baseline itself, and where
            the baseline's picture is missing or has another size.
        equal: whether all pixels equal the baseline's.
    """

    picture: str | None
    difference: str | None = None
    equal: bool = False


@dataclass(frozen=True, slots=True)
class ImageStrip:
    """The sample pictures of one candidate in the report.

    Args:
        row: the candidate's row of the report.
        cells: one entry for each picture.
    """

    row: ReportRow
    cells: tuple[StripCell, ...]


def build_strips(rows: Sequence[ReportRow], directory: Path) -> tuple[ImageStrip, ...]:
    """Return a strip of sample pictures for each candidate that has pictures.

    The first strip is that of the baseline, the second that of the chosen candidate; the others are in the order of
    `rows`.

    Args:
        rows: the report's rows of one network or of the whole pipeline.
        directory: the report's directory; paths of pictures are relative to it.
    """
    strip_rows = sorted((row for row in rows if _files(row)), key=lambda row: (not row.baseline, not row.chosen))
    width = max((len(_files(row)) for row in strip_rows), default=0)
    baseline = next((_pictures(row, directory, width) for row in strip_rows if row.baseline), [None] * width)
    return tuple(_build_strip(row, _pictures(row, directory, width), baseline) for row in strip_rows)


def _build_strip(row: ReportRow, pictures: Sequence[Picture | None], baseline: Sequence[Picture | None]) -> ImageStrip:
    pairs = zip(pictures, baseline, strict=True)
    return ImageStrip(
        row, tuple(_build_cell(picture, None if row.baseline else reference) for picture, reference in pairs)
    )


def _files(row: ReportRow) -> tuple[str, ...]:
    return row.trial.pictures.files if row.trial.pictures else ()


def _pictures(row: ReportRow, directory: Path, width: int) -> list[Picture | None]:
    pictures = [_read_picture(directory, file) for file in _files(row)]
    return [*pictures, *([None] * (width - len(pictures)))]


def _read_picture(directory: Path, file: str) -> Picture | None:
    """Return a picture, uint8 [H, W, 3]; None where it cannot be read.

    A path that leads out of the directory is not read, because the report may be of an untrusted source.

    Args:
        directory: the report's directory.
        file: path of the picture in the report.
    """
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        return None
    try:
        return read_picture(directory / path)
    except StillhouseError:
        return None


def _build_cell(picture: Picture | None, baseline: Picture | None) -> StripCell:
    if picture is None:
        return StripCell(None)
    if baseline is None or baseline.shape != picture.shape:
        return StripCell(_data_uri(picture))
    return StripCell(
        _data_uri(picture),
        _data_uri(difference_image(baseline, picture, DIFFERENCE_GAIN)),
        np.array_equal(baseline, picture),
    )


def _data_uri(picture: Picture) -> str:
    """Return a picture as a `data:` URI of a PNG, reduced by an integer factor if a side is longer than _MAX_SIDE.

    The reduction keeps the page small.
    """
    factor = math.ceil(max(picture.shape[:2]) / _MAX_SIDE)
    small = picture if factor == 1 else np.array(Image.fromarray(picture).reduce(factor))
    return f"data:image/png;base64,{base64.b64encode(encode_png(small)).decode()}"
