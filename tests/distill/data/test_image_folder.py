"""Folders of pictures: every layout that people have, and every one that cannot be learnt from told by its name."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from stillhouse.distill.data.image_folder import CaptionedImage, SkippedImage, count_images, read_image_folder
from stillhouse.errors import InvalidRequest
from stillhouse.images.png import encode_png


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
        one.name: one.caption if isinstance(one, CaptionedImage) else f"! {one.reason}"
        for one in read_image_folder(folder)
    }


def test_captions_beside_pictures(tmp_path: Path) -> None:
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
def test_captions_in_a_table(tmp_path: Path, table: str, word: str) -> None:
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
        "00000.tar/0004": "! its .json is no JSON",
    }


def test_a_tar_of_a_directory_keeps_its_samples_apart(tmp_path: Path) -> None:
    """As `tar -C d .` writes it, and with points in the names of directories."""
    members = {"./1.png": png_bytes(), "./1.txt": b"one", "v1.0/2.png": png_bytes(), "v1.0/2.txt": b"two"}
    write_tar(tmp_path / "a.tar", members)
    assert read_captions(tmp_path) == {"a.tar/1.png": "one", "a.tar/v1.0/2.png": "two"}


def test_a_tar_that_is_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": png_bytes(), "1.txt": b"one", "2.png": png_bytes(), "2.txt": b"two"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:2580])
    found = read_captions(tmp_path)
    assert found["a.tar/1.png"] == "one" and any("cannot be read any further" in told for told in found.values())


def test_what_is_no_picture_is_named_with_its_reason(tmp_path: Path) -> None:
    for name, content in (("cut.png", png_bytes()[:40]), ("text.png", b"no picture"), ("nothing.png", b"")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text("a circle")
    (tmp_path / "blank.png").write_bytes(png_bytes())
    (tmp_path / "blank.txt").write_text("  \n")
    found = list(read_image_folder(tmp_path))
    assert len(found) == 4 and all(isinstance(one, SkippedImage) and one.reason for one in found)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_folder_of_pictures_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "folder")
    with pytest.raises(InvalidRequest, match=r"is no folder|holds no pictures"):
        list(read_image_folder(tmp_path / "folder"))


def test_a_table_that_is_no_json_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\nno\n')
    with pytest.raises(InvalidRequest, match=r"line 2 of .*metadata.jsonl is 'no'"):
        list(read_image_folder(tmp_path))


def test_a_table_in_another_encoding_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes())
    row = '{"file_name": "a.png", "text": "a caf\u00e9 in blue"}\n'
    (tmp_path / "metadata.jsonl").write_bytes(row.encode("latin-1"))
    assert read_captions(tmp_path) == {"a.png": "a caf\ufffd in blue"}


def test_pictures_are_counted_where_none_lie_in_a_tar(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert count_images(tmp_path) == 2
    write_tar(tmp_path / "more.tar", {})
    assert count_images(tmp_path) is None
