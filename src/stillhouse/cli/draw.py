"""What `generate` and `demo` share: drawing one picture after the other, and where the files go."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from stillhouse.cli.progress import Report
from stillhouse.core import ImageRequest, ImageResult
from stillhouse.pipelines.pipeline import Pipeline

_LONGEST_STEM = 48


@dataclass(frozen=True, slots=True)
class Places:
    """Where each picture goes, and the contact sheet where there are several."""

    pictures: tuple[Path, ...]
    sheet: Path | None


def draw(pipeline: Pipeline, requests: Sequence[ImageRequest], report: Report) -> Iterator[ImageResult]:
    """The requests' pictures, one after the other."""
    for number, request in enumerate(requests):
        draft = pipeline.start(request)
        while not draft.is_done:
            report(request.prompt, number + draft.progress, len(requests))
            pipeline.advance([draft])
            pipeline.settle()
        yield pipeline.finish(draft)


def places(out: Path, requests: Sequence[ImageRequest]) -> Places:
    """A place for every picture.

    A directory gets files named after prompt and seed, and never loses one that is there. A file `one.png` is the
    picture itself; where there are several it is their sheet, and they are `one-1.png`, `one-2.png` beside it.
    """
    several = len(requests) > 1
    if out.suffix.lower() == ".png" and not out.is_dir():
        numbered = tuple(out.with_stem(f"{out.stem}-{number + 1}") for number in range(len(requests)))
        return Places(numbered, out) if several else Places((out,), None)
    taken: list[Path] = []
    for request in requests:
        taken.append(_free(out, f"{_stem(request.prompt)}-{request.seed}", taken))
    return Places(tuple(taken), _free(out, "sheet", taken) if several else None)


def _stem(prompt: str) -> str:
    return re.sub(r"[\W_]+", "-", prompt.lower())[:_LONGEST_STEM].strip("-") or "picture"


def _free(directory: Path, stem: str, taken: Sequence[Path]) -> Path:
    stems = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    paths = (directory / f"{stem}.png" for stem in stems)
    return next(path for path in paths if path not in taken and not path.exists())
