"""Samples of clean latents with captions: from scenes of Shapes, from a folder of pictures, or from the teacher."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stillhouse.core import Array, ImageRequest, Picture
from stillhouse.distill.data.image_folder import CaptionedImage, SkippedImage, read_image_folder
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.shapes.caption import sample_training_caption
from stillhouse.shapes.scene import render_scene, sample_scene

_BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class LatentSample:
    """Clean scaled latents, float32 [C, h, w], and their captions, one or more."""

    latents: Array
    captions: tuple[str, ...]


def shapes_samples(
    pipeline: Pipeline, count: int, seed: int, start: int = 0, captions: int = 2
) -> Iterator[LatentSample]:
    """Yield random scenes of Shapes with captions that are not held out.

    Args:
        pipeline: encodes the pictures.
        count: number of scenes.
        seed: decides scenes and captions.
        start: number of scenes to skip, because an earlier run has encoded them.
        captions: maximum number of captions of each scene.
    """
    rng = np.random.default_rng((seed, 1))
    number = 0
    while number < count:
        scene = sample_scene(rng)
        texts = [str(caption) for _ in range(captions) if (caption := sample_training_caption(scene, rng))]
        if texts:
            number += 1
            if number > start:
                yield LatentSample(pipeline.encode_image(render_scene(scene)), tuple(texts))


def folder_samples(
    pipeline: Pipeline, path: Path, count: int, on_skipped: Callable[[SkippedImage], None], start: int = 0
) -> Iterator[LatentSample]:
    """Yield the pictures of a folder, resized and cropped to the pipeline's default size.

    Args:
        pipeline: encodes the pictures.
        path: the folder; see `read_image_folder`.
        count: maximum number of pictures.
        on_skipped: receives each picture that cannot be used.
        start: number of pictures to skip, because an earlier run has encoded them.

    Raises:
        InvalidRequest: the folder does not exist or has no pictures.
    """
    defaults = pipeline.manifest.defaults
    number = 0
    for image in read_image_folder(path):
        if number == count:
            return
        if isinstance(image, CaptionedImage):
            number += 1
            if number <= start:
                continue
            picture = resize_and_crop(image.picture, defaults.width, defaults.height)
            yield LatentSample(pipeline.encode_image(picture), (image.caption,))
        else:
            on_skipped(image)


def generated_samples(
    pipeline: Pipeline, prompts: Sequence[str], count: int, seed: int, start: int = 0
) -> Iterator[LatentSample]:
    """Yield latents that the teacher generates with its default settings.

    Args:
        pipeline: the teacher.
        prompts: prompts, used in turn.
        count: number of samples.
        seed: seed of the first sample; sample n has the seed `seed` + n.
        start: number of samples to skip, because an earlier run has generated them.
    """
    for first in range(start, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        requests = [ImageRequest(prompts[number % len(prompts)], seed=seed + number) for number in numbers]
        trajectories: list[ImageTrajectory] = [pipeline.start(request) for request in requests]
        while pending := [trajectory for trajectory in trajectories if not trajectory.is_done]:
            pipeline.advance(pending)
        for trajectory in trajectories:
            yield LatentSample(pipeline.arrays.to_numpy(trajectory.latents), (trajectory.request.prompt,))


def resize_and_crop(picture: Picture, width: int, height: int) -> Picture:
    """Crop the largest centred part with the aspect ratio width / height, and resize it to uint8 [height, width, 3].

    >>> resize_and_crop(np.zeros((10, 40, 3), np.uint8), 8, 8).shape
    (8, 8, 3)
    """
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS))
