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
from stillhouse.serve.worker.decode_thread import Finished, Finisher, Seen
from stillhouse.serve.worker.traceback_summary import way_to


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes", threads=1)


def drawn(pipeline: Pipeline, steps: int = 2, to: int | None = None) -> ImageTrajectory:
    draft = pipeline.start(ImageRequest("a red circle", seed=7, steps=steps))
    for _ in range(steps if to is None else to):
        pipeline.advance([draft])
    return draft


def heard(work: Callable[[Finisher], None]) -> list[Finished | Seen]:
    """What a finisher told of this work, all of which was there before it began."""
    told: list[Finished | Seen] = []
    finisher = Finisher(told.append)
    work(finisher)
    finisher.start()
    finisher.close()
    return told


def test_a_picture_is_what_the_pipeline_would_have_made(pipeline: Pipeline) -> None:
    (told,) = heard(lambda finisher: finisher.finish("one", pipeline, drawn(pipeline), "png"))
    assert isinstance(told, Finished) and told.error is None
    np.testing.assert_array_equal(
        np.array(Image.open(BytesIO(told.content))), pipeline.generate("a red circle", seed=7, steps=2).image
    )
    (raw,) = heard(lambda finisher: finisher.finish("one", pipeline, drawn(pipeline), "raw"))
    assert len(raw.content) == 64 * 64 * 3


def test_a_preview_is_read_when_it_is_handed_in() -> None:
    """Later the device that draws would end its next tick first."""
    pipeline = load("shapes", backend="torch", threads=1)
    draft, wanted = drawn(pipeline, 4, 1), []

    def work(finisher: Finisher) -> None:
        finisher.preview("one", pipeline, draft)
        seen: Any = draft.denoised
        wanted.append(pipeline.decode(seen))
        seen.fill_(5.0)

    (seen,) = heard(work)
    assert isinstance(seen, Seen)
    difference = np.array(Image.open(BytesIO(seen.content)).convert("RGB"), np.float64) - wanted[0]
    assert np.abs(difference).mean() < 8, "webp loses a little"


def test_pictures_go_first_and_of_a_pictures_previews_the_latest(pipeline: Pipeline) -> None:
    early, late, done = drawn(pipeline, 4, 1), drawn(pipeline, 4, 3), drawn(pipeline)

    def work(finisher: Finisher) -> None:
        finisher.preview("one", pipeline, early)
        finisher.preview("two", pipeline, early)
        finisher.preview("one", pipeline, late)
        finisher.preview("gone", pipeline, early)
        finisher.preview("done", pipeline, early)
        finisher.forget("gone")
        finisher.finish("done", pipeline, done, "png")

    told = heard(work)
    assert [(one.id, one.index if isinstance(one, Seen) else None) for one in told] == [
        ("done", None),
        ("two", 1),
        ("one", 3),
    ]
    assert all(one.content for one in told)


def test_what_cannot_be_decoded_fails_alone(pipeline: Pipeline) -> None:
    half, whole = drawn(pipeline, 4, 1), drawn(pipeline)

    def work(finisher: Finisher) -> None:
        finisher.finish("half", pipeline, half, "png")
        finisher.finish("whole", pipeline, whole, "png")

    broken, fine = heard(work)
    assert isinstance(broken, Finished) and "after 1 of 4 evaluations" in str(broken.error)
    assert isinstance(fine, Finished) and fine.content


class Faulty:
    """A pipeline with a bug in its decoder."""

    arrays = NUMPY

    def decode(self, latents: Array) -> Picture:
        raise ZeroDivisionError("a bug")

    def finish(self, draft: ImageTrajectory) -> None:
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_decoder_is_told_and_does_not_end_the_finisher(pipeline: Pipeline) -> None:
    done = drawn(pipeline)

    def work(finisher: Finisher) -> None:
        finisher.finish("one", Faulty(), done, "png")  # type: ignore[arg-type]
        finisher.preview("two", Faulty(), done)  # type: ignore[arg-type]
        finisher.finish("three", pipeline, done, "png")

    one, three, two = heard(work)
    assert isinstance(one, Finished) and "ZeroDivisionError: a bug" in str(one.error)
    assert one.error and "test_finisher.py" in way_to(one.error), "the log can tell where"
    assert isinstance(three, Finished) and three.content
    assert two == Seen("two", 2, b"")


def test_it_waits_for_work_without_being_asked(pipeline: Pipeline) -> None:
    there = Event()
    finisher = Finisher(lambda one: there.set())
    finisher.start()
    finisher.finish("one", pipeline, drawn(pipeline), "png")
    assert there.wait(30)
    finisher.close()
