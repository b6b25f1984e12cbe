"""The shipped model: integrity, size, prompt alignment, and independence of the batch."""

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


def test_every_file_has_the_checksum_of_the_manifest() -> None:
    manifest = read_manifest(find_pipeline("shapes"), verify=True)
    assert manifest.sampling.prediction == "v_prediction" and manifest.sampling.schedule.zero_terminal_snr
    assert manifest.source["licence"] == "Apache-2.0"


def test_the_whole_package_stays_small() -> None:
    package = Path(stillhouse.__file__).parent
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert sum(path.stat().st_size for path in files) <= LARGEST_PACKAGE


@pytest.mark.parametrize("batch", [(0, 1), (4, 2, 0), (3, 3, 1), (1, 4, 3, 2, 0)])
def test_a_picture_does_not_depend_on_its_batch(
    pipeline: Pipeline, alone: Sequence[Picture], batch: Sequence[int]
) -> None:
    together = generate_batch(pipeline, [REQUESTS[index] for index in batch])
    for index, picture in zip(batch, together, strict=True):
        assert np.array_equal(picture, alone[index])


def test_pictures_meet_their_captions() -> None:
    """A smoke test: 32 held-out captions at 16 steps. `stillhouse judge shapes` is the measurement."""
    evaluation = evaluate_captions(stillhouse.load("shapes"), ImageRequest("", steps=16), captions=32)
    assert evaluation.scores["all_correct"].value >= 0.7
    assert evaluation.ceiling["all_correct"].value >= 0.95


def test_image_to_image_stays_near_its_picture(pipeline: Pipeline, alone: Sequence[Picture]) -> None:
    near = pipeline.generate("a green cross", image=alone[1], strength=0.2, steps=10).image
    assert np.abs(near.astype(int) - alone[1]).mean() < 20
