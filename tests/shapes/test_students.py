"""The shipped students: integrity, teacher, prompt alignment, and independence of the batch."""

import numpy as np
import pytest

import stillhouse
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import EMBEDDED, find_pipeline
from stillhouse.pipelines.manifest import files_checksum, read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.score import evaluate_captions, generate_batch

STUDENTS = [name for name in EMBEDDED if name != "shapes"]
GUIDANCE = (1.0, 3.0, 5.0)


@pytest.fixture(scope="module", params=STUDENTS)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return stillhouse.load(request.param)


@pytest.mark.parametrize("name", STUDENTS)
def test_each_was_distilled_from_the_shipped_model(name: str) -> None:
    manifest = read_manifest(find_pipeline(name), verify=True)
    teacher = files_checksum(read_manifest(find_pipeline("shapes")))
    assert manifest.distilled is not None and manifest.distilled.teacher == ("shapes", teacher)
    assert manifest.distilled.timesteps is not None and manifest.name == f"shapes-{len(manifest.distilled.timesteps)}"
    assert manifest.source["licence"] == "Apache-2.0"
    assert {"distill", "judge"} <= set(manifest.evidence)


def test_a_picture_has_one_row_a_step_and_does_not_depend_on_its_batch(
    pipeline: Pipeline,
) -> None:
    requests = [ImageRequest("a big red square", seed=seed, guidance=scale) for seed, scale in enumerate(GUIDANCE)]
    trajectory = pipeline.start(requests[0])
    assert trajectory.evaluation_count == pipeline.manifest.defaults.steps and trajectory.rows == 1
    alone = [generate_batch(pipeline, [request])[0] for request in requests]
    for batched, picture in zip(generate_batch(pipeline, requests), alone, strict=True):
        assert np.array_equal(batched, picture)


def test_the_guidance_scale_changes_the_picture_within_its_range(pipeline: Pipeline) -> None:
    low, high = (pipeline.generate("a cross", seed=1, guidance=scale).image for scale in (1.0, 5.0))
    assert np.abs(low.astype(int) - high).mean() > 1
    with pytest.raises(InvalidRequest, match="allowed: 1 to 5"):
        pipeline.generate("a cross", guidance=7.0)


def test_image_to_image_stays_near_its_picture(pipeline: Pipeline) -> None:
    image = pipeline.generate("a green cross", seed=2).image
    near = pipeline.generate("a green cross", image=image, strength=0.4).image
    assert np.abs(near.astype(int) - image).mean() < 20


def test_pictures_meet_their_captions(pipeline: Pipeline) -> None:
    """A smoke test: 64 held-out captions. `stillhouse judge shapes-3 --against shapes` is the measurement."""
    evaluation = evaluate_captions(pipeline, ImageRequest(""), captions=64)
    assert evaluation.scores["all_correct"].value >= 0.7
