"""Decode thread: decodes latents and encodes image files in parallel with the engine's steps.

A single thread, because a pipeline's decoder is not thread-safe. Finished images precede previews, and only the latest
preview of each job is kept.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Thread

from stillhouse.core import Array
from stillhouse.errors import StillhouseError
from stillhouse.images.formats import Format, encode_image
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.serve.engine.engine import wrap_error

PREVIEW_QUALITY = 80


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A finished image file, or the error that prevented it.

    Args:
        id: job id.
        content: image file; empty if decoding failed.
        error: error of decoding; None if it succeeded.
    """

    id: str
    content: bytes = b""
    error: StillhouseError | None = None


@dataclass(frozen=True, slots=True)
class DecodedPreview:
    """A preview image.

    Args:
        id: job id.
        index: completed evaluations.
        content: WebP file; empty if decoding failed.
    """

    id: str
    index: int
    content: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _PreviewTask:
    pipeline: Pipeline
    latents: Array
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class _ImageTask:
    id: str
    pipeline: Pipeline
    trajectory: ImageTrajectory
    format: Format


@dataclass(slots=True)
class DecodeThread:
    """Queue of images to decode and the thread that decodes them.

    Args:
        on_decoded: called in the decode thread with every result.
    """

    on_decoded: Callable[[DecodedImage | DecodedPreview], None]
    _images: deque[_ImageTask] = field(default_factory=deque)
    _previews: OrderedDict[str, _PreviewTask] = field(default_factory=OrderedDict)
    _work: Condition = field(default_factory=Condition)
    _is_open: bool = True
    _thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def submit(self, job_id: str, pipeline: Pipeline, trajectory: ImageTrajectory, image_format: Format) -> None:
        """Queue a finished trajectory and drop a pending preview of the job."""
        with self._work:
            self._previews.pop(job_id, None)
            self._images.append(_ImageTask(job_id, pipeline, trajectory, image_format))
            self._work.notify()

    def submit_preview(self, job_id: str, pipeline: Pipeline, trajectory: ImageTrajectory) -> None:
        """Queue the current estimate of the clean latents as a preview. It replaces a pending preview of the job."""
        assert trajectory.denoised is not None
        with self._work:
            self._previews.pop(job_id, None)
            self._previews[job_id] = _PreviewTask(
                pipeline, pipeline.arrays.to_numpy(trajectory.denoised), trajectory.index
            )
            self._work.notify()

    def drop_preview(self, job_id: str) -> None:
        """Drop a pending preview of a job."""
        with self._work:
            self._previews.pop(job_id, None)

    def close(self) -> None:
        """Decode all queued images and stop the thread."""
        with self._work:
            self._is_open = False
            self._work.notify()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._images or self._previews or not self._is_open)
                if self._images:
                    task: _ImageTask | tuple[str, _PreviewTask] = self._images.popleft()
                elif self._previews:
                    task = self._previews.popitem(last=False)
                else:
                    return
            self.on_decoded(_decode_final(task) if isinstance(task, _ImageTask) else _decode_preview(*task))


def _decode_final(task: _ImageTask) -> DecodedImage:
    try:
        result = task.pipeline.finish(task.trajectory)
        name = task.pipeline.manifest.name
        return DecodedImage(task.id, encode_image(result.image, task.format, result.request, name))
    except Exception as error:
        return DecodedImage(task.id, error=wrap_error(error, "decoding"))


def _decode_preview(job_id: str, task: _PreviewTask) -> DecodedPreview:
    """Return a preview. Errors give an empty preview, because the final image reports them."""
    try:
        image = task.pipeline.decode(task.latents)
        return DecodedPreview(job_id, task.index, encode_image(image, "webp", quality=PREVIEW_QUALITY))
    except Exception:
        return DecodedPreview(job_id, task.index, b"")
