"""Make clean latents with captions from one of three sources: rendered scenes, a folder of pictures, or the teacher."""

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
    """Clean scaled latents of one picture, float32 [C, h, w], and one or more captions of this picture."""

    latents: Array
    captions: tuple[str, ...]


def shapes_samples(
    pipeline: Pipeline, count: int, seed: int, start: int = 0, captions: int = 2
) -> Iterator[LatentSample]:
    """Yield encoded pictures of random scenes (geometric figures), with captions that evaluation never uses.

    Args:
        pipeline: pipeline whose autoencoder encodes the pictures.
        count, start: number of scenes, and how many of them to skip, because an earlier run has already encoded them.
        seed: decides scenes and captions.
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
    """Yield the encoded pictures of a folder, first cropped and resized to the pipeline's default size.

    Args:
        pipeline: pipeline whose autoencoder encodes the pictures.
        path: folder of captioned pictures, in one of the forms that `read_image_folder` accepts.
        count: maximum number of pictures, including those that `start` skips.
        on_skipped: receives each picture that cannot be used, and the reason.
        start: number of usable pictures to skip, because an earlier run has already encoded them.

    Raises:
        InvalidRequest: the folder does not exist or has no pictures, or a caption file is not valid.
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
    """Yield clean latents that the teacher generates from prompts with its default settings.

    Args:
        pipeline: the teacher.
        prompts: prompts, used in turn; sample n has prompt n modulo their number.
        count: number of samples, including the skipped ones.
        seed: seed of the first sample; sample n has the seed `seed` + n.
        start: number of samples to skip, because an earlier run has already generated them.
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
    """Crop the largest centred part that has the aspect ratio width / height, and resize this part.

    Returns:
        uint8 [height, width, 3].

    >>> resize_and_crop(np.zeros((10, 40, 3), np.uint8), 8, 8).shape
    (8, 8, 3)
    """
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS))
