"""The embedded model as it ships: whole, small, true to its captions, and blind to its neighbours."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import stillhouse
from stillhouse.core import ImageRequest, Picture
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.score import evaluate_captions, generate_batch

LARGEST_PACKAGE = 40 * 10**6
REQUESTS = (
    ImageRequest("a small red circle left of a big blue square on a yellow background", seed=1, steps=4),
    ImageRequest("a green cross", seed=2, steps=7, guidance=1.0, sampler="euler_ancestral"),
    ImageRequest("a white triangle above a square", seed=3, steps=3, guidance=5.0, sampler="heun"),
    ImageRequest("a big purple square on a black background", seed=4, steps=5, sampler="unipc"),
    ImageRequest("a cross right of a cross", seed=5, steps=4, sampler="dpmpp_2m_sde", negative_prompt="a circle"),
)


@pytest.fixture(scope="module", params=[None, "onnxruntime"], ids=["as shipped", "onnxruntime"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    yield stillhouse.load("shapes", backend=request.param)


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline) -> list[Picture]:
    return [generate_batch(pipeline, [request])[0] for request in REQUESTS]


def test_every_file_is_the_one_that_the_manifest_names() -> None:
    manifest = read_manifest(find_pipeline("shapes"), verify=True)
    assert manifest.prediction == "v_prediction" and manifest.schedule.zero_terminal_snr
    assert manifest.source["licence"] == "Apache-2.0"


def test_the_whole_package_stays_small() -> None:
    package = Path(stillhouse.__file__).parent
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert sum(path.stat().st_size for path in files) <= LARGEST_PACKAGE


@pytest.mark.parametrize("company", [(0, 1), (4, 2, 0), (3, 3, 1), (1, 4, 3, 2, 0)])
def test_a_picture_is_the_same_in_any_company(
    pipeline: Pipeline, alone: Sequence[Picture], company: Sequence[int]
) -> None:
    together = generate_batch(pipeline, [REQUESTS[index] for index in company])
    for index, picture in zip(company, together, strict=True):
        assert np.array_equal(picture, alone[index])


def test_pictures_show_what_captions_say() -> None:
    """A smoke test: 32 held-out captions at 16 steps. `stillhouse judge shapes` is the measurement."""
    judgement = evaluate_captions(stillhouse.load("shapes"), ImageRequest("", steps=16), captions=32)
    assert judgement.scores["all_correct"].value >= 0.7
    assert judgement.ceiling["all_correct"].value >= 0.95


def test_an_image_is_a_starting_point(pipeline: Pipeline, alone: Sequence[Picture]) -> None:
    near = pipeline.generate("a green cross", image=alone[1], strength=0.2, steps=10).image
    assert np.abs(near.astype(int) - alone[1]).mean() < 20
