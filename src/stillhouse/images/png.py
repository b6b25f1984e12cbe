"""Picture files: reading any common kind, and writing PNGs that carry the request that made them."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.json_decode import DecodeError, decode

MAX_PIXELS = 64_000_000
"""Pixels; a picture that unpacks to more is refused before it is unpacked."""

# Named, because pillow would also try formats for which it starts other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
_KEY, _PARAMETERS = "stillhouse", "parameters"
_ARRAYS = ("image", "mask")
_COMPRESSION = 2
"""Of 9: the files are a fifth larger than by 6, and take a third of its time, which is that of a tick."""


def read_picture(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> Picture:
    """Read a picture: uint8 [height, width, 3], upright, what is transparent shown on white.

    Args:
        path: a file, or an open one.
        largest: pixels; one that has more is refused before it is unpacked.

    Raises:
        InvalidRequest: no such file, no picture, a damaged or an enormous one, or more than 8 bits per channel.
    """
    with _opened(path, largest) as picture:
        return np.array(_flatten(picture, "white").convert("RGB"))


def read_mask(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask: uint8 [height, width]; bright means repaint, what is transparent is kept.

    Args:
        path, largest: as in `read_picture`.

    Raises:
        InvalidRequest: as `read_picture`.
    """
    with _opened(path, largest) as picture:
        return np.array(_flatten(picture, "black").convert("L"))


def read_alpha_mask(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask as OpenAI's clients send it: uint8 [height, width]; what is transparent is repainted.

    One without transparency is read as by `read_mask`.

    Args:
        path, largest: as in `read_picture`.

    Raises:
        InvalidRequest: as `read_picture`.
    """
    with _opened(path, largest) as picture:
        if not picture.has_transparency_data:
            return np.array(_flatten(picture, "black").convert("L"))
        alpha = ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
        return 255 - np.array(alpha)


def write_png(path: Path | str, image: Picture, request: ImageRequest | None = None, model: str | None = None) -> None:
    """Write a PNG that carries its whole request; an existing file is replaced, whole or not at all.

    Args:
        path: where to; its directory is made where there is none.
        image: uint8 [height, width, 3].
        request: what made it; `read_request` gives it back. None writes a plain picture.
        model: the pipeline's name.

    Raises:
        InvalidRequest: the file cannot be written there.
    """
    write_file(Path(path), encode_png(image, request, model))


def encode_png(image: Picture, request: ImageRequest | None = None, model: str | None = None) -> bytes:
    """The bytes that `write_png` writes: equal arguments give equal bytes."""
    text = PngInfo()
    if request is not None:
        text.add_text(_KEY, json.dumps({"model": model, "request": describe_request(request)}))
        text.add_text(_PARAMETERS, _parameters_text(request, model))
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=text, compress_level=_COMPRESSION)
    return file.getvalue()


def read_request(path: Path | str, image: Picture | None = None, mask: NDArray[np.uint8] | None = None) -> ImageRequest:
    """The request that made a PNG of `write_png`.

    Args:
        path: the PNG.
        image, mask: those of the request, where it had any; the file holds their checksums only.

    Raises:
        InvalidRequest: a file without a request, or an image or mask that is missing or not the one it was made from.
    """
    with _opened(path) as picture:
        note = picture.info.get(_KEY)
    try:
        record = decode(dict[str, Any], json.loads(note or "null"))
        said = decode(dict[str, Any], record["request"])
        marks = {name: said.pop(name) for name in _ARRAYS}
        request = decode(ImageRequest, said)
    except (DecodeError, KeyError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} carries no request", allowed="a PNG that Stillhouse wrote, unedited") from error
    for name, array in (("image", image), ("mask", mask)):
        if marks[name] != _array_checksum(array):
            raise InvalidRequest(
                f"{path} was not made with this {name}" if array is not None else f"{path} was made with {name}",
                allowed=f"the {name} with {marks[name]}" if marks[name] else f"no {name}",
            )
    return replace(request, image=image, mask=mask)


def describe_request(request: ImageRequest) -> dict[str, Any]:
    """A request as JSON would have it; an image or a mask is told by its size and checksum.

    >>> describe_request(ImageRequest("a red circle", seed=7))["seed"]
    7
    """
    plain = {field.name: getattr(request, field.name) for field in fields(request)}
    return plain | {name: _array_checksum(plain[name]) for name in _ARRAYS}


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, through a neighbour of another name; make its directory where needed.

    Raises:
        InvalidRequest: it cannot be written there.
    """
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            neighbour.write_bytes(content)
            neighbour.replace(path)
        finally:
            neighbour.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}", fix="choose another place") from error


def _array_checksum(array: NDArray[np.uint8] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    height, width = array.shape[:2]
    return {"width": width, "height": height, "sha256": sha256(array.tobytes()).hexdigest()}


def _parameters_text(request: ImageRequest, model: str | None) -> str:
    """The lines that other programs of this trade write, and show, under the same key."""
    facts: Mapping[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}" if request.width else None,
        "Denoising strength": request.strength,
        "Model": model,
    }
    negative = [f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else []
    told = ", ".join(f"{name}: {value}" for name, value in facts.items() if value is not None)
    return "\n".join([request.prompt, *negative, told])


@contextmanager
def _opened(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> Iterator[Image.Image]:
    name = path if isinstance(path, Path | str) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                _check(name, picture, largest)
                picture.load()
                yield picture
    except InvalidRequest:
        raise
    except FileNotFoundError as error:
        raise InvalidRequest(f"there is no file {name}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, largest) from error
    except Exception as error:  # decoders answer damaged files with almost any exception
        raise InvalidRequest(
            f"{name} cannot be read as a picture ({_decoder_message(error, path)})",
            allowed=f"an undamaged file: {', '.join(_FORMATS)}",
        ) from error


def _check(name: Path | str, picture: Image.Image, largest: int) -> None:
    if picture.width * picture.height > largest:
        raise _too_large(name, largest)
    if picture.mode in _DEEP_MODES:
        raise InvalidRequest(
            f"{name} has more than 8 bits per channel", allowed="8 bits", fix="convert it to an 8-bit PNG"
        )


def _too_large(name: Path | str, largest: int) -> InvalidRequest:
    return InvalidRequest(f"{name} is too large", allowed=f"up to {largest / 10**6:g} megapixels", fix="scale it down")


def _decoder_message(error: Exception, path: object) -> str:
    """What a decoder said, without an address in memory where it was given an open file."""
    return str(error).replace(repr(path), "it")


def _flatten(picture: Image.Image, ground: str) -> Image.Image:
    """Upright, and on a ground of one colour where it is transparent."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer)
