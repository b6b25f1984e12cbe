"""Pictures encoded in several file formats, with the request that generated them as metadata."""

import json
from io import BytesIO
from typing import Literal, TypeAlias

from PIL import Image

from stillhouse.core import ImageRequest, Picture
from stillhouse.images.png import describe_request, encode_png

Format: TypeAlias = Literal["png", "jpeg", "webp", "raw"]
"""File format of a picture; raw: the uint8 pixels [height, width, 3] without a header."""
QUALITY = 90
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
_MAX_EXIF = 60_000
"""Most characters of the description, which is ASCII; all EXIF data may have about 65,000 bytes."""
_MAX_PROMPT = 2_000
"""Characters that remain of each prompt if whole prompts are too long; JSON takes up to twelve bytes for a
character."""


def encode_image(
    image: Picture, kind: Format, request: ImageRequest | None = None, model: str | None = None, quality: int = QUALITY
) -> bytes:
    """Encode a picture.

    Args:
        image: uint8 [height, width, 3].
        kind: file format. A PNG holds the request as `png.write_png` writes it, jpeg and webp as JSON in EXIF's
            ImageDescription.
        request: the request that generated the picture; None: no metadata.
        model: name of the pipeline.
        quality: quality of jpeg and webp, 1 to 100.

    Returns:
        the file's content.

    >>> import numpy as np
    >>> encode_image(np.zeros((8, 8, 3), np.uint8), "jpeg")[:2].hex()
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
    """Return the request as JSON; prompts that are too long for EXIF are shortened."""
    fields = describe_request(request)
    text = json.dumps({"model": model, "request": fields})
    if len(text) > _MAX_EXIF:
        prompts = {name: fields[name][:_MAX_PROMPT] for name in ("prompt", "negative_prompt")}
        text = json.dumps({"model": model, "request": {**fields, **prompts}})
    return text
