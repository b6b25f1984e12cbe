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
"""Numbers of rows for which latencies are measured where the pipeline has no fixed batch sizes."""
SLOW_CALL_SECONDS = 2.0
"""Seconds above which a measured call is not repeated: the first timed call then gives the result."""


@dataclass(slots=True)
class PipelineCache(Mapping[str, Pipeline]):
    """Pipelines by name, loaded on first access and unloaded when memory is short. Use from one thread.

    Args:
        open_pipeline: loads a pipeline by name.
        names: names of all pipelines.
        budget: bytes of memory above which the least recently used pipelines are unloaded. One pipeline stays loaded
            even if it alone exceeds the budget.
        memory_used: returns the memory of this process in bytes.
        free_memory: called after a pipeline is unloaded, to return its memory to the operating system.
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
        """Unload the least recently used pipelines until the process fits its memory budget or one pipeline is left.

        Returns:
            the names of the unloaded pipelines, in order.
        """
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
    """The `engine.Executor` (part of an engine that runs the networks) that runs pipelines in this process.

    Args:
        pipelines: pipelines by name; the batch key of a job holds the name of its pipeline.
    """

    pipelines: Mapping[str, Pipeline]

    def begin(self, job: Job) -> None:
        """Encode a job's prompt and input image, and set `job.trajectory`, which holds the initial latents."""
        job.trajectory = self.pipelines[job.batch_key.pipeline].start(job.resolved)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Run one evaluation of all jobs in one batch, and wait for the device, so that the engine can time it."""
        pipeline = self.pipelines[jobs[0].batch_key.pipeline]
        pipeline.advance([trajectory_of(job) for job in jobs])
        pipeline.synchronize()

    def finish(self, job: Job) -> None:
        """Copy a job's final latents to host memory, so that another thread can decode them.

        The copy is made at once: a copy that is queued after the next step would wait until the GPU has completed that
        step.
        """
        trajectory = trajectory_of(job)
        trajectory.latents = self.pipelines[job.batch_key.pipeline].arrays.to_numpy(trajectory.latents)


def trajectory_of(job: Job) -> ImageTrajectory:
    """Return the denoising state of a job that was started."""
    assert isinstance(job.trajectory, ImageTrajectory)
    return job.trajectory


def default_request(manifest: Manifest, width: int | None = None, height: int | None = None) -> ImageRequest:
    """Return a request with an empty prompt and the pipeline's default settings, for measurements.

    For inpainting pipelines, the request has a grey image and a mask that covers all of it.

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
    """Measure the latencies of a pipeline at one image size: of an evaluation by batch rows, of encoding and decoding.

    Each latency is the median of `calls` calls after a warm-up call, which loads and compiles the networks. Where a
    call is slower than `SLOW_CALL_SECONDS`, only one call is timed. The measurement of evaluations stops at the first
    number of rows that fails or does not raise the throughput, because larger batches are not used then.

    Args:
        pipeline: pipeline to measure.
        batch_key: width and height of the images; its pipeline is not used.
        batches: numbers of rows; empty: the pipeline's fixed batch sizes, or `BATCHES` where it has none.
        calls: number of timed calls for each latency.

    Raises:
        StillhouseError: even the first number of rows failed.
    """
    request = replace(default_request(pipeline.manifest, batch_key.width, batch_key.height), cache_interval=1)
    if pipeline.manifest.distilled is None:
        # Guidance 1 turns guidance off, so that an image takes one row of a batch. Distilled pipelines are left out,
        # because they always take one row and may refuse guidance 1.
        request = replace(request, guidance=1.0)
    seconds: dict[int, float] = {}
    for rows in batches or pipeline.batch_sizes or BATCHES:
        try:
            seconds[rows] = _median_seconds(
                calls, partial(_advance_batch, pipeline), partial(_start_batch, pipeline, request, rows)
            )
        except StillhouseError:
            if not seconds:
                raise
            break  # this batch probably does not fit in memory, so larger ones do not either
        if rows > 2 and LatencyCurve(seconds).saturation_rows < rows:
            break
    image_seconds = 0.0
    with suppress(StillhouseError, KeyError):  # without an image encoder the block fails, and image_seconds stays 0
        image = np.full((batch_key.height, batch_key.width, 3), 127, np.uint8)
        image_seconds = _median_seconds(calls, pipeline.encode_image, lambda: image)
    # Each call that is timed gets a new prompt, because a prompt that was encoded before comes from the cache.
    texts = (replace(request, prompt=f"new {number}") for number in count())
    text_seconds = _median_seconds(calls, pipeline.start, partial(next, texts))
    text_seconds = max(
        0.0, text_seconds - image_seconds * encoded_image_count(pipeline.manifest, pipeline.resolve(request).request)
    )
    decode_seconds = _median_seconds(
        calls, partial(_decode_and_encode, pipeline, request), partial(_random_latents, pipeline, batch_key)
    )
    return LatencyCurve(seconds, text_seconds, decode_seconds, image_seconds, is_bucketed=bool(pipeline.batch_sizes))


def _median_seconds(calls: int, call: Callable[[Any], object], make_argument: Callable[[], Any]) -> float:
    """Return the median seconds of several calls of a function after a warm-up call.

    If the first timed call takes more than SLOW_CALL_SECONDS, its seconds are returned, and no other call is timed.

    Args:
        calls: number of timed calls.
        call: the function to time, which takes one argument.
        make_argument: makes a new argument before each call; its time does not count.
    """

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
    """Return random latents, float32 [C, h, w], of standard deviation 0.5, which do not overflow a float16 decoder."""
    latent = pipeline.manifest.latent
    shape = (latent.channels, batch_key.height // latent.downscale, batch_key.width // latent.downscale)
    return 0.5 * np.random.default_rng(0).standard_normal(shape, np.float32)
