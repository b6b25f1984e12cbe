"""Image generation and output paths for the commands `generate` and `demo`."""

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
    """Paths of the files that `stillhouse generate` writes.

    Args:
        images: path of each image.
        sheet: path of the contact sheet of all images; None where a single image is generated.
    """

    images: tuple[Path, ...]
    sheet: Path | None


def generate_images(
    pipeline: Pipeline, requests: Sequence[Resolved], report: ProgressCallback
) -> Iterator[ImageResult]:
    """Generate the image of each request, one after another, and yield it when it is finished.

    Args:
        pipeline: pipeline to run.
        requests: image requests with all defaults filled in, from `Pipeline.resolve`.
        report: called before an image and after each of its steps, with the prompt, the number of finished images (a
            fraction counts the finished part of the present image), and the total number of images.
    """
    for number, resolved in enumerate(requests):
        trajectory = pipeline.start(resolved)
        report(resolved.request.prompt, number, len(requests))
        for _ in pipeline.steps([trajectory]):
            pipeline.synchronize()
            report(resolved.request.prompt, number + trajectory.progress, len(requests))
        yield pipeline.finish(trajectory)


def resolve_output_paths(out: Path, requests: Sequence[ImageRequest]) -> OutputPaths:
    """Return the paths to which images are written, and the path of their contact sheet.

    Args:
        out: a directory, in which files are named by prompt and seed, and existing files are never overwritten; or a
            file such as `one.png`. The file is the image itself, or the contact sheet of several images, which are then
            written to `one-1.png`, `one-2.png` and so on.
        requests: requests of the images.
    """
    several = len(requests) > 1
    if out.suffix.lower() == ".png" and not out.is_dir():
        numbered = tuple(out.with_stem(f"{out.stem}-{number + 1}") for number in range(len(requests)))
        return OutputPaths(numbered, out) if several else OutputPaths((out,), None)
    used: list[Path] = []
    for request in requests:
        used.append(_unused_path(out, f"{_stem(request.prompt)}-{request.seed}", used))
    return OutputPaths(tuple(used), _unused_path(out, "sheet", used) if several else None)


def _stem(prompt: str) -> str:
    return re.sub(r"[\W_]+", "-", prompt.lower())[:_MAX_STEM].strip("-") or "picture"


def _unused_path(directory: Path, stem: str, used: Sequence[Path]) -> Path:
    stems = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    paths = (directory / f"{stem}.png" for stem in stems)
    return next(path for path in paths if path not in used and not path.exists())
