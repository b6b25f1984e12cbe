"""Executor that runs pipelines in this process, an LRU cache of pipelines, and measurement of latency curves."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from stillhouse.core import Array, ImageRequest
from stillhouse.errors import StillhouseError
from stillhouse.images.files import encode_image
from stillhouse.measure.memory import own_resident_bytes, release_memory
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.manifest import Manifest
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.resolve import encoded_image_count
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey, Job

BATCHES = (1, 2, 4, 8, 16, 32)
"""Row counts that are measured if the pipeline has no fixed batch sizes."""
SLOW_CALL_SECONDS = 2.0
"""Seconds above which a call is timed only once."""


@dataclass(slots=True)
class PipelineCache(Mapping[str, Pipeline]):
    """Pipelines by name, loaded on first access. Use from one thread.

    Args:
        open_pipeline: loads a pipeline by name.
        names: names of all pipelines.
        budget: memory budget in bytes. The requested pipeline stays loaded even if it alone exceeds the budget.
        memory_used: returns the memory of this process in bytes.
        free_memory: releases the memory of an unloaded pipeline before `memory_used` is read again.
    """

    open_pipeline: Callable[[str], Pipeline]
    names: tuple[str, ...]
    budget: int
    memory_used: Callable[[], int] = lambda: own_resident_bytes(os.getpid())
    free_memory: Callable[[], None] = release_memory
    _loaded: OrderedDict[str, Pipeline] = field(default_factory=OrderedDict)

    def __getitem__(self, name: str) -> Pipeline:
        if name in self._loaded:
            self._loaded.move_to_end(name)
        elif name in self.names:
            self.evict()
            self._loaded[name] = self.open_pipeline(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def evict(self) -> list[str]:
        """Unload least recently used pipelines until the rest fits the budget; return their names."""
        evicted = []
        while len(self._loaded) > 1 and self.memory_used() > self.budget:
            name = next(iter(self._loaded))
            del self._loaded[name]  # popitem is not used, because its result would keep the pipeline in memory
            evicted.append(name)
            self.free_memory()
        return evicted

    @property
    def loaded(self) -> tuple[str, ...]:
        """Return the names of loaded pipelines, the least recently used first."""
        return tuple(self._loaded)


@dataclass(frozen=True, slots=True)
class PipelineExecutor:
    """`Executor` over pipelines of this process.

    Args:
        pipelines: pipelines by name.
    """

    pipelines: Mapping[str, Pipeline]

    def begin(self, job: Job) -> None:
        """Encode the prompt and the input image, and create the initial latents."""
        job.trajectory = self.pipelines[job.batch_key.pipeline].start(job.resolved)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Run one evaluation of all jobs in one batch, and wait for the device so that the engine can time it."""
        pipeline = self.pipelines[jobs[0].batch_key.pipeline]
        pipeline.advance([trajectory_of(job) for job in jobs])
        pipeline.synchronize()

    def finish(self, job: Job) -> None:
        """Copy the final latents to host memory; another thread may decode them.

        The copy is made between two steps, because a GPU would complete the next step before a later copy.
        """
        trajectory = trajectory_of(job)
        trajectory.latents = self.pipelines[job.batch_key.pipeline].arrays.to_numpy(trajectory.latents)


def trajectory_of(job: Job) -> ImageTrajectory:
    """Return the trajectory of a started job."""
    assert isinstance(job.trajectory, ImageTrajectory)
    return job.trajectory


def default_request(manifest: Manifest, width: int | None = None, height: int | None = None) -> ImageRequest:
    """Return a request with the pipeline's defaults; for inpainting pipelines, with a grey image and a full mask.

    Args:
        manifest: manifest of the pipeline.
        width: image width in pixels; None uses the default.
        height: image height in pixels; None uses the default.
    """
    defaults = manifest.defaults
    request = ImageRequest("", width=width or defaults.width, height=height or defaults.height)
    if not find_family(manifest.family).is_inpainting(manifest):
        return request
    shape = (height or defaults.height, width or defaults.width)
    image, mask = np.full((*shape, 3), 127, np.uint8), np.full(shape, 255, np.uint8)
    return replace(request, image=image, mask=mask)


def measure_latency_curve(
    pipeline: Pipeline, batch_key: BatchKey, batches: Sequence[int] = (), calls: int = 3
) -> LatencyCurve:
    """Measure the latency curve of a pipeline at one image size: medians over `calls` calls after a warm-up call.

    The warm-up call loads and compiles the networks. Measurement stops at the first batch size that fails or does not
    raise the throughput, because larger batches are not used then. A call slower than `SLOW_CALL_SECONDS` is timed
    once.

    Args:
        pipeline: pipeline to measure.
        batch_key: image size.
        batches: row counts; empty uses the pipeline's batch sizes, or `BATCHES`.
        calls: timed calls per measurement.
    """
    request = replace(default_request(pipeline.manifest, batch_key.width, batch_key.height), cache_interval=1)
    if pipeline.manifest.distilled is None:
        request = replace(request, guidance=1.0)  # one row per image; distilled models always have one row
    seconds: dict[int, float] = {}
    for rows in batches or pipeline.batch_sizes or BATCHES:
        try:
            seconds[rows] = _median_seconds(
                calls, partial(_advance_batch, pipeline), partial(_start_batch, pipeline, request, rows)
            )
        except StillhouseError:
            if not seconds:
                raise
            break  # larger batches do not fit in memory
        if rows > 2 and LatencyCurve(seconds).saturation_rows < rows:
            break
    image_seconds = 0.0
    with suppress(StillhouseError, KeyError):  # pipelines without an image encoder reject edits
        image = np.full((batch_key.height, batch_key.width, 3), 127, np.uint8)
        image_seconds = _median_seconds(calls, pipeline.encode_image, lambda: image)
    texts = (replace(request, prompt=f"new {number}") for number in count())  # new, because encodings are cached
    text_seconds = _median_seconds(calls, pipeline.start, partial(next, texts))
    text_seconds = max(
        0.0, text_seconds - image_seconds * encoded_image_count(pipeline.manifest, pipeline.resolve(request).request)
    )
    decode_seconds = _median_seconds(
        calls, partial(_decode_and_encode, pipeline, request), partial(_random_latents, pipeline, batch_key)
    )
    return LatencyCurve(seconds, text_seconds, decode_seconds, image_seconds, is_bucketed=bool(pipeline.batch_sizes))


def _median_seconds(calls: int, call: Callable[[Any], object], make_argument: Callable[[], Any]) -> float:
    """Return the median seconds of a call, each with a new argument."""

    def time_call() -> float:
        argument = make_argument()
        began = perf_counter()
        call(argument)
        return perf_counter() - began

    time_call()
    first = time_call()
    return first if first > SLOW_CALL_SECONDS else median([first, *(time_call() for _ in range(calls - 1))])


def _start_batch(pipeline: Pipeline, request: ImageRequest, rows: int) -> list[ImageTrajectory]:
    trajectories = [pipeline.start(request) for _ in range(rows)]
    pipeline.synchronize()
    return trajectories


def _advance_batch(pipeline: Pipeline, trajectories: Sequence[ImageTrajectory]) -> None:
    pipeline.advance(trajectories)
    pipeline.synchronize()


def _decode_and_encode(pipeline: Pipeline, request: ImageRequest, latents: Array) -> None:
    encode_image(pipeline.decode(latents), "png", request, pipeline.manifest.name)


def _random_latents(pipeline: Pipeline, batch_key: BatchKey) -> Array:
    """Return random latents with a standard deviation of 0.5, small enough that float16 decoders do not overflow."""
    latent = pipeline.manifest.latent
    shape = (latent.channels, batch_key.height // latent.downscale, batch_key.width // latent.downscale)
    return 0.5 * np.random.default_rng(0).standard_normal(shape, np.float32)
