"""The finisher: decodes pictures and writes them as files, beside the ticks and not between them.

One thread, so that a pipeline's decoder is used by one thread only. Pictures that are done go before previews, and of a
picture's previews only the latest waits.
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
    """A picture, or why there is none."""

    id: str
    content: bytes = b""
    error: StillhouseError | None = None


@dataclass(frozen=True, slots=True)
class DecodedPreview:
    """A preview, after so many evaluations."""

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
    """Takes what is to be decoded, and hands out what was; `tell` is called from its thread.

    Args:
        tell: takes every `Finished` and `Seen`.
    """

    on_decoded: Callable[[DecodedImage | DecodedPreview], None]
    _images: deque[_ImageTask] = field(default_factory=deque)
    _previews: OrderedDict[str, _PreviewTask] = field(default_factory=OrderedDict)
    _work: Condition = field(default_factory=Condition)
    _is_open: bool = True
    _thread: Thread | None = None

    def start(self) -> None:
        """Begin to decode."""
        self._thread = Thread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    def submit(self, job_id: str, pipeline: Pipeline, trajectory: ImageTrajectory, image_format: Format) -> None:
        """Decode a picture that is done; its previews are needed no more."""
        with self._work:
            self._previews.pop(job_id, None)
            self._images.append(_ImageTask(job_id, pipeline, trajectory, image_format))
            self._work.notify()

    def submit_preview(self, job_id: str, pipeline: Pipeline, trajectory: ImageTrajectory) -> None:
        """Decode what the network sees in a picture that is not done."""
        assert trajectory.denoised is not None
        with self._work:
            self._previews.pop(job_id, None)
            self._previews[job_id] = _PreviewTask(
                pipeline, pipeline.arrays.to_numpy(trajectory.denoised), trajectory.index
            )
            self._work.notify()

    def drop_preview(self, job_id: str) -> None:
        """Nobody waits for this picture's previews any more."""
        with self._work:
            self._previews.pop(job_id, None)

    def close(self) -> None:
        """Decode what is there, and end."""
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
    """A preview that cannot be decoded is an empty one: the picture itself will tell why."""
    try:
        image = task.pipeline.decode(task.latents)
        return DecodedPreview(job_id, task.index, encode_image(image, "webp", quality=PREVIEW_QUALITY))
    except Exception:
        return DecodedPreview(job_id, task.index, b"")
