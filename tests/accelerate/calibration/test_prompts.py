"""Requests for calibration: enough of them, all different, and none of a picture on which candidates are compared."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.accelerate.calibration import record_calibration
from stillhouse.accelerate.calibration.prompts import (
    CALIBRATION_COUNT,
    HEAVY_BYTES,
    MIN_CALIBRATION_COUNT,
    calibration_requests,
    comparison_requests,
    probe_requests,
)
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.core import ImageRequest
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest, read_manifest
from stillhouse.pipelines.roles import DENOISER

USER_REQUESTS = (ImageRequest("a lighthouse", seed=7), ImageRequest("a harbour"))


@pytest.fixture
def shapes() -> Manifest:
    return read_manifest(find_pipeline("shapes"))


def without_oracle(manifest: Manifest) -> Manifest:
    """Return the manifest of a model that no program scores, such as any imported one."""
    return replace(manifest, evidence={}, distilled=None)


def heavy(manifest: Manifest) -> Manifest:
    weights = manifest.components[DENOISER].weights
    files = {**manifest.files, weights: replace(manifest.files[weights], bytes=HEAVY_BYTES + 1)}
    return replace(manifest, files=files)


@pytest.mark.parametrize("user_requests", [(), USER_REQUESTS])
@pytest.mark.parametrize("is_scored", [True, False])
def test_calibration_has_enough_pictures_that_are_not_compared(
    shapes: Manifest, user_requests: tuple[ImageRequest, ...], is_scored: bool
) -> None:
    manifest = shapes if is_scored else without_oracle(shapes)
    calibration = {(item.prompt, item.seed) for item in calibration_requests(manifest, user_requests)}
    assert len(calibration) == CALIBRATION_COUNT
    for compared in (probe_requests(manifest, user_requests), comparison_requests(manifest, user_requests)):
        assert not calibration & {(item.prompt, item.seed or 0) for item in compared}
    if user_requests:
        assert {prompt for prompt, _ in calibration} == {request.prompt for request in user_requests}


def test_all_requests_of_a_user_calibrate(shapes: Manifest) -> None:
    many = [ImageRequest(f"picture {number}") for number in range(CALIBRATION_COUNT + 6)]
    assert [item.prompt for item in calibration_requests(shapes, many)] == [item.prompt for item in many]


def test_a_heavy_model_calibrates_on_one_picture_of_few_steps(shapes: Manifest) -> None:
    (request,) = calibration_requests(heavy(shapes), ())
    assert request.steps == 4


def test_recording_ends_with_its_time_but_not_before_a_few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(seconds: float) -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += seconds

    too_long = record_calibration.CALIBRATION_SECONDS + 1
    for seconds, count in ((0.0, CALIBRATION_COUNT), (too_long, MIN_CALIBRATION_COUNT)):
        monkeypatch.setattr(record_calibration, "monotonic", clock(seconds).__next__)
        requests, used = [ImageRequest("a") for _ in range(CALIBRATION_COUNT)], list[ImageRequest]()
        assert len(list(record_calibration._within_time(requests, used))) == len(used) == count


def test_the_report_says_how_many_pictures_were_recorded(tmp_path: Path) -> None:
    directory = prepare_workspace("shapes-1", tmp_path / "work").directory
    files = {DENOISER: record_calibration.input_files(tmp_path)}
    notes = record_calibration.record_pipeline_inputs(directory, files, USER_REQUESTS, 1)
    assert notes[DENOISER].endswith(f"recorded during {CALIBRATION_COUNT} and {len(USER_REQUESTS)} pictures")
