"""Items: clean latents with what is said about them, from the embedded world, from a folder, or from the teacher."""

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
    """Clean latents, scaled, float32 [C, h, w], and captions that are all true of them."""

    latents: Array
    captions: tuple[str, ...]


def shapes_samples(
    pipeline: Pipeline, count: int, seed: int, start: int = 0, captions: int = 2
) -> Iterator[LatentSample]:
    """Scenes of the embedded world, with captions that training may see.

    Args:
        pipeline: encodes.
        count: of the scenes.
        seed: of the scenes and of their captions.
        begin: so many are left out, as if they had been encoded before.
        captions: of each scene.
    """
    rng = np.random.default_rng((seed, 1))
    made = 0
    while made < count:
        scene = sample_scene(rng)
        said = [caption for _ in range(captions) if (caption := sample_training_caption(scene, rng))]
        if said:
            made += 1
            if made > start:
                yield LatentSample(pipeline.encode_image(render_scene(scene)), tuple(map(str, said)))


def folder_samples(
    pipeline: Pipeline, path: Path, count: int, on_skipped: Callable[[SkippedImage], None], start: int = 0
) -> Iterator[LatentSample]:
    """Pictures of a folder, cut in their middle to the pipeline's own size.

    Args:
        pipeline: encodes, and says what size.
        path: of the folder; see `folder.read_folder`.
        count: at most so many.
        skipped: hears of each picture that cannot be learnt from.
        begin: so many are left out, as if they had been encoded before.

    Raises:
        InvalidRequest: no folder of pictures.
    """
    defaults = pipeline.manifest.defaults
    read = 0
    for one in read_image_folder(path):
        if read == count:
            return
        if isinstance(one, CaptionedImage):
            read += 1
            if read <= start:
                continue
            fitted = resize_and_crop(one.picture, defaults.width, defaults.height)
            yield LatentSample(pipeline.encode_image(fitted), (one.caption,))
        else:
            on_skipped(one)


def generated_samples(
    pipeline: Pipeline, prompts: Sequence[str], count: int, seed: int, start: int = 0
) -> Iterator[LatentSample]:
    """What the teacher itself draws, for whoever has no pictures.

    Args:
        pipeline: draws as its defaults say.
        prompts: taken in turn.
        count: of the pictures.
        seed: of the first; each has the next one.
        begin: so many are left out, as if they had been drawn before.
    """
    for first in range(start, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        requests = [ImageRequest(prompts[number % len(prompts)], seed=seed + number) for number in numbers]
        drafts: list[ImageTrajectory] = [pipeline.start(request) for request in requests]
        while pending := [draft for draft in drafts if not draft.is_done]:
            pipeline.advance(pending)
        yield from (LatentSample(pipeline.arrays.to_numpy(draft.latents), (draft.request.prompt,)) for draft in drafts)


def resize_and_crop(picture: Picture, width: int, height: int) -> Picture:
    """The largest middle part of that shape, in that size; uint8 [height, width, 3].

    >>> fit_to(np.zeros((10, 40, 3), np.uint8), 8, 8).shape
    (8, 8, 3)
    """
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (width, height), Image.Resampling.LANCZOS))
