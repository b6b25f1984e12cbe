"""Read folders of captioned pictures: plain image files, or the tar files of a webdataset."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from stillhouse.core import Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.files import read_picture

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA_FILES = ("metadata.jsonl", "captions.jsonl")
"""Names of caption files in JSON lines: each line is an object with `file_name`, and `text`, `caption` or `prompt`."""
_CAPTION_KEYS = ("text", "caption", "prompt")


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedImage:
    """A picture, uint8 [height, width, 3], with its caption and its path relative to the folder (`name`)."""

    name: str
    picture: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """A picture or tar file that cannot be used: its path relative to the folder (`name`), and the reason."""

    name: str
    reason: str


def read_image_folder(folder: Path) -> Iterator[CaptionedImage | SkippedImage]:
    """Yield the pictures of a folder and its subfolders: first the image files, then the pictures in tar files.

    A picture that cannot be used is yielded as a `SkippedImage` with the reason. The order is that of the paths.

    The caption of NAME.png is the content of NAME.txt. Without NAME.txt, it is the caption that metadata.jsonl or
    captions.jsonl in the same directory gives for this file. The caption of KEY.png in a tar file is the content of
    KEY.txt, or without KEY.txt, `text`, `caption` or `prompt` in KEY.json.

    Raises:
        InvalidRequest: the folder does not exist or has no pictures, or a line of a caption file is not a JSON object
            with a file name.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is not a folder", allowed="a folder of pictures with captions")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    tars = [path for path in files if path.suffix.lower() == ".tar"]
    if not pictures and not tars:
        raise InvalidRequest(
            f"{folder} has no pictures", allowed=f"files with the suffix {', '.join(IMAGE_SUFFIXES)} or .tar"
        )
    metadata = {path.parent: _read_metadata(path) for path in files if path.name in METADATA_FILES}
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        text_file = path.with_suffix(".txt")
        caption = metadata.get(path.parent, {}).get(path.name)
        if text_file.is_file():
            caption = text_file.read_text(encoding="utf-8", errors="replace")
        yield _read_image(name, path.read_bytes(), caption)
    for path in tars:
        yield from _read_tar(path, path.relative_to(folder).as_posix())


def count_images(folder: Path) -> int | None:
    """Return the number of image files in a folder and its subfolders; None if the folder has tar files.

    The pictures in tar files could only be counted by reading the tar files.
    """
    suffixes = [path.suffix.lower() for path in folder.rglob("*") if path.is_file()]
    return None if ".tar" in suffixes else sum(suffix in IMAGE_SUFFIXES for suffix in suffixes)


def _read_metadata(path: Path) -> Mapping[str, str]:
    """Read a caption file in JSON lines and return the captions by file name; "" where a line has no caption.

    Raises:
        InvalidRequest: a line is not a JSON object with the key `file_name`.
    """
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                captions[str(row["file_name"])] = str(_caption(row) or "")
            except (ValueError, KeyError, TypeError) as error:
                allowed = 'a JSON object: {"file_name": "a.png", "text": "a caption"}'
                problem = f"line {number} of {path} is {line[:60]!r}, which is no object with a file_name"
                raise InvalidRequest(problem, allowed=allowed) from error
    return captions


def _read_tar(path: Path, name: str) -> Iterator[CaptionedImage | SkippedImage]:
    """Yield the captioned pictures of a tar file, whose members of one picture (KEY.png, KEY.txt) are adjacent.

    For a truncated file, yield the readable pictures and one `SkippedImage` that names the file.

    Args:
        path: the tar file.
        name: path of the tar file relative to the folder, which becomes part of the pictures' names.
    """
    group: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(path, "r|*") as stream:
            for member in stream:
                path_in_tar = PurePosixPath(member.name)
                stem, _, suffix = path_in_tar.name.partition(".")
                member_key = str(path_in_tar.with_name(stem)) if stem else path_in_tar.name
                if not member.isfile():
                    continue
                if member_key != key and group:
                    yield from _read_tar_sample(f"{name}/{key}", group)
                    group = {}
                content = stream.extractfile(member)
                key = member_key
                group[f".{suffix.lower()}"] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        yield SkippedImage(name, f"cannot be read to its end: {error}")
    if group:
        yield from _read_tar_sample(f"{name}/{key}", group)


def _read_tar_sample(name: str, group: Mapping[str, bytes]) -> Iterator[CaptionedImage | SkippedImage]:
    caption = group[".txt"].decode("utf-8", "replace") if ".txt" in group else None
    if caption is None and ".json" in group:
        try:
            caption = _caption(json.loads(group[".json"]))
        except ValueError:
            yield SkippedImage(name, "its .json file is not JSON")
            return
    for suffix, content in group.items():
        if suffix in IMAGE_SUFFIXES:
            yield _read_image(str(PurePosixPath(name + suffix)), content, caption)


def _caption(row: object) -> str | None:
    if not isinstance(row, Mapping):
        return None
    return next((str(row[name]) for name in _CAPTION_KEYS if row.get(name)), None)


def _read_image(name: str, content: bytes, caption: str | None) -> CaptionedImage | SkippedImage:
    if caption is None or not caption.strip():
        return SkippedImage(name, "has no caption")
    try:
        return CaptionedImage(name, read_picture(BytesIO(content)), " ".join(caption.split()))
    except InvalidRequest as error:
        return SkippedImage(name, error.problem)
