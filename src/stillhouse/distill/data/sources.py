"""What is learnt from, as the settings say: pictures with their captions, or captions that the teacher is to follow."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.distill.data.image_folder import Captioned, Skipped, count_pictures, read_folder
from stillhouse.distill.data.prompt_file import read_prompts
from stillhouse.distill.data.samples import Item, drawn, folder, shapes
from stillhouse.distill.settings import TEACHER, Settings
from stillhouse.distill.training.trajectory_chain import WALKS
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import Manifest, files_checksum
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import seen_caption


def key_of(manifest: Manifest, settings: Settings) -> str:
    """The same for the same teacher and the same data."""
    about = [files_checksum(manifest), _told_of(settings), settings.items, settings.seed]
    if settings.method == WALKS:  # they are kept where the first student walks, whoever comes after it
        about += [*settings.guidance, *settings.rounds[:2], settings.task]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


def items_of(
    pipeline: Pipeline, settings: Settings, skipped: Callable[[Skipped], None]
) -> Callable[[int], Iterable[Item]]:
    """Pictures of the settings, those from a number on."""
    if settings.data in EMBEDDED:
        return lambda begin: shapes(pipeline, settings.items, settings.seed, begin)
    if settings.data != TEACHER:
        return lambda begin: folder(pipeline, Path(settings.data), settings.items, skipped, begin)
    if settings.prompts is None:
        raise _nothing()
    prompts = read_prompts(Path(settings.prompts))
    return lambda begin: drawn(pipeline, prompts, settings.items, settings.seed, begin)


def expected(settings: Settings) -> int:
    """How many pictures there will be, as far as that is known before they are read."""
    if settings.method == WALKS or settings.data in EMBEDDED or settings.data == TEACHER:
        return settings.items
    return min(settings.items, count_pictures(Path(settings.data)) or settings.items)


def captions_of(settings: Settings, skipped: Callable[[Skipped], None]) -> Callable[[np.random.Generator], str]:
    """Draws captions of what is learnt from."""
    if settings.data in EMBEDDED:
        return seen_caption
    if settings.data != TEACHER:
        texts = tuple(_captions_in(Path(settings.data), skipped))
        if not texts:
            raise InvalidRequest(f"no picture with a caption in {settings.data}", allowed="one, or more")
    elif settings.prompts is None:
        raise _nothing()
    else:
        texts = read_prompts(Path(settings.prompts))
    return lambda rng: texts[int(rng.integers(len(texts)))]


def _captions_in(folder: Path, skipped: Callable[[Skipped], None]) -> Iterator[str]:
    for one in read_folder(folder):
        if isinstance(one, Captioned):
            yield one.caption
        else:
            skipped(one)


def _told_of(settings: Settings) -> Any:
    """What the data are, so that others are not taken for them."""
    if settings.data in EMBEDDED:
        return settings.data
    if settings.data == TEACHER:
        return None if settings.prompts is None else read_prompts(Path(settings.prompts))
    folder = Path(settings.data).resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(folder), *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)]


def _nothing() -> InvalidRequest:
    return InvalidRequest("no data and no prompts", allowed="--data FOLDER, --data shapes, or --prompts FILE")
