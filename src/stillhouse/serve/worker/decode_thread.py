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
from stillhouse.serve.engine.engine import as_told

PREVIEW_QUALITY = 80


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture, or why there is none."""

    id: str
    content: bytes = b""
    error: StillhouseError | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A preview, after so many evaluations."""

    id: str
    index: int
    content: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Preview:
    pipeline: Pipeline
    latents: Array
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    id: str
    pipeline: Pipeline
    draft: ImageTrajectory
    format: Format


@dataclass(slots=True)
class Finisher:
    """Takes what is to be decoded, and hands out what was; `tell` is called from its thread.

    Args:
        tell: takes every `Finished` and `Seen`.
    """

    tell: Callable[[Finished | Seen], None]
    _pictures: deque[_Picture] = field(default_factory=deque)
    _previews: OrderedDict[str, _Preview] = field(default_factory=OrderedDict)
    _news: Condition = field(default_factory=Condition)
    _is_open: bool = True
    _thread: Thread | None = None

    def start(self) -> None:
        """Begin to decode."""
        self._thread = Thread(target=self._run, name="finisher", daemon=True)
        self._thread.start()

    def finish(self, name: str, pipeline: Pipeline, draft: ImageTrajectory, kind: Format) -> None:
        """Decode a picture that is done; its previews are needed no more."""
        with self._news:
            self._previews.pop(name, None)
            self._pictures.append(_Picture(name, pipeline, draft, kind))
            self._news.notify()

    def preview(self, name: str, pipeline: Pipeline, draft: ImageTrajectory) -> None:
        """Decode what the network sees in a picture that is not done."""
        assert draft.denoised is not None
        with self._news:
            self._previews.pop(name, None)
            self._previews[name] = _Preview(pipeline, pipeline.arrays.read(draft.denoised), draft.index)
            self._news.notify()

    def forget(self, name: str) -> None:
        """Nobody waits for this picture's previews any more."""
        with self._news:
            self._previews.pop(name, None)

    def close(self) -> None:
        """Decode what is there, and end."""
        with self._news:
            self._is_open = False
            self._news.notify()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._pictures or self._previews or not self._is_open)
                if self._pictures:
                    task: _Picture | tuple[str, _Preview] = self._pictures.popleft()
                elif self._previews:
                    task = self._previews.popitem(last=False)
                else:
                    return
            self.tell(_finished(task) if isinstance(task, _Picture) else _seen(*task))


def _finished(picture: _Picture) -> Finished:
    try:
        result = picture.pipeline.finish(picture.draft)
        name = picture.pipeline.manifest.name
        return Finished(picture.id, encode_image(result.image, picture.format, result.request, name))
    except Exception as error:
        return Finished(picture.id, error=as_told(error, "decoding"))


def _seen(name: str, preview: _Preview) -> Seen:
    """A preview that cannot be decoded is an empty one: the picture itself will tell why."""
    try:
        image = preview.pipeline.decode(preview.latents)
        return Seen(name, preview.index, encode_image(image, "webp", quality=PREVIEW_QUALITY))
    except Exception:
        return Seen(name, preview.index, b"")
