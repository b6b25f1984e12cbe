"""OpenAI's Images API with the official client: a seed gives the pixels of `stillhouse generate`."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from stillhouse.images.files import encode_png, read_request
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from tests.serve.running import Running, wait_until

README = Path(__file__).parents[3] / "README.md"
PROMPT = "a small red circle left of a big blue square"


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


def pixels(text: str | None) -> NDArray[np.uint8]:
    assert text is not None
    return np.array(Image.open(BytesIO(base64.b64decode(text))))


def request_fields(**extra: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "model": "free", "extra_body": extra}


def test_seed_gives_the_pixels_of_generate(client: OpenAI, pipeline: Pipeline) -> None:
    answer = client.images.generate(**request_fields(seed=7))
    assert answer.data is not None
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), pipeline.generate(PROMPT, seed=7, steps=3).image)
    assert (answer.size, answer.output_format) == ("64x64", "png")


def test_readme_client_works(server: Running) -> None:
    _, code = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert "http://127.0.0.1:8000" in code
    answer = eval_last(code.replace("http://127.0.0.1:8000", server.url))
    np.testing.assert_array_equal(
        pixels(answer.data[0].b64_json), load("shapes").generate("a big blue square", seed=7, steps=20).image
    )


def eval_last(code: str) -> Any:
    """Execute code and return the value of its last line."""
    *before, last = code.strip().splitlines()
    names: dict[str, object] = {}
    exec("\n".join(before), names)
    return eval(last, names)


def test_all_fields_of_generate_are_accepted(client: OpenAI, pipeline: Pipeline) -> None:
    extra = {"seed": 3, "steps": 4, "guidance": 5.0, "negative_prompt": "red", "sampler": "dpmpp_2m"}
    answer = client.images.generate(**{**request_fields(**extra), "size": "128x64", "model": "pro"})
    assert answer.data is not None
    alone = pipeline.generate(PROMPT, **extra, width=128, height=64)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), alone.image)


def test_several_images_have_consecutive_seeds_and_headers(client: OpenAI) -> None:
    raw = client.images.with_raw_response.generate(n=3, **request_fields(seed=5))
    assert raw.headers["x-seed"] == "5,6,7"
    assert float(raw.headers["x-denoise-ms"]) > 0 and float(raw.headers["x-queue-ms"]) >= 0
    assert float(raw.headers["x-batch-peers"]) >= 0 and len(raw.headers["x-request-id"].split(",")) == 3
    answer = raw.parse()
    assert answer.data is not None and len({item.b64_json for item in answer.data}) == 3


def test_images_without_a_seed_have_different_reported_seeds(client: OpenAI) -> None:
    first, second = (client.images.with_raw_response.generate(**request_fields()) for _ in range(2))
    assert first.headers["x-seed"] != second.headers["x-seed"]


def test_png_contains_its_request(client: OpenAI) -> None:
    answer = client.images.generate(**request_fields(seed=7))
    assert answer.data is not None and answer.data[0].b64_json is not None
    request = read_request(BytesIO(base64.b64decode(answer.data[0].b64_json)))  # type: ignore[arg-type]
    assert (request.prompt, request.seed, request.steps) == (PROMPT, 7, 3)


@pytest.mark.parametrize(("image_format", "format_"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats_contain_the_request(client: OpenAI, image_format: Any, format_: str) -> None:
    answer = client.images.generate(output_format=image_format, **request_fields(seed=7))
    assert answer.data is not None and answer.data[0].b64_json is not None
    picture = Image.open(BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.format == format_
    assert json.loads(picture.getexif()[0x010E])["request"]["seed"] == 7


def test_stream_has_partial_images(client: OpenAI, pipeline: Pipeline) -> None:
    stream = client.images.generate(stream=True, partial_images=2, **{**request_fields(seed=7), "model": "pro"})
    happened = list(stream)
    assert [item.type for item in happened] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [getattr(item, "partial_image_index", None) for item in happened] == [0, 1, None]
    assert pixels(happened[0].b64_json).shape == (64, 64, 3)
    np.testing.assert_array_equal(pixels(happened[-1].b64_json), pipeline.generate(PROMPT, seed=7, steps=12).image)


def test_stream_of_several_images_has_partial_images_of_each(client: OpenAI, pipeline: Pipeline) -> None:
    stream = client.images.generate(stream=True, partial_images=1, n=2, **{**request_fields(seed=7), "model": "pro"})
    by_seed: dict[int, list[Any]] = {7: [], 8: []}
    for item in stream:
        by_seed[item.seed].append(item)
    for seed, happened in by_seed.items():
        assert [item.type.rpartition(".")[2] for item in happened] == ["partial_image", "completed"]
        expected = pipeline.generate(PROMPT, seed=seed, steps=12).image
        np.testing.assert_array_equal(pixels(happened[-1].b64_json), expected)
        assert happened[-1].queue_ms >= 0 and happened[-1].denoise_ms > 0 and happened[-1].request_id


def test_edit_starts_from_the_input_image(client: OpenAI, pipeline: Pipeline) -> None:
    image = pipeline.generate("a big green square", seed=1, steps=8).image
    answer = client.images.edit(
        image=("image.png", encode_png(image)), prompt=PROMPT, model="free", extra_body={"seed": 7, "strength": 0.7}
    )
    assert answer.data is not None
    alone = pipeline.generate(PROMPT, seed=7, steps=3, image=image, strength=0.7)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), alone.image)


def test_transparent_mask_pixels_are_repainted(client: OpenAI, pipeline: Pipeline) -> None:
    image = pipeline.generate("a big green square", seed=1, steps=8).image
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:, :32] = 0
    file = BytesIO()
    Image.fromarray(np.dstack([image, alpha])).save(file, "PNG")
    answer = client.images.edit(
        image=[("image.png", encode_png(image))],
        mask=("mask.png", file.getvalue()),
        prompt=PROMPT,
        model="free",
        extra_body={"seed": 7},
    )
    assert answer.data is not None
    alone = pipeline.generate(PROMPT, seed=7, steps=3, image=image, mask=255 - alpha)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), alone.image)


def test_image_can_be_downloaded_by_url(client: OpenAI, server: Running, pipeline: Pipeline) -> None:
    answer = client.images.generate(response_format="url", **request_fields(seed=7))
    assert answer.data is not None and answer.data[0].url is not None
    status, content = server.get(answer.data[0].url.removeprefix(server.url))
    assert status == 200
    np.testing.assert_array_equal(
        np.array(Image.open(BytesIO(content))), pipeline.generate(PROMPT, seed=7, steps=3).image
    )


def test_tiers_are_the_models(client: OpenAI) -> None:
    assert [item.id for item in client.models.list()] == ["free", "pro"]
    assert client.models.retrieve("pro").model_extra == {
        "pipeline": "shapes",
        "steps": 12,
        "guidance": 3.0,
        "sampler": "ddim",
        "size": "64x64",
        "granularity": 16,
        "max_steps": 150,
    }
    with pytest.raises(openai.NotFoundError, match="no model 'por'"):
        client.models.retrieve("por")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "fre"}, "there is no model 'fre'; allowed: free, pro; did you mean 'free'"),
        ({"size": "65x64"}, "multiples of"),
        ({"size": "large"}, "WIDTHxHEIGHT"),
        ({"size": "1024x1024"}, "up to 65,536 pixels"),
        ({"n": 0}, "n is 0"),
        ({"n": 11}, "from 1 to 10"),
        ({"quality": "high"}, "quality"),
        ({"extra_body": {"seed": -1}}, "seed is -1"),
        ({"extra_body": {"steps": 151}}, "steps is 151"),
        ({"extra_body": {"steps": 1.5}}, "int"),
        ({"extra_body": {"sampler": "dim"}}, "did you mean 'ddim'"),
        ({"extra_body": {"unknown": 1}}, "unknown"),
        ({"extra_body": {"strength": 0.5}}, "strength is set without an image"),
        ({"partial_images": 1}, "partial_images is set without stream"),
    ],
)
def test_unsupported_fields_are_refused(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.generate(**{**request_fields(), **fields})


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_invalid_image_is_refused(client: OpenAI, content: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be read as a picture"):
        client.images.edit(image=("image.png", content), prompt=PROMPT)


def test_image_with_too_many_pixels_is_refused_before_decoding(client: OpenAI) -> None:
    file = BytesIO()
    Image.new("1", (100_000, 30_000)).save(file, "PNG")
    assert len(file.getvalue()) < 4 << 20
    with pytest.raises(openai.BadRequestError, match=r"too large; allowed: up to 0\.065536 megapixels"):
        client.images.edit(image=("bomb.png", file.getvalue()), prompt=PROMPT)


def test_oversized_body_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.edit(image=("image.png", b"\0" * (5 << 20)), prompt=PROMPT)
    assert refused.value.status_code == 413


@pytest.mark.parametrize("size", ["99999x99999", "0x64", "300x300"])
def test_input_image_is_not_resized_beyond_max_pixels(client: OpenAI, size: Any) -> None:
    image = ("image.png", encode_png(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(openai.BadRequestError, match=f"size is {size}; allowed: up to 65,536 pixels"):
        client.images.edit(image=image, prompt=PROMPT, size=size)


def test_truncated_prompt_is_reported_but_not_logged(client: OpenAI, server: Running) -> None:
    secret = "xylophone " * 30
    whole = client.images.with_raw_response.generate(**request_fields(steps=1))
    cut = client.images.with_raw_response.generate(**{**request_fields(steps=1), "prompt": f"{PROMPT} {secret}"})
    assert (whole.headers.get("x-prompt-truncated"), cut.headers.get("x-prompt-truncated")) == (None, "true")
    assert "xylophone" not in json.dumps(server.log)


def test_job_image_has_no_public_url(server: Running) -> None:
    status, content = server.send("POST", "/v1/jobs", {"prompt": PROMPT, "model": "free"})
    name = json.loads(content)["id"]
    wait_until(lambda: json.loads(server.get(f"/v1/jobs/{name}")[1])["state"] == "completed")
    assert status == 202 and server.get(f"/v1/jobs/{name}/image")[0] == 200
    assert server.get(f"/v1/images/{name}")[0] == 404
