"""The finisher: pictures before previews, only the latest preview, and nothing that breaks it."""

from collections.abc import Callable
from io import BytesIO
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillhouse.core import Array, ImageRequest, Picture
from stillhouse.diffusion import NUMPY
from stillhouse.images.formats import Format
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
    draft = pipeline.start(ImageRequest("a red circle", seed=7, steps=steps))
    for _ in range(steps if to is None else to):
        pipeline.advance([draft])
    return draft


def make_job(name: str, trajectory: ImageTrajectory, image_format: Format = "png") -> Job:
    key, plan = BatchKey("shapes", 64, 64), StepPlan(trajectory.plan.rows)
    return Job(name, Tier("free"), "k", key, plan, NO_REQUEST, trajectory=trajectory, format=image_format)


def collect_decoded(work: Callable[[DecodeThread], None]) -> list[RequestOutput | PreviewImage]:
    """What a finisher told of this work, all of which was there before it began."""
    told: list[RequestOutput | PreviewImage] = []
    finisher = DecodeThread(told.append)
    work(finisher)
    finisher.start()
    finisher.close()
    return told


def test_a_picture_is_what_the_pipeline_would_have_made(pipeline: Pipeline) -> None:
    (told,) = collect_decoded(lambda finisher: finisher.submit(make_job("one", advance_trajectory(pipeline)), pipeline))
    assert isinstance(told, RequestOutput) and told.finish_reason == "finished"
    np.testing.assert_array_equal(
        np.array(Image.open(BytesIO(told.content))), pipeline.generate("a red circle", seed=7, steps=2).image
    )
    (raw,) = collect_decoded(
        lambda finisher: finisher.submit(make_job("one", advance_trajectory(pipeline), "raw"), pipeline)
    )
    assert len(raw.content) == 64 * 64 * 3


def test_a_preview_is_read_when_it_is_handed_in() -> None:
    """Later the device that draws would end its next tick first."""
    pipeline = load("shapes", backend="torch", threads=1)
    draft, wanted = advance_trajectory(pipeline, 4, 1), []

    def work(finisher: DecodeThread) -> None:
        finisher.submit_preview(make_job("one", draft), pipeline)
        seen: Any = draft.denoised
        wanted.append(pipeline.decode(seen))
        seen.fill_(5.0)

    (seen,) = collect_decoded(work)
    assert isinstance(seen, PreviewImage)
    difference = np.array(Image.open(BytesIO(seen.content)).convert("RGB"), np.float64) - wanted[0]
    assert np.abs(difference).mean() < 8, "webp loses a little"


def test_pictures_go_first_and_of_a_pictures_previews_the_latest(pipeline: Pipeline) -> None:
    early, late, done = (
        advance_trajectory(pipeline, 4, 1),
        advance_trajectory(pipeline, 4, 3),
        advance_trajectory(pipeline),
    )

    def work(finisher: DecodeThread) -> None:
        finisher.submit_preview(make_job("one", early), pipeline)
        finisher.submit_preview(make_job("two", early), pipeline)
        finisher.submit_preview(make_job("one", late), pipeline)
        finisher.submit_preview(make_job("gone", early), pipeline)
        finisher.submit_preview(make_job("done", early), pipeline)
        finisher.drop_preview("gone")
        finisher.submit(make_job("done", done), pipeline)

    told = collect_decoded(work)
    assert [(one.id, one.index if isinstance(one, PreviewImage) else None) for one in told] == [
        ("done", None),
        ("two", 1),
        ("one", 3),
    ]
    assert all(one.content for one in told)


def test_what_cannot_be_decoded_fails_alone(pipeline: Pipeline) -> None:
    half, whole = advance_trajectory(pipeline, 4, 1), advance_trajectory(pipeline)

    def work(finisher: DecodeThread) -> None:
        finisher.submit(make_job("half", half), pipeline)
        finisher.submit(make_job("whole", whole), pipeline)

    broken, fine = collect_decoded(work)
    assert isinstance(broken, RequestOutput) and "after 1 of 4 evaluations" in broken.error
    assert isinstance(fine, RequestOutput) and fine.content


class FaultyPipeline:
    """A pipeline with a bug in its decoder."""

    arrays = NUMPY

    def decode(self, latents: Array) -> Picture:
        raise ZeroDivisionError("a bug")

    def finish(self, draft: ImageTrajectory) -> None:
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_decoder_is_told_and_does_not_end_the_finisher(pipeline: Pipeline) -> None:
    done = advance_trajectory(pipeline)

    def work(finisher: DecodeThread) -> None:
        finisher.submit(make_job("one", done), FaultyPipeline())  # type: ignore[arg-type]
        finisher.submit_preview(make_job("two", done), FaultyPipeline())  # type: ignore[arg-type]
        finisher.submit(make_job("three", done), pipeline)

    one, three, two = collect_decoded(work)
    assert (
        isinstance(one, RequestOutput) and "ZeroDivisionError: a bug" in one.error and one.error_type == "BackendFailed"
    )
    assert "test_decode_thread.py" in one.traceback_summary, "the log can tell where"
    assert isinstance(three, RequestOutput) and three.content
    assert two == PreviewImage("two", 2, b"")


def test_it_waits_for_work_without_being_asked(pipeline: Pipeline) -> None:
    there = Event()
    finisher = DecodeThread(lambda one: there.set())
    finisher.start()
    finisher.submit(make_job("one", advance_trajectory(pipeline)), pipeline)
    assert there.wait(30)
    finisher.close()
