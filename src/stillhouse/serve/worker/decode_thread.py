"""Decode thread: decodes latents and encodes image files in parallel with the engine's steps.

Only one thread is used, because a pipeline's decoder is not thread-safe. Finished images are decoded before previews,
and only the latest preview of each job is kept.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Thread

from msgspec.structs import replace

from stillhouse.core import Array
from stillhouse.images.files import encode_image
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.serve.engine.executor import trajectory_of
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.output import PreviewImage, RequestOutput, failed_output

PREVIEW_QUALITY = 80


@dataclass(slots=True)
class DecodeThread:
    """Queue of images and previews to decode, and the thread that decodes them.

    Args:
        on_decoded: called in the decode thread with every decoded image or preview.
        clock: returns the time in seconds, on the clock of the times in a `Job`.
    """

    on_decoded: Callable[[RequestOutput | PreviewImage], None]
    clock: Callable[[], float] = time.monotonic
    _images: deque[Callable[[], RequestOutput]] = field(default_factory=deque)
    _previews: OrderedDict[str, Callable[[], PreviewImage]] = field(default_factory=OrderedDict)
    _work: Condition = field(default_factory=Condition)
    _is_open: bool = True
    _is_decoding: bool = False
    _thread: Thread | None = None

    def start(self) -> None:
        """Start the thread that decodes."""
        self._thread = Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, job: Job, pipeline: Pipeline) -> None:
        """Queue a job's image for decoding after its last evaluation, and remove the job's preview from the queue."""
        with self._work:
            self._previews.pop(job.id, None)
            self._images.append(partial(_decode_final, job, pipeline, self.clock))
            self._work.notify_all()

    def submit_preview(self, job: Job, pipeline: Pipeline) -> None:
        """Queue a job's current estimate of the clean latents, to be decoded to a preview.

        An earlier preview of the job that is still in the queue is replaced. The latents are copied to host memory
        before the return.
        """
        trajectory = trajectory_of(job)
        assert trajectory.denoised is not None
        latents = pipeline.arrays.to_numpy(trajectory.denoised)
        with self._work:
            self._previews.pop(job.id, None)
            self._previews[job.id] = partial(_decode_preview, job.id, trajectory.index, pipeline, latents)
            self._work.notify_all()

    def drop_preview(self, job_id: str) -> None:
        """Remove a job's preview from the queue, if one is still queued."""
        with self._work:
            self._previews.pop(job_id, None)

    def wait_until_idle(self) -> None:
        """Wait until every queued image and preview is decoded."""
        with self._work:
            self._work.wait_for(lambda: not (self._images or self._previews or self._is_decoding))

    def close(self) -> None:
        """Wait until every queued image and preview is decoded, and stop the thread."""
        with self._work:
            self._is_open = False
            self._work.notify_all()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._images or self._previews or not self._is_open)
                if self._images:
                    decode: Callable[[], RequestOutput | PreviewImage] = self._images.popleft()
                elif self._previews:
                    _, decode = self._previews.popitem(last=False)
                else:
                    return
                self._is_decoding = True
            try:
                self.on_decoded(decode())
            finally:  # without the server, `on_decoded` raises, and nobody may wait for this thread then
                with self._work:
                    self._is_decoding = False
                    self._work.notify_all()


def _decode_final(job: Job, pipeline: Pipeline, clock: Callable[[], float]) -> RequestOutput:
    try:
        result = pipeline.finish(trajectory_of(job))
        content = encode_image(result.image, job.format, result.request, pipeline.manifest.name)
        output = RequestOutput(job.id, "finished", content)
    except Exception as error:
        output = failed_output(job.id, error, "decoding")
    return replace(
        output,
        queue_seconds=job.started - job.arrived,
        denoise_seconds=job.last_step - job.started,
        decode_seconds=clock() - job.last_step,
        batch_peers=job.batch_peers / max(1, job.index),
        is_prompt_truncated=job.is_prompt_truncated,
    )


def _decode_preview(job_id: str, index: int, pipeline: Pipeline, latents: Array) -> PreviewImage:
    """Decode latents to a preview.

    Where decoding fails, the preview is empty, because decoding the final image will report the error.
    `index` is the number of completed evaluations.
    """
    try:
        return PreviewImage(job_id, index, encode_image(pipeline.decode(latents), "webp", quality=PREVIEW_QUALITY))
    except Exception:
        return PreviewImage(job_id, index, b"")
