"""What `generate` and `demo` share: drawing one picture after the other, and where the files go."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from stillhouse.cli.progress import ProgressCallback
from stillhouse.core import ImageRequest, ImageResult
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.resolve import Resolved

_MAX_STEM = 48


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Where each picture goes, and the contact sheet where there are several."""

    images: tuple[Path, ...]
    sheet: Path | None


def generate_images(
    pipeline: Pipeline, requests: Sequence[Resolved], report: ProgressCallback
) -> Iterator[ImageResult]:
    """Generate the requests' pictures, one after the other."""
    for number, resolved in enumerate(requests):
        trajectory = pipeline.start(resolved)
        report(resolved.request.prompt, number, len(requests))
        for _ in pipeline.steps([trajectory]):
            pipeline.synchronize()
            report(resolved.request.prompt, number + trajectory.progress, len(requests))
        yield pipeline.finish(trajectory)


def resolve_output_paths(out: Path, requests: Sequence[ImageRequest]) -> OutputPaths:
    """A place for every picture.

    A directory gets files named after prompt and seed, and never loses one that is there. A file `one.png` is the
    picture itself; where there are several it is their sheet, and they are `one-1.png`, `one-2.png` beside it.
    """
    several = len(requests) > 1
    if out.suffix.lower() == ".png" and not out.is_dir():
        numbered = tuple(out.with_stem(f"{out.stem}-{number + 1}") for number in range(len(requests)))
        return OutputPaths(numbered, out) if several else OutputPaths((out,), None)
    taken: list[Path] = []
    for request in requests:
        taken.append(_unused_path(out, f"{_stem(request.prompt)}-{request.seed}", taken))
    return OutputPaths(tuple(taken), _unused_path(out, "sheet", taken) if several else None)


def _stem(prompt: str) -> str:
    return re.sub(r"[\W_]+", "-", prompt.lower())[:_MAX_STEM].strip("-") or "picture"


def _unused_path(directory: Path, stem: str, taken: Sequence[Path]) -> Path:
    stems = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    paths = (directory / f"{stem}.png" for stem in stems)
    return next(path for path in paths if path not in taken and not path.exists())
