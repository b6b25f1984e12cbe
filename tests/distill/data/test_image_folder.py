"""Folders of captioned pictures: layouts, skipped pictures with their reasons, and errors."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from stillhouse.distill.data.image_folder import CaptionedImage, SkippedImage, count_images, read_image_folder
from stillhouse.errors import InvalidRequest
from stillhouse.images.files import encode_png


def png_bytes(level: int = 0) -> bytes:
    return encode_png(np.full((8, 6, 3), level, np.uint8))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as stream:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            stream.addfile(info, BytesIO(content))


def read_captions(folder: Path) -> dict[str, str]:
    return {
        image.name: image.caption if isinstance(image, CaptionedImage) else f"! {image.reason}"
        for image in read_image_folder(folder)
    }


def test_captions_in_text_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").write_bytes(png_bytes(7))
    (tmp_path / "a.txt").write_text("a red\n circle ")
    (tmp_path / "deep" / "b.PNG").write_bytes(png_bytes())
    (tmp_path / "deep" / "b.txt").write_text("a square")
    first, second = read_image_folder(tmp_path)
    assert isinstance(first, CaptionedImage) and (first.name, first.caption) == ("a.png", "a red circle")
    assert first.picture.shape == (8, 6, 3) and (first.picture == 7).all()
    assert isinstance(second, CaptionedImage) and second.name == "deep/b.PNG"


@pytest.mark.parametrize(("table", "word"), [("metadata.jsonl", "text"), ("captions.jsonl", "caption")])
def test_captions_in_metadata(tmp_path: Path, table: str, word: str) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes())
    (tmp_path / "b.png").write_bytes(png_bytes())
    (tmp_path / table).write_text(json.dumps({"file_name": "a.png", word: "a ring"}) + "\n\n")
    assert read_captions(tmp_path) == {"a.png": "a ring", "b.png": "! has no caption"}


def test_tar_files(tmp_path: Path) -> None:
    members = {
        "0001.png": png_bytes(),
        "0001.txt": b"one",
        "0002.json": json.dumps({"caption": "two"}).encode(),
        "0002.png": png_bytes(),
        "0003.png": png_bytes(),
        "0004.png": png_bytes(),
        "0004.json": b"{",
    }
    write_tar(tmp_path / "00000.tar", members)
    assert read_captions(tmp_path) == {
        "00000.tar/0001.png": "one",
        "00000.tar/0002.png": "two",
        "00000.tar/0003.png": "! has no caption",
        "00000.tar/0004": "! its .json file is not JSON",
    }


def test_a_tar_of_a_directory_separates_its_samples(tmp_path: Path) -> None:
    """As `tar -C d .` writes it, and with dots in directory names."""
    members = {"./1.png": png_bytes(), "./1.txt": b"one", "v1.0/2.png": png_bytes(), "v1.0/2.txt": b"two"}
    write_tar(tmp_path / "a.tar", members)
    assert read_captions(tmp_path) == {"a.tar/1.png": "one", "a.tar/v1.0/2.png": "two"}


def test_a_truncated_tar_yields_its_complete_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": png_bytes(), "1.txt": b"one", "2.png": png_bytes(), "2.txt": b"two"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:2580])
    captions = read_captions(tmp_path)
    assert captions["a.tar/1.png"] == "one" and any("cannot be read to its end" in text for text in captions.values())


def test_unreadable_pictures_are_skipped_with_a_reason(tmp_path: Path) -> None:
    for name, content in (("cut.png", png_bytes()[:40]), ("text.png", b"no picture"), ("nothing.png", b"")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text("a circle")
    (tmp_path / "blank.png").write_bytes(png_bytes())
    (tmp_path / "blank.txt").write_text("  \n")
    images = list(read_image_folder(tmp_path))
    assert len(images) == 4 and all(isinstance(image, SkippedImage) and image.reason for image in images)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_path_without_pictures_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "folder")
    with pytest.raises(InvalidRequest, match=r"is not a folder|has no pictures"):
        list(read_image_folder(tmp_path / "folder"))


def test_invalid_metadata_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\nno\n')
    with pytest.raises(InvalidRequest, match=r"line 2 of .*metadata.jsonl is 'no'"):
        list(read_image_folder(tmp_path))


def test_metadata_in_another_encoding_is_read_with_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes())
    row = '{"file_name": "a.png", "text": "a caf\u00e9 in blue"}\n'
    (tmp_path / "metadata.jsonl").write_bytes(row.encode("latin-1"))
    assert read_captions(tmp_path) == {"a.png": "a caf\ufffd in blue"}


def test_pictures_are_counted_in_folders_without_tar_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert count_images(tmp_path) == 2
    write_tar(tmp_path / "more.tar", {})
    assert count_images(tmp_path) is None
