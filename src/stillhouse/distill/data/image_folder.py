"""A folder of pictures with what is said about them: plain files, or the tar files of a webdataset."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from stillhouse.core import Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.png import read_picture

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA_FILES = ("metadata.jsonl", "captions.jsonl")
"""A JSON object a line: `file_name`, and `text` or `caption`."""
_CAPTION_KEYS = ("text", "caption", "prompt")


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedImage:
    """One picture, uint8 [height, width, 3], and what is said about it."""

    name: str
    picture: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """One that cannot be learnt from, and why."""

    name: str
    reason: str


def read_image_folder(folder: Path) -> Iterator[CaptionedImage | SkippedImage]:
    """Every picture of a folder and of those below it, in the order of their names.

    A caption is the text of NAME.txt beside NAME.png, or a line of `TABLES` in the same directory. In a tar file it is
    KEY.txt beside KEY.png, or `text` or `caption` of KEY.json.

    Raises:
        InvalidRequest: no such folder, no pictures in it, or a table that is no JSON.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder", allowed="a folder of pictures with captions")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    tars = [path for path in files if path.suffix.lower() == ".tar"]
    if not pictures and not tars:
        raise InvalidRequest(
            f"{folder} holds no pictures", allowed=f"files that end in {', '.join(IMAGE_SUFFIXES)}, or .tar"
        )
    tables = {path.parent: _read_metadata(path) for path in files if path.name in METADATA_FILES}
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        beside = path.with_suffix(".txt")
        caption = tables.get(path.parent, {}).get(path.name)
        if beside.is_file():
            caption = beside.read_text(encoding="utf-8", errors="replace")
        yield _read_image(name, path.read_bytes(), caption)
    for path in tars:
        yield from _read_tar(path, path.relative_to(folder).as_posix())


def count_images(folder: Path) -> int | None:
    """How many there are, with captions or without; None where some lie in tar files, which would have to be read."""
    kinds = [path.suffix.lower() for path in folder.rglob("*") if path.is_file()]
    return None if ".tar" in kinds else sum(kind in IMAGE_SUFFIXES for kind in kinds)


def _read_metadata(path: Path) -> Mapping[str, str]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                found[str(row["file_name"])] = str(_caption(row) or "")
            except (ValueError, KeyError, TypeError) as error:
                allowed = 'a JSON object: {"file_name": "a.png", "text": "what it shows"}'
                raise InvalidRequest(f"line {number} of {path} is {line[:60]!r}", allowed=allowed) from error
    return found


def _read_tar(path: Path, name: str) -> Iterator[CaptionedImage | SkippedImage]:
    """Members of one key stand beside each other; a tar that is cut short tells so after what could be read."""
    group: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(path, "r|*") as stream:
            for member in stream:
                place = PurePosixPath(member.name)
                own, _, kind = place.name.partition(".")
                stem = str(place.with_name(own)) if own else place.name
                if not member.isfile():
                    continue
                if stem != key and group:
                    yield from _read_tar_sample(f"{name}/{key}", group)
                    group = {}
                content = stream.extractfile(member)
                key = stem
                group[f".{kind.lower()}"] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        yield SkippedImage(name, f"cannot be read any further: {error}")
    if group:
        yield from _read_tar_sample(f"{name}/{key}", group)


def _read_tar_sample(name: str, group: Mapping[str, bytes]) -> Iterator[CaptionedImage | SkippedImage]:
    caption = group[".txt"].decode("utf-8", "replace") if ".txt" in group else None
    if caption is None and ".json" in group:
        try:
            caption = _caption(json.loads(group[".json"]))
        except ValueError:
            yield SkippedImage(name, "its .json is no JSON")
            return
    for kind, content in group.items():
        if kind in IMAGE_SUFFIXES:
            yield _read_image(str(PurePosixPath(name + kind)), content, caption)


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
        return SkippedImage(name, error.given)
