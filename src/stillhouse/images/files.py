"""Picture files: reads common formats, and writes pictures with the request that generated them."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.validation import InvalidDocument, convert

Format: TypeAlias = Literal["png", "jpeg", "webp", "raw"]
"""File format of a picture; raw: the uint8 pixels [height, width, 3] without a header."""
QUALITY = 90
MAX_PIXELS = 64_000_000
"""Number of pixels of the largest picture that is read; larger pictures are refused."""

# Only these formats are read, because pillow starts other programs to read some of its further formats.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
_KEY, _PARAMETERS = "stillhouse", "parameters"
_ARRAYS = ("image", "mask")
_COMPRESSION = 2
"""Compression level of PNGs, 0 to 9. Compared with level 6, files are a fifth larger and encoding takes a third of the
time, about as long as one denoising step."""
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
_MAX_EXIF = 60_000
"""Largest length of a request in EXIF, in ASCII characters; all EXIF data may have about 65,000 bytes."""
_MAX_PROMPT = 2_000
"""Number of characters to which each prompt is cut if a request is too long for EXIF. The number is small, because JSON
takes up to twelve bytes for one character.
"""


def read_picture(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> Picture:
    """Read a picture as uint8 [height, width, 3], upright, with transparent parts on white.

    Args:
        path: a file's path, or an open file.
        largest: largest number of pixels; larger pictures are refused before they are decoded.

    Raises:
        InvalidRequest: the file does not exist, is not a picture, is damaged, is too large, or has more than 8 bits per
            channel.
    """
    with _opened(path, largest) as picture:
        return np.array(_flatten(picture, "white").convert("RGB"))


def read_mask(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask as uint8 [height, width]: bright parts are inpainted, dark and transparent parts are kept.

    Args:
        path: a file's path, or an open file.
        largest: largest number of pixels; larger pictures are refused before they are decoded.

    Raises:
        InvalidRequest: the file does not exist, is not a picture, is damaged, is too large, or has more than 8 bits per
            channel.
    """
    with _opened(path, largest) as picture:
        return np.array(_flatten(picture, "black").convert("L"))


def read_alpha_mask(path: Path | str | BinaryIO, largest: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a mask as clients of OpenAI's API send it: transparent parts are inpainted.

    In a picture without transparency, bright parts are inpainted, as by `read_mask`. The result is uint8 [height,
    width]; where its value is above 127, the picture is inpainted.

    Args:
        path: a file's path, or an open file.
        largest: largest number of pixels; larger pictures are refused before they are decoded.

    Raises:
        InvalidRequest: the file does not exist, is not a picture, is damaged, is too large, or has more than 8 bits per
            channel.
    """
    with _opened(path, largest) as picture:
        if not picture.has_transparency_data:
            return np.array(_flatten(picture, "black").convert("L"))
        alpha = ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
        return 255 - np.array(alpha)


def write_png(path: Path | str, image: Picture, request: ImageRequest | None = None, model: str | None = None) -> None:
    """Write a PNG with the request that generated it as metadata. An existing file is replaced, whole or not at all.

    Args:
        path: path of the file; its directory is made where it does not exist.
        image: uint8 [height, width, 3].
        request: the request that generated the picture, for `read_request`; None: no metadata.
        model: name of the pipeline, for the metadata.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    write_file(Path(path), encode_png(image, request, model))


def encode_png(image: Picture, request: ImageRequest | None = None, model: str | None = None) -> bytes:
    """Return the content of the file that `write_png` writes for these arguments; equal arguments give equal bytes."""
    text = PngInfo()
    if request is not None:
        text.add_text(_KEY, json.dumps({"model": model, "request": describe_request(request)}))
        text.add_text(_PARAMETERS, _parameters_text(request, model))
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=text, compress_level=_COMPRESSION)
    return file.getvalue()


def encode_image(
    image: Picture, kind: Format, request: ImageRequest | None = None, model: str | None = None, quality: int = QUALITY
) -> bytes:
    """Encode a picture as a file in memory.

    Args:
        image: uint8 [height, width, 3].
        kind: file format. A png holds the request in text chunks; jpeg and webp hold it as JSON in EXIF's
            ImageDescription; raw holds no request.
        request: the request that generated the picture; None: no metadata.
        model: name of the pipeline, for the metadata.
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


def read_request(path: Path | str, image: Picture | None = None, mask: NDArray[np.uint8] | None = None) -> ImageRequest:
    """Return the request in the metadata of a PNG that `write_png` wrote.

    Args:
        path: path of the PNG.
        image, mask: the request's image and mask, where it had them; the file holds only their checksums.

    Raises:
        InvalidRequest: the file holds no request, or the checksum of `image` or `mask` differs from the file's.
    """
    with _opened(path) as picture:
        text = picture.info.get(_KEY)
    try:
        record = convert(dict[str, Any], json.loads(text or "null"))
        values = convert(dict[str, Any], record["request"])
        checksums = {name: values.pop(name) for name in _ARRAYS}
        if "refresh" in values:  # the name of cache_interval in files of older versions, which must stay readable
            values["cache_interval"] = values.pop("refresh")
        request = convert(ImageRequest, values)
    except (InvalidDocument, KeyError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} holds no request", allowed="a PNG that Stillhouse wrote, unedited") from error
    for name, array in (("image", image), ("mask", mask)):
        if checksums[name] != _array_checksum(array):
            raise InvalidRequest(
                f"{path} was not made with this {name}" if array is not None else f"the {name} for {path} is missing",
                allowed=f"the {name} with the checksum {checksums[name]}" if checksums[name] else f"no {name}",
            )
    return replace(request, image=image, mask=mask)


def describe_request(request: ImageRequest) -> dict[str, Any]:
    """Return a request's fields by name, as JSON values. Size and checksum stand for the image and the mask.

    >>> describe_request(ImageRequest("a red circle", seed=7))["seed"]
    7
    """
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    return values | {name: _array_checksum(values[name]) for name in _ARRAYS}


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, through a temporary file beside it; the directory is made where needed.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}", fix="choose another place") from error


def _array_checksum(array: NDArray[np.uint8] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    height, width = array.shape[:2]
    return {"width": width, "height": height, "sha256": sha256(array.tobytes()).hexdigest()}


def _parameters_text(request: ImageRequest, model: str | None) -> str:
    """Return a request and the pipeline's name, `model`, in the form in which other generators write them into PNGs.

    The form is that of a PNG's text with the key `parameters`.
    """
    parameters: Mapping[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}" if request.width else None,
        "Denoising strength": request.strength,
        "Model": model,
    }
    negative = [f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else []
    line = ", ".join(f"{name}: {value}" for name, value in parameters.items() if value is not None)
    return "\n".join([request.prompt, *negative, line])


def _request_json(request: ImageRequest, model: str | None) -> str:
    """Return a request and the pipeline's name, `model`, as JSON. Prompts are cut if the JSON is too long for EXIF."""
    values = describe_request(request)
    text = json.dumps({"model": model, "request": values})
    if len(text) > _MAX_EXIF:
        prompts = {name: values[name][:_MAX_PROMPT] for name in ("prompt", "negative_prompt")}
        text = json.dumps({"model": model, "request": {**values, **prompts}})
    return text


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
    except Exception as error:  # for damaged files, decoders raise almost any exception
        raise InvalidRequest(
            f"{name} cannot be read as a picture ({_decoder_message(error, path)})",
            allowed=f"an undamaged file: {', '.join(_FORMATS)}",
        ) from error


def _check(name: Path | str, picture: Image.Image, largest: int) -> None:
    if picture.width * picture.height > largest:
        raise _too_large(name, largest)
    if picture.mode in _DEEP_MODES:
        raise InvalidRequest(
            f"{name} has more than 8 bits per channel", allowed="8 bits per channel", fix="convert it to an 8-bit PNG"
        )


def _too_large(name: Path | str, largest: int) -> InvalidRequest:
    return InvalidRequest(f"{name} is too large", allowed=f"up to {largest / 10**6:g} megapixels", fix="scale it down")


def _decoder_message(error: Exception, path: object) -> str:
    """Return the message of an error that pillow raised when it read `path`, a file's path or an open file.

    An open file appears in pillow's message by its memory address, which is replaced by the word "it".
    """
    return str(error).replace(repr(path), "it")


def _flatten(picture: Image.Image, background: str) -> Image.Image:
    """Return a picture rotated as its EXIF data says, with its transparent parts on a background of one colour."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
