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
from stillhouse.pipelines.resolve import Resolved, encoded_image_count
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan

BATCHES = (1, 2, 4, 8, 16, 32)
"""Rows whose seconds are measured."""
SLOW_CALL_SECONDS = 2.0
"""Seconds of a call that is measured once."""


@dataclass(frozen=True, slots=True)
class PipelineExecutor:
    """`engine.Device` over pipelines in this process, by name.

    Args:
        pipelines: by name.
        finished: what is handed out of a picture that is done; by default it is decoded.
    """

    pipelines: Mapping[str, Pipeline]
    finish_trajectory: Callable[[Pipeline, ImageTrajectory], Any] = Pipeline.finish

    def begin(self, job: Job) -> None:
        """Encode the prompt and what an edit begins with, lay out the latents."""
        job.trajectory = self.pipelines[job.batch_key.pipeline].start(job.resolved)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Move every picture by one evaluation, in one batch, and wait for that: an engine counts the seconds."""
        pipeline = self.pipelines[jobs[0].batch_key.pipeline]
        pipeline.advance([trajectory_of(job) for job in jobs])
        pipeline.synchronize()

    def finish(self, job: Job) -> Any:
        """Hand the picture out."""
        return self.finish_trajectory(self.pipelines[job.batch_key.pipeline], trajectory_of(job))


def trajectory_of(job: Job) -> ImageTrajectory:
    """The picture of a job that has begun."""
    assert isinstance(job.trajectory, ImageTrajectory)
    return job.trajectory


def make_batch_key(pipeline: str, resolved: Resolved) -> BatchKey:
    """Return the batch key of a request for the pipeline of that name."""
    width, height, *extra = resolved.batch_key
    return BatchKey(pipeline, width, height, tuple(extra))


def plan_steps(manifest: Manifest, resolved: Resolved) -> StepPlan:
    """Return the rows of each evaluation of a request, and how many images are encoded before the first."""
    return StepPlan(resolved.plan.rows, encoded_image_count(manifest, resolved.request))


def default_request(manifest: Manifest, width: int | None = None, height: int | None = None) -> ImageRequest:
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


def measure_latency_curve(
    pipeline: Pipeline, batch_key: BatchKey, batches: Sequence[int] = (), calls: int = 3
) -> LatencyCurve:
    """What pictures of this size cost here and now: the median of some calls, after one that is not counted.

    That one opens and compiles what it needs, the encoder of pictures, too. Batches are of the sizes that the U-Net is
    opened for, or of `BATCHES`; one that is no better than the one before it ends the measurement, because larger ones
    are not used then, and so does one that fails. Of what takes longer than `LONG` one call is counted.
    """
    request = replace(default_request(pipeline.manifest, batch_key.width, batch_key.height), cache_interval=1)
    if pipeline.manifest.distilled is None:
        request = replace(request, guidance=1.0)  # one row each; a student takes one whatever its guidance
    seconds: dict[int, float] = {}
    for rows in batches or pipeline.batch_sizes or BATCHES:
        try:
            seconds[rows] = _median_seconds(
                calls, partial(_advance_batch, pipeline), partial(_start_batch, pipeline, request, rows)
            )
        except StillhouseError:
            if not seconds:
                raise
            break  # so many have no room in the memory, of a GPU or of this machine
        if rows > 2 and LatencyCurve(seconds).saturation_rows < rows:
            break
    encode = 0.0
    with suppress(StillhouseError, KeyError):  # whoever asks for an edit is told why there are none
        grey = np.full((batch_key.height, batch_key.width, 3), 127, np.uint8)
        encode = _median_seconds(calls, pipeline.encode_image, lambda: grey)
    texts = (replace(request, prompt=f"new {number}") for number in count())  # a text that is known costs nothing
    begin = _median_seconds(calls, pipeline.start, partial(next, texts))
    begin = max(0.0, begin - encode * encoded_image_count(pipeline.manifest, pipeline.resolve(request).request))
    finish = _median_seconds(
        calls, partial(_decode_and_encode, pipeline, request), partial(_random_latents, pipeline, batch_key)
    )
    return LatencyCurve(seconds, begin, finish, encode, is_bucketed=bool(pipeline.batch_sizes))


def _median_seconds(calls: int, call: Callable[[Any], object], make_argument: Callable[[], Any]) -> float:
    """Seconds of a call, each with something that is made for it."""

    def once() -> float:
        made = make_argument()
        began = perf_counter()
        call(made)
        return perf_counter() - began

    once()
    first = once()
    return first if first > SLOW_CALL_SECONDS else median([first, *(once() for _ in range(calls - 1))])


def _start_batch(pipeline: Pipeline, request: ImageRequest, rows: int) -> list[ImageTrajectory]:
    drafts = [pipeline.start(request) for _ in range(rows)]
    pipeline.synchronize()
    return drafts


def _advance_batch(pipeline: Pipeline, trajectories: Sequence[ImageTrajectory]) -> None:
    pipeline.advance(trajectories)
    pipeline.synchronize()


def _decode_and_encode(pipeline: Pipeline, request: ImageRequest, latents: Array) -> None:
    encode_image(pipeline.decode(latents), "png", request, pipeline.manifest.name)


def _random_latents(pipeline: Pipeline, batch_key: BatchKey) -> Array:
    """Of no picture, but as lively as one; small enough for decoders in halves."""
    latent = pipeline.manifest.latent
    shape = (latent.channels, batch_key.height // latent.downscale, batch_key.width // latent.downscale)
    return 0.5 * np.random.default_rng(0).standard_normal(shape, np.float32)
