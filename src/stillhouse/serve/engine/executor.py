"""The device that draws: pipelines, advanced together where they are the same, and what they cost, measured."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from stillhouse.core import Array, ImageRequest
from stillhouse.errors import StillhouseError
from stillhouse.images.formats import encode_image
from stillhouse.pipelines.manifest import Manifest
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.resolve import encoded_image_count, plan_request
from stillhouse.serve.engine.cost import Curve
from stillhouse.serve.engine.job import Group, Job, Walk

BATCHES = (1, 2, 4, 8, 16, 32)
"""Rows whose seconds are measured."""
LONG = 2.0
"""Seconds of a call that is measured once."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """`engine.Device` over pipelines in this process, by name.

    Args:
        pipelines: by name.
        finished: what is handed out of a picture that is done; by default it is decoded.
    """

    pipelines: Mapping[str, Pipeline]
    finished: Callable[[Pipeline, ImageTrajectory], Any] = Pipeline.finish

    def begin(self, job: Job) -> None:
        """Encode the prompt and what an edit begins with, lay out the latents."""
        job.draft = self.pipelines[job.group.pipeline].start(job.request)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Move every picture by one evaluation, in one batch, and wait for that: an engine counts the seconds."""
        pipeline = self.pipelines[jobs[0].group.pipeline]
        pipeline.advance([drafted(job) for job in jobs])
        pipeline.settle()

    def finish(self, job: Job) -> Any:
        """Hand the picture out."""
        return self.finished(self.pipelines[job.group.pipeline], drafted(job))


def drafted(job: Job) -> ImageTrajectory:
    """The picture of a job that has begun."""
    assert isinstance(job.draft, ImageTrajectory)
    return job.draft


def group_of(name: str, request: ImageRequest) -> Group:
    """The group of a resolved request for the pipeline of that name."""
    assert request.width is not None and request.height is not None
    return Group(name, request.width, request.height)


def walk_of(manifest: Manifest, request: ImageRequest) -> Walk:
    """The evaluations of a resolved request, as `Trajectory.rows` will tell them one by one, and what they begin with.

    Raises:
        InvalidRequest: what the pipeline cannot do.
    """
    course = plan_request(manifest, request)
    return Walk(
        tuple(1 + course.is_guided(evaluation) for evaluation in course.evaluations()),
        encoded_image_count(manifest, request),
    )


def usual(manifest: Manifest, width: int | None = None, height: int | None = None) -> ImageRequest:
    """A request that this pipeline can draw, as it draws by default: with a grey image and its mask where it needs one.

    Args:
        manifest: of the pipeline.
        width, height: of the picture; None, its own.
    """
    defaults = manifest.defaults
    request = ImageRequest("", width=width or defaults.width, height=height or defaults.height)
    if not manifest.is_inpainting:
        return request
    shape = (height or defaults.height, width or defaults.width)
    grey, all_of_it = np.full((*shape, 3), 127, np.uint8), np.full(shape, 255, np.uint8)
    return replace(request, image=grey, mask=all_of_it)


def measured(pipeline: Pipeline, group: Group, batches: Sequence[int] = (), calls: int = 3) -> Curve:
    """What pictures of this size cost here and now: the median of some calls, after one that is not counted.

    That one opens and compiles what it needs, the encoder of pictures, too. Batches are of the sizes that the U-Net is
    opened for, or of `BATCHES`; one that is no better than the one before it ends the measurement, because larger ones
    are not used then, and so does one that fails. Of what takes longer than `LONG` one call is counted.
    """
    request = replace(usual(pipeline.manifest, group.width, group.height), cache_interval=1)
    if pipeline.manifest.distilled is None:
        request = replace(request, guidance=1.0)  # one row each; a student takes one whatever its guidance
    seconds: dict[int, float] = {}
    for rows in batches or pipeline.batch_sizes or BATCHES:
        try:
            seconds[rows] = _usually(calls, partial(_advance, pipeline), partial(_drafts, pipeline, request, rows))
        except StillhouseError:
            if not seconds:
                raise
            break  # so many have no room in the memory, of a GPU or of this machine
        if rows > 2 and Curve(seconds).cap < rows:
            break
    encode = 0.0
    with suppress(StillhouseError, KeyError):  # whoever asks for an edit is told why there are none
        grey = np.full((group.height, group.width, 3), 127, np.uint8)
        encode = _usually(calls, pipeline.encode_image, lambda: grey)
    texts = (replace(request, prompt=f"new {number}") for number in count())  # a text that is known costs nothing
    begin = _usually(calls, pipeline.start, partial(next, texts))
    begin = max(0.0, begin - encode * encoded_image_count(pipeline.manifest, pipeline.resolve(request)))
    finish = _usually(calls, partial(_finish, pipeline, request), partial(_latents, pipeline, group))
    return Curve(seconds, begin, finish, encode, stepped=bool(pipeline.batch_sizes))


def _usually(calls: int, call: Callable[[Any], object], given: Callable[[], Any]) -> float:
    """Seconds of a call, each with something that is made for it."""

    def once() -> float:
        made = given()
        began = perf_counter()
        call(made)
        return perf_counter() - began

    once()
    first = once()
    return first if first > LONG else median([first, *(once() for _ in range(calls - 1))])


def _drafts(pipeline: Pipeline, request: ImageRequest, rows: int) -> list[ImageTrajectory]:
    drafts = [pipeline.start(request) for _ in range(rows)]
    pipeline.settle()
    return drafts


def _advance(pipeline: Pipeline, drafts: Sequence[ImageTrajectory]) -> None:
    pipeline.advance(drafts)
    pipeline.settle()


def _finish(pipeline: Pipeline, request: ImageRequest, latents: Array) -> None:
    encode_image(pipeline.decode(latents), "png", request, pipeline.manifest.name)


def _latents(pipeline: Pipeline, group: Group) -> Array:
    """Of no picture, but as lively as one; small enough for decoders in halves."""
    latent = pipeline.manifest.latent
    shape = (latent.channels, group.height // latent.downscale, group.width // latent.downscale)
    return 0.5 * np.random.default_rng(0).standard_normal(shape, np.float32)
