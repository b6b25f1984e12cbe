import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.images.files import (
    MAX_PIXELS,
    Format,
    describe_request,
    encode_image,
    encode_png,
    read_mask,
    read_picture,
    read_request,
    write_file,
    write_png,
)

REQUEST = ImageRequest(
    "a red circle",
    "blur",
    7,
    35,
    3.5,
    "ddim",
    4,
    2,
    guidance_rescale=0.5,
    guidance_interval=(0.25, 1.0),
    eta=0.1,
    cache_interval=3,
)


def picture(height: int = 2, width: int = 4, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def same(one: ImageRequest, other: ImageRequest) -> bool:
    return describe_request(one) == describe_request(other)


@given(
    asked=st.builds(
        ImageRequest,
        prompt=st.text(),
        negative_prompt=st.text(),
        seed=st.integers(0, 2**63 - 1),
        steps=st.none() | st.integers(1, 1000),
        guidance=st.none() | st.floats(0, 100),
        sampler=st.none() | st.text(),
        eta=st.floats(0, 1),
        guidance_interval=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
        cache_interval=st.none() | st.integers(1, 1000),
    )
)
@settings(max_examples=50, deadline=None)
def test_a_png_gives_back_the_request_and_the_pixels(
    tmp_path_factory: pytest.TempPathFactory, asked: ImageRequest
) -> None:
    path = tmp_path_factory.getbasetemp() / "one.png"
    write_png(path, picture(), asked, "fake")
    assert same(read_request(path), asked)
    assert np.array_equal(read_picture(path), picture())


def test_a_png_from_before_step_caching_is_read(tmp_path: Path) -> None:
    """It does not say how often features were computed; the manifest does."""
    record = {"model": "fake", "request": describe_request(REQUEST)}
    del record["request"]["cache_interval"]  # type: ignore[attr-defined]
    text = PngInfo()
    text.add_text("stillhouse", json.dumps(record))
    Image.fromarray(picture()).save(tmp_path / "one.png", pnginfo=text)
    assert same(read_request(tmp_path / "one.png"), replace(REQUEST, cache_interval=None))


def test_a_png_with_the_old_name_of_cache_interval_is_read(tmp_path: Path) -> None:
    record: dict[str, Any] = {"model": "fake", "request": describe_request(REQUEST)}
    record["request"]["refresh"] = record["request"].pop("cache_interval")
    text = PngInfo()
    text.add_text("stillhouse", json.dumps(record))
    Image.fromarray(picture()).save(tmp_path / "one.png", pnginfo=text)
    assert same(read_request(tmp_path / "one.png"), REQUEST)


def test_equal_arguments_give_equal_bytes() -> None:
    assert encode_png(picture(), REQUEST, "fake") == encode_png(picture(), REQUEST, "fake")


def test_people_can_read_the_request_too(tmp_path: Path) -> None:
    write_png(tmp_path / "one.png", picture(), REQUEST, "fake")
    with Image.open(tmp_path / "one.png") as file:
        assert file.info["parameters"].splitlines() == [
            "a red circle",
            "Negative prompt: blur",
            "Steps: 35, Sampler: ddim, CFG scale: 3.5, Seed: 7, Size: 4x2, Model: fake",
        ]


def test_the_image_of_a_request_is_known_by_its_checksum(tmp_path: Path) -> None:
    image, mask = picture(), np.full((2, 4), 255, np.uint8)
    path = tmp_path / "one.png"
    write_png(path, picture(seed=1), replace(REQUEST, image=image, mask=mask, strength=0.5))
    restored = read_request(path, image, mask)
    assert restored.image is image
    assert restored.mask is mask
    for wrong in (None, picture(seed=2), picture(4, 2)):
        with pytest.raises(InvalidRequest, match="image"):
            read_request(path, wrong, mask)
    with pytest.raises(InvalidRequest, match="mask"):
        read_request(path, image)


def test_an_image_that_was_not_used_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "one.png", picture(), REQUEST)
    with pytest.raises(InvalidRequest, match="not made with this image"):
        read_request(tmp_path / "one.png", picture())


@pytest.mark.parametrize(
    "note", [None, "", "[]", "{}", "[" * 100_000, '{"request": {"prompt": 3}}', '{"request": {"image": null}}']
)
def test_a_png_without_a_sound_request_is_refused(tmp_path: Path, note: str | None) -> None:
    text = PngInfo()
    if note is not None:
        text.add_text("stillhouse", note)
    Image.fromarray(picture()).save(tmp_path / "one.png", pnginfo=text)
    with pytest.raises(InvalidRequest, match="holds no request"):
        read_request(tmp_path / "one.png")


def test_what_is_transparent_is_white_in_a_picture_and_kept_by_a_mask(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    assert read_picture(tmp_path / "one.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert read_mask(tmp_path / "one.png")[0, 1] == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_every_common_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "one.tiff")
    assert read_picture(tmp_path / "one.tiff").shape == (2, 3, 3)
    assert read_mask(tmp_path / "one.tiff").shape == (2, 3)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    Image.new("RGB", (4, 2)).save(tmp_path / "one.jpg", exif=exif)
    assert read_picture(tmp_path / "one.jpg").shape == (4, 2, 3)


def _text(path: Path) -> None:
    path.write_text("no picture")


def _empty(path: Path) -> None:
    path.touch()


def _cut_off(path: Path) -> None:
    whole = encode_png(picture(64, 64))
    path.write_bytes(whole[: len(whole) // 2])


def _damaged(path: Path) -> None:
    whole = bytearray(encode_png(picture(64, 64)))
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)


def _directory(path: Path) -> None:
    path.mkdir()


def _missing(path: Path) -> None:
    pass


def _deep(path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(path)


@pytest.mark.parametrize("spoil", [_text, _empty, _cut_off, _damaged, _directory, _missing, _deep])
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "one.png"
    spoil(path)
    for read in (read_picture, read_mask, read_request):
        with pytest.raises(InvalidRequest, match=r"one\.png"):
            read(path)


@pytest.mark.parametrize("width", [MAX_PIXELS + 1, 3 * MAX_PIXELS])
def test_an_enormous_picture_is_refused_before_it_is_unpacked(tmp_path: Path, width: int) -> None:
    head = bytearray(encode_png(picture(1, 1)))
    head[16:20] = width.to_bytes(4, "big")  # the width of the header chunk
    head[29:33] = _checksum(head[12:29])
    (tmp_path / "bomb.png").write_bytes(head)
    with pytest.raises(InvalidRequest, match="too large"):
        read_picture(tmp_path / "bomb.png")


def _checksum(chunk: bytes | bytearray) -> bytes:
    return crc32(chunk).to_bytes(4, "big")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "one.png"
    write_file(path, b"before")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InvalidRequest, match=r"one\.png cannot be written: No space left"):
        write_file(path, b"after")
    assert [file.name for file in path.parent.iterdir()] == ["one.png"]
    assert path.read_bytes() == b"before"


def test_a_mask_reads_brightness(tmp_path: Path) -> None:
    levels: NDArray[np.uint8] = np.array([[0, 255]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), levels)


def exif_record(content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Image.open(BytesIO(content)).getexif()[0x010E])
    return told


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_file_carries_its_request(kind: Format) -> None:
    told = exif_record(encode_image(picture(), kind, ImageRequest("a red circle", seed=3), "shapes"))
    assert told["model"] == "shapes" and told["request"]["prompt"] == "a red circle"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("letter", ["a", "\u0436", "\U0001f600"])
def test_the_longest_prompts_fit_as_far_as_they_can(kind: Format, letter: str) -> None:
    """EXIF ends at 65,533 bytes; a letter that is no ASCII is written with six or twelve."""
    asked = ImageRequest(10_000 * letter, negative_prompt=10_000 * letter)
    told = exif_record(encode_image(picture(), kind, asked, "shapes"))["request"]
    assert asked.prompt.startswith(told["prompt"]) and len(told["prompt"]) >= 2_000
    assert asked.negative_prompt.startswith(told["negative_prompt"])
