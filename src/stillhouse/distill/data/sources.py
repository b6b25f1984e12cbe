"""Select the training data that the settings name: captioned pictures, or captions alone for teacher trajectories."""

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
from stillhouse.distill.training.trajectory_chain import TRAJECTORIES
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import Manifest, files_checksum
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import random_training_caption


def dataset_key(manifest: Manifest, settings: DistillSettings) -> str:
    """Return a hash of the teacher and the training data, which is part of the name of the data's cache folder.

    `manifest` is the teacher's; `settings` name the data.
    """
    parts = [files_checksum(manifest), _data_description(settings), settings.samples, settings.seed]
    # The settings above determine all kinds of data. The latents of trajectories were also sampled with the guidance
    # range, the first two step counts and the task, so the hash covers these settings.
    if settings.method == TRAJECTORIES:
        parts += [*settings.guidance, *settings.step_counts[:2], settings.task]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def open_samples(
    pipeline: Pipeline, settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
) -> Callable[[int], Iterable[LatentSample]]:
    """Return a function that maps a number n to the training samples (clean latents with captions) from sample n on.

    InvalidRequest is raised if the settings name neither data nor prompts, or the file of prompts cannot be used.

    Args:
        pipeline: the teacher, which encodes the pictures or generates them.
        settings: source, number and seed of the samples.
        on_skipped: receives each picture of a folder that cannot be used, and the reason.
    """
    if settings.data in EMBEDDED:
        return lambda start: shapes_samples(pipeline, settings.samples, settings.seed, start)
    if settings.data != TEACHER:
        return lambda start: folder_samples(pipeline, Path(settings.data), settings.samples, on_skipped, start)
    if settings.prompts is None:
        raise _no_data()
    prompts = read_prompts(Path(settings.prompts))
    return lambda start: generated_samples(pipeline, prompts, settings.samples, settings.seed, start)


def expected_samples(settings: DistillSettings) -> int:
    """Return the total number of training samples that progress reports show.

    For a folder this is the number of its image files, at most `settings.samples`. For a folder with tar files it is
    `settings.samples`, because counting would have to read the tar files.
    """
    if settings.method == TRAJECTORIES or settings.data in EMBEDDED or settings.data == TEACHER:
        return settings.samples
    return min(settings.samples, count_images(Path(settings.data)) or settings.samples)


def caption_sampler(
    settings: DistillSettings, on_skipped: Callable[[SkippedImage], None]
) -> Callable[[np.random.Generator], str]:
    """Return a function that draws a random caption of the training data with a random generator.

    Args:
        settings: source of the captions: rendered scenes, a folder of captioned pictures, or a file of prompts.
        on_skipped: receives each picture of a folder that cannot be used, and the reason.

    Raises:
        InvalidRequest: the settings name neither data nor prompts, or their source has no captions.
    """
    if settings.data in EMBEDDED:
        return random_training_caption
    if settings.data != TEACHER:
        texts = tuple(_folder_captions(Path(settings.data), on_skipped))
        if not texts:
            raise InvalidRequest(
                f"{settings.data} has no picture with a caption",
                allowed="a folder with one captioned picture or more, such as NAME.png with NAME.txt",
            )
    elif settings.prompts is None:
        raise _no_data()
    else:
        texts = read_prompts(Path(settings.prompts))
    return lambda rng: texts[int(rng.integers(len(texts)))]


def _folder_captions(folder: Path, on_skipped: Callable[[SkippedImage], None]) -> Iterator[str]:
    for image in read_image_folder(folder):
        if isinstance(image, CaptionedImage):
            yield image.caption
        else:
            on_skipped(image)


def _data_description(settings: DistillSettings) -> Any:
    """Return a JSON value that identifies the training data, for `dataset_key`.

    For data that the package renders, the value is their name, such as "shapes". For data of the teacher, the value
    holds the prompts. For a folder, the value holds its path, and name, size and time of change of each file.
    """
    if settings.data in EMBEDDED:
        return settings.data
    if settings.data == TEACHER:
        return None if settings.prompts is None else read_prompts(Path(settings.prompts))
    folder = Path(settings.data).resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(folder), *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)]


def _no_data() -> InvalidRequest:
    problem = "neither data nor prompts are given, and the teacher cannot generate pictures without prompts"
    return InvalidRequest(problem, allowed="--data FOLDER, --data shapes, or --prompts FILE")
