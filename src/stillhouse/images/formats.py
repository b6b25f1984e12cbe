"""Pictures as files of several kinds, each of which carries the request that made it."""

import json
from io import BytesIO
from typing import Literal, TypeAlias

from PIL import Image

from stillhouse.core import ImageRequest, Picture
from stillhouse.images.png import describe_request, encode_png

Format: TypeAlias = Literal["png", "jpeg", "webp", "raw"]
"""raw: the levels alone, [height, width, 3]."""
QUALITY = 90
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
_MAX_EXIF = 60_000
"""Bytes of EXIF, which takes some more than 65,000 in all."""
_MAX_PROMPT = 2_000
"""Letters of each prompt where all of them do not fit; one that is no ASCII takes twelve bytes at most."""


def encode_image(
    image: Picture, kind: Format, request: ImageRequest | None = None, model: str | None = None, quality: int = QUALITY
) -> bytes:
    """A picture as a file.

    Args:
        image: uint8 [height, width, 3].
        kind: a PNG carries its request as `png.write_png` writes it; the others in EXIF's ImageDescription, as JSON.
        request: what made it; None says nothing.
        model: the pipeline's name.
        quality: of jpeg and webp, 1 to 100.

    >>> import numpy as np
    >>> encode_picture(np.zeros((8, 8, 3), np.uint8), "jpeg")[:2].hex()
    'ffd8'
    """
    if kind == "png":
        return encode_png(image, request, model)
    if kind == "raw":
        return image.tobytes()
    exif = Image.Exif()
    if request is not None:
        exif[_SOFTWARE] = "stillhouse"
        exif[_DESCRIPTION] = _request_json(request, model)
    file = BytesIO()
    Image.fromarray(image).save(file, kind.upper(), quality=quality, exif=exif)
    return file.getvalue()


def _request_json(request: ImageRequest, model: str | None) -> str:
    """The request as JSON; of prompts that are too long for EXIF, the beginning."""
    told = describe_request(request)
    note = json.dumps({"model": model, "request": told})
    if len(note) > _MAX_EXIF:
        cut = {name: told[name][:_MAX_PROMPT] for name in ("prompt", "negative_prompt")}
        note = json.dumps({"model": model, "request": {**told, **cut}})
    return note
