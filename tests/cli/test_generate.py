import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.cli import main
from stillhouse.images.files import read_picture, read_request, write_png
from tests.cli.conftest import FakePipeline, Refused


@pytest.fixture(autouse=True)
def _setting(fake: FakePipeline, here: Path) -> None:
    """Use the fake pipeline in an empty directory for every test."""


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def grey(path: Path, width: int = 64, height: int = 64) -> None:
    Image.new("L", (width, height), 255).save(path)


def test_one_picture_is_named_after_prompt_and_seed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "A red circle, left!", "--seed", "7"]) == 0
    assert names(here) == ["a-red-circle-left-7.png"]
    assert capsys.readouterr().out == "a-red-circle-left-7.png  seed 7, 3 steps, 0.25 s\n"
    assert read_picture(here / "a-red-circle-left-7.png")[0, 0].tolist() == [7, 7, 7]


def test_a_picture_that_is_there_is_never_lost_in_a_directory(here: Path) -> None:
    for _ in range(3):
        assert main(["generate", "a circle", "--out", "stills"]) == 0
    assert names(here / "stills") == ["a-circle-0-2.png", "a-circle-0-3.png", "a-circle-0.png"]


def test_a_file_that_was_asked_for_is_replaced(here: Path) -> None:
    for seed in ("1", "2"):
        assert main(["generate", "a circle", "--out", "one.png", "--seed", seed]) == 0
    assert names(here) == ["one.png"]
    assert read_request(here / "one.png").seed == 2


def test_several_pictures_come_with_a_sheet(here: Path) -> None:
    assert main(["generate", "a circle", "a cross", "--out", "stills"]) == 0
    assert names(here / "stills") == ["a-circle-0.png", "a-cross-0.png", "sheet.png"]
    assert read_picture(here / "stills" / "sheet.png").shape[1] == 2 * 32 + 2 * 256 + 24


def test_a_file_for_several_pictures_is_their_sheet(here: Path) -> None:
    assert main(["generate", "a circle", "--count", "3", "--out", "all.png"]) == 0
    assert names(here) == ["all-1.png", "all-2.png", "all-3.png", "all.png"]
    assert [read_request(here / f"all-{number}.png").seed for number in (1, 2, 3)] == [0, 1, 2]


def test_equal_prompts_get_a_file_each(here: Path) -> None:
    assert main(["generate", "a circle", "a circle", "--out", "stills"]) == 0
    assert names(here / "stills") == ["a-circle-0-2.png", "a-circle-0.png", "sheet.png"]


def test_a_prompt_without_letters_gets_a_name(here: Path) -> None:
    assert main(["generate", "?!"]) == 0
    assert names(here) == ["picture-0.png"]


def test_json_is_one_object_per_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a circle", "a cross", "--json", "--seed", "5", "--out", "stills"]) == 0
    message = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(image)[:5] for image in message] == [["file", "prompt", "seed", "steps", "seconds"]] * 2
    assert [image["prompt"] for image in message] == ["a circle", "a cross"]
    assert message[0]["sampler"] == "ddim"
    assert all(Path(image["file"]).is_file() for image in message)


def test_every_option_reaches_the_request(here: Path) -> None:
    grey(here / "image.png", 72, 80)
    grey(here / "mask.png", 72, 80)
    options = "--steps 9 --guidance 4.5 --seed 3 --sampler heun --negative-prompt blur --size 72x80 --strength 0.5"
    files = "--image image.png --mask mask.png --out one.png"
    assert main(["generate", "a circle", *options.split(), *files.split()]) == 0
    image, mask = read_picture(here / "image.png"), np.full((80, 72), 255, np.uint8)
    made = read_request(here / "one.png", image, mask)
    assert (made.steps, made.guidance, made.seed, made.sampler) == (9, 4.5, 3, "heun")
    assert (made.negative_prompt, made.width, made.height, made.strength) == ("blur", 72, 80, 0.5)


def test_every_option_reaches_the_pipeline(fake: FakePipeline, cache_home: Path) -> None:
    options = "--model fake --backend openvino --precision bf16 --threads 2 --verify"
    assert main(["generate", "a circle", *options.split()]) == 0
    assert fake.opened == {
        "model": "fake",
        "backend": "openvino",
        "precision": "bf16",
        "threads": 2,
        "verify": True,
        "cache": cache_home / "stillhouse" / "compiled",
    }


@pytest.mark.parametrize(
    ("argv", "problem", "allowed"),
    [
        ("--steps 0", "steps is 0", "from 1 to 1000"),
        ("--steps -3", "steps is -3", "from 1 to 1000"),
        ("--steps abc", "'abc'", "a whole number"),
        ("--steps 2.5", "'2.5'", "a whole number"),
        ("--count 0", "'0'", "a whole number from 1"),
        ("--threads 0", "'0'", "a whole number from 1"),
        ("--seed -1", "-1", "whole number"),
        ("--guidance high", "'high'", "a number"),
        ("--guidance nan", "nan", "a number"),
        ("--size 63x64", "width is 63", "multiples of 8"),
        ("--size 0x64", "width is 0", "from 1"),
        ("--size 64", "'64'", "WIDTHxHEIGHT"),
        ("--size axb", "'axb'", "WIDTHxHEIGHT"),
        ("--sampler dim", "'dim'", "ddim"),
        ("--model shape", "'shape'", "shapes"),
        ("--strength 0.5", "strength without an image", "with an image"),
        ("--mask mask.png", "mask without an image", "with an image"),
        ("--image mask.png --mask small.png", "mask is 32x32", "the image's size"),
        ("--image none.png", "there is no file none.png", None),
        ("--image text.png", "text.png cannot be read", "PNG"),
        ("--out one.jpg", "'one.jpg'", "a .png file or a directory"),
        ("--out text.png/one.png", "cannot be written", None),
    ],
)
def test_a_mistake_is_explained(here: Path, refused: Refused, argv: str, problem: str, allowed: str | None) -> None:
    grey(here / "mask.png")
    grey(here / "small.png", 32, 32)
    (here / "text.png").write_text("no picture")
    first, *rest = refused("generate", "a circle", *argv.split()).splitlines()
    assert problem in first
    assert allowed is None or allowed in rest[0]


def test_a_mistake_is_found_before_anything_is_drawn(fake: FakePipeline, refused: Refused) -> None:
    refused("generate", "a circle", "--count", "2", "--seed", str(2**63 - 1))
    assert fake.advanced == 0


def test_no_prompt_is_a_mistake(refused: Refused) -> None:
    assert "PROMPT" in refused("generate")


def test_a_directory_may_look_like_a_file(here: Path) -> None:
    assert main(["generate", "a circle", "--out", "v1.5/"]) == 0
    assert names(here / "v1.5") == ["a-circle-0.png"]


def test_the_written_request_makes_the_same_picture_again(here: Path, fake: FakePipeline) -> None:
    assert main(["generate", "a circle", "--seed", "9", "--out", "one.png"]) == 0
    again = fake.start(read_request(here / "one.png"))
    while not again.is_done:
        fake.advance([again])
    write_png(here / "two.png", fake.finish(again).image, again.request, "fake")
    assert (here / "one.png").read_bytes() == (here / "two.png").read_bytes()
