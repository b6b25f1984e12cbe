"""Decode thread: images before previews, only the latest preview, and robust to errors."""

from collections.abc import Callable
from io import BytesIO
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillhouse.core import Array, ImageRequest, Picture
from stillhouse.diffusion import NUMPY
from stillhouse.images.files import Format
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan, Tier
from stillhouse.serve.engine.output import PreviewImage, RequestOutput
from stillhouse.serve.engine.simulate import NO_REQUEST
from stillhouse.serve.worker.decode_thread import DecodeThread


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes", threads=1)


def advance_trajectory(pipeline: Pipeline, steps: int = 2, to: int | None = None) -> ImageTrajectory:
    trajectory = pipeline.start(ImageRequest("a red circle", seed=7, steps=steps))
    for _ in range(steps if to is None else to):
        pipeline.advance([trajectory])
    return trajectory


def make_job(name: str, trajectory: ImageTrajectory, image_format: Format = "png") -> Job:
    key, plan = BatchKey("shapes", 64, 64), StepPlan(trajectory.plan.rows)
    return Job(name, Tier("free"), "k", key, plan, NO_REQUEST, trajectory=trajectory, format=image_format)


def collect_decoded(work: Callable[[DecodeThread], None]) -> list[RequestOutput | PreviewImage]:
    """What a decoder results of this work, all of which was there before it began."""
    results: list[RequestOutput | PreviewImage] = []
    decoder = DecodeThread(results.append)
    work(decoder)
    decoder.start()
    decoder.close()
    return results


def test_decoded_image_equals_the_pipelines(pipeline: Pipeline) -> None:
    (result,) = collect_decoded(lambda decoder: decoder.submit(make_job("one", advance_trajectory(pipeline)), pipeline))
    assert isinstance(result, RequestOutput) and result.finish_reason == "finished"
    np.testing.assert_array_equal(
        np.array(Image.open(BytesIO(result.content))), pipeline.generate("a red circle", seed=7, steps=2).image
    )
    (raw,) = collect_decoded(
        lambda decoder: decoder.submit(make_job("one", advance_trajectory(pipeline), "raw"), pipeline)
    )
    assert len(raw.content) == 64 * 64 * 3


def test_preview_latents_are_copied_on_submission() -> None:
    """A later copy would wait for the device's next step."""
    pipeline = load("shapes", backend="torch", threads=1)
    trajectory = advance_trajectory(pipeline, 4, 1)
    expected: list[np.ndarray] = []

    def work(decoder: DecodeThread) -> None:
        decoder.submit_preview(make_job("one", trajectory), pipeline)
        denoised: Any = trajectory.denoised
        expected.append(pipeline.decode(denoised))
        denoised.fill_(5.0)

    (preview,) = collect_decoded(work)
    assert isinstance(preview, PreviewImage)
    difference = np.array(Image.open(BytesIO(preview.content)).convert("RGB"), np.float64) - expected[0]
    assert np.abs(difference).mean() < 8, "webp loses a little"


def test_images_precede_previews_and_only_the_latest_preview_is_kept(pipeline: Pipeline) -> None:
    early, late, done = (
        advance_trajectory(pipeline, 4, 1),
        advance_trajectory(pipeline, 4, 3),
        advance_trajectory(pipeline),
    )

    def work(decoder: DecodeThread) -> None:
        decoder.submit_preview(make_job("one", early), pipeline)
        decoder.submit_preview(make_job("two", early), pipeline)
        decoder.submit_preview(make_job("one", late), pipeline)
        decoder.submit_preview(make_job("gone", early), pipeline)
        decoder.submit_preview(make_job("done", early), pipeline)
        decoder.drop_preview("gone")
        decoder.submit(make_job("done", done), pipeline)

    results = collect_decoded(work)
    assert [(result.id, result.index if isinstance(result, PreviewImage) else None) for result in results] == [
        ("done", None),
        ("two", 1),
        ("one", 3),
    ]
    assert all(result.content for result in results)


def test_decoding_failure_affects_one_image(pipeline: Pipeline) -> None:
    half, whole = advance_trajectory(pipeline, 4, 1), advance_trajectory(pipeline)

    def work(decoder: DecodeThread) -> None:
        decoder.submit(make_job("half", half), pipeline)
        decoder.submit(make_job("whole", whole), pipeline)

    broken, fine = collect_decoded(work)
    assert isinstance(broken, RequestOutput) and "1 of 4 evaluations have run" in broken.error
    assert isinstance(fine, RequestOutput) and fine.content


class FaultyPipeline:
    """Pipeline with a faulty decoder."""

    arrays = NUMPY

    def decode(self, latents: Array) -> Picture:
        raise ZeroDivisionError("a bug")

    def finish(self, trajectory: ImageTrajectory) -> None:
        raise ZeroDivisionError("a bug")


def test_decoder_bug_is_reported_and_does_not_end_the_thread(pipeline: Pipeline) -> None:
    done = advance_trajectory(pipeline)

    def work(decoder: DecodeThread) -> None:
        decoder.submit(make_job("one", done), FaultyPipeline())  # type: ignore[arg-type]
        decoder.submit_preview(make_job("two", done), FaultyPipeline())  # type: ignore[arg-type]
        decoder.submit(make_job("three", done), pipeline)

    one, three, two = collect_decoded(work)
    assert (
        isinstance(one, RequestOutput) and "ZeroDivisionError: a bug" in one.error and one.error_type == "BackendFailed"
    )
    assert "test_decode_thread.py" in one.traceback_summary, "the log can tell where"
    assert isinstance(three, RequestOutput) and three.content
    assert two == PreviewImage("two", 2, b"")


def test_thread_waits_for_work(pipeline: Pipeline) -> None:
    there = Event()
    decoder = DecodeThread(lambda one: there.set())
    decoder.start()
    decoder.submit(make_job("one", advance_trajectory(pipeline)), pipeline)
    assert there.wait(30)
    decoder.close()


def test_waiting_until_idle_lasts_until_all_images_are_decoded(pipeline: Pipeline) -> None:
    results: list[RequestOutput | PreviewImage] = []
    is_released = Event()

    def take(result: RequestOutput | PreviewImage) -> None:
        assert is_released.wait(60.0)
        results.append(result)

    decoder = DecodeThread(take)
    decoder.wait_until_idle()
    for name in ("one", "two"):
        decoder.submit(make_job(name, advance_trajectory(pipeline)), pipeline)
    decoder.start()
    is_released.set()
    decoder.wait_until_idle()
    assert [result.id for result in results] == ["one", "two"]
    decoder.close()
