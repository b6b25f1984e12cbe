"""Pictures as files: whatever was asked for, there is one."""

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillhouse.core import ImageRequest
from stillhouse.images.formats import Format, encode_image

IMAGE = np.zeros((8, 8, 3), np.uint8)


def note(content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(Image.open(BytesIO(content)).getexif()[0x010E])
    return told


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_file_carries_its_request(kind: Format) -> None:
    told = note(encode_image(IMAGE, kind, ImageRequest("a red circle", seed=3), "shapes"))
    assert told["model"] == "shapes" and told["request"]["prompt"] == "a red circle"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
@pytest.mark.parametrize("letter", ["a", "\u0436", "\U0001f600"])
def test_the_longest_prompts_fit_as_far_as_they_can(kind: Format, letter: str) -> None:
    """EXIF ends at 65,533 bytes; a letter that is no ASCII is written with six or twelve."""
    asked = ImageRequest(10_000 * letter, negative_prompt=10_000 * letter)
    told = note(encode_image(IMAGE, kind, asked, "shapes"))["request"]
    assert asked.prompt.startswith(told["prompt"]) and len(told["prompt"]) >= 2_000
    assert asked.negative_prompt.startswith(told["negative_prompt"])
