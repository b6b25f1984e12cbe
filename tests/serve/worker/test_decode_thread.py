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
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.serve.worker.decode_thread import DecodedImage, DecodedPreview, DecodeThread
from stillhouse.serve.worker.traceback_summary import traceback_summary


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes", threads=1)


def advance_trajectory(pipeline: Pipeline, steps: int = 2, to: int | None = None) -> ImageTrajectory:
    draft = pipeline.start(ImageRequest("a red circle", seed=7, steps=steps))
    for _ in range(steps if to is None else to):
        pipeline.advance([draft])
    return draft


def collect_decoded(work: Callable[[DecodeThread], None]) -> list[DecodedImage | DecodedPreview]:
    """What a finisher told of this work, all of which was there before it began."""
    told: list[DecodedImage | DecodedPreview] = []
    finisher = DecodeThread(told.append)
    work(finisher)
    finisher.start()
    finisher.close()
    return told


def test_a_picture_is_what_the_pipeline_would_have_made(pipeline: Pipeline) -> None:
    (told,) = collect_decoded(lambda finisher: finisher.submit("one", pipeline, advance_trajectory(pipeline), "png"))
    assert isinstance(told, DecodedImage) and told.error is None
    np.testing.assert_array_equal(
        np.array(Image.open(BytesIO(told.content))), pipeline.generate("a red circle", seed=7, steps=2).image
    )
    (raw,) = collect_decoded(lambda finisher: finisher.submit("one", pipeline, advance_trajectory(pipeline), "raw"))
    assert len(raw.content) == 64 * 64 * 3


def test_a_preview_is_read_when_it_is_handed_in() -> None:
    """Later the device that draws would end its next tick first."""
    pipeline = load("shapes", backend="torch", threads=1)
    draft, wanted = advance_trajectory(pipeline, 4, 1), []

    def work(finisher: DecodeThread) -> None:
        finisher.submit_preview("one", pipeline, draft)
        seen: Any = draft.denoised
        wanted.append(pipeline.decode(seen))
        seen.fill_(5.0)

    (seen,) = collect_decoded(work)
    assert isinstance(seen, DecodedPreview)
    difference = np.array(Image.open(BytesIO(seen.content)).convert("RGB"), np.float64) - wanted[0]
    assert np.abs(difference).mean() < 8, "webp loses a little"


def test_pictures_go_first_and_of_a_pictures_previews_the_latest(pipeline: Pipeline) -> None:
    early, late, done = (
        advance_trajectory(pipeline, 4, 1),
        advance_trajectory(pipeline, 4, 3),
        advance_trajectory(pipeline),
    )

    def work(finisher: DecodeThread) -> None:
        finisher.submit_preview("one", pipeline, early)
        finisher.submit_preview("two", pipeline, early)
        finisher.submit_preview("one", pipeline, late)
        finisher.submit_preview("gone", pipeline, early)
        finisher.submit_preview("done", pipeline, early)
        finisher.drop_preview("gone")
        finisher.submit("done", pipeline, done, "png")

    told = collect_decoded(work)
    assert [(one.id, one.index if isinstance(one, DecodedPreview) else None) for one in told] == [
        ("done", None),
        ("two", 1),
        ("one", 3),
    ]
    assert all(one.content for one in told)


def test_what_cannot_be_decoded_fails_alone(pipeline: Pipeline) -> None:
    half, whole = advance_trajectory(pipeline, 4, 1), advance_trajectory(pipeline)

    def work(finisher: DecodeThread) -> None:
        finisher.submit("half", pipeline, half, "png")
        finisher.submit("whole", pipeline, whole, "png")

    broken, fine = collect_decoded(work)
    assert isinstance(broken, DecodedImage) and "after 1 of 4 evaluations" in str(broken.error)
    assert isinstance(fine, DecodedImage) and fine.content


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
        finisher.submit("one", FaultyPipeline(), done, "png")  # type: ignore[arg-type]
        finisher.submit_preview("two", FaultyPipeline(), done)  # type: ignore[arg-type]
        finisher.submit("three", pipeline, done, "png")

    one, three, two = collect_decoded(work)
    assert isinstance(one, DecodedImage) and "ZeroDivisionError: a bug" in str(one.error)
    assert one.error and "test_decode_thread.py" in traceback_summary(one.error), "the log can tell where"
    assert isinstance(three, DecodedImage) and three.content
    assert two == DecodedPreview("two", 2, b"")


def test_it_waits_for_work_without_being_asked(pipeline: Pipeline) -> None:
    there = Event()
    finisher = DecodeThread(lambda one: there.set())
    finisher.start()
    finisher.submit("one", pipeline, advance_trajectory(pipeline), "png")
    assert there.wait(30)
    finisher.close()
