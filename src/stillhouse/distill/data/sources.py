"""What is learnt from, as the settings say: pictures with their captions, or captions that the teacher is to follow."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.distill.data.image_folder import CaptionedImage, SkippedImage, count_images, read_image_folder
from stillhouse.distill.data.prompt_file import read_prompts
from stillhouse.distill.data.samples import LatentSample, folder_samples, generated_samples, shapes_samples
from stillhouse.distill.settings import TEACHER, DistillSettings
from stillhouse.distill.training.trajectory_chain import TRAJECTORY
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import Manifest, files_checksum
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import random_training_caption


def dataset_key(manifest: Manifest, settings: DistillSettings) -> str:
    """The same for the same teacher and the same data."""
    about = [files_checksum(manifest), _data_description(settings), settings.samples, settings.seed]
    if settings.method == TRAJECTORY:  # they are kept where the first student walks, whoever comes after it
        about += [*settings.guidance, *settings.step_counts[:2], settings.task]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


def open_samples(
    pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
) -> Callable[[int], Iterable[LatentSample]]:
    """Pictures of the settings, those from a number on."""
    if settings.data in EMBEDDED:
        return lambda begin: shapes_samples(pipeline, settings.samples, settings.seed, begin)
    if settings.data != TEACHER:
        return lambda begin: folder_samples(pipeline, Path(settings.data), settings.samples, on_skipped, begin)
    if settings.prompts is None:
        raise _no_data()
    prompts = read_prompts(Path(settings.prompts))
    return lambda begin: generated_samples(pipeline, prompts, settings.samples, settings.seed, begin)


def expected_samples(settings: DistillSettings) -> int:
    """How many pictures there will be, as far as that is known before they are read."""
    if settings.method == TRAJECTORY or settings.data in EMBEDDED or settings.data == TEACHER:
        return settings.samples
    return min(settings.samples, count_images(Path(settings.data)) or settings.samples)


def caption_sampler(
    settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
) -> Callable[[np.random.Generator], str]:
    """Draws captions of what is learnt from."""
    if settings.data in EMBEDDED:
        return random_training_caption
    if settings.data != TEACHER:
        texts = tuple(_folder_captions(Path(settings.data), on_skipped))
        if not texts:
            raise InvalidRequest(f"no picture with a caption in {settings.data}", allowed="one, or more")
    elif settings.prompts is None:
        raise _no_data()
    else:
        texts = read_prompts(Path(settings.prompts))
    return lambda rng: texts[int(rng.integers(len(texts)))]


def _folder_captions(folder: Path, on_skipped: Callable[[SkippedImage], None]) -> Iterator[str]:
    for one in read_image_folder(folder):
        if isinstance(one, CaptionedImage):
            yield one.caption
        else:
            on_skipped(one)


def _data_description(settings: DistillSettings) -> Any:
    """What the data are, so that others are not taken for them."""
    if settings.data in EMBEDDED:
        return settings.data
    if settings.data == TEACHER:
        return None if settings.prompts is None else read_prompts(Path(settings.prompts))
    folder = Path(settings.data).resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(folder), *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)]


def _no_data() -> InvalidRequest:
    return InvalidRequest("no data and no prompts", allowed="--data FOLDER, --data shapes, or --prompts FILE")
