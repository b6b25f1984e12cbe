"""Render random training pictures, convert them to and from tensors, and score generated pictures."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.shapes.caption import Description
from stillhouse.shapes.oracle import ATTRIBUTES, CaptionScore, score_picture
from stillhouse.shapes.scene import CANVAS, Scene, render_scene, sample_scene

CROP = CANVAS // 2


def seeded_rng(*numbers: int) -> np.random.Generator:
    """Return a random generator that is seeded by a sequence of integers, such as a seed and an update's number."""
    return np.random.default_rng(numbers)


def outline_crops(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Return crops of 32x32 pixels around random outlines of figures in random scenes.

    Returns:
        float32 [count, 3, 32, 32] from -1 to 1.
    """
    return to_tensor([_outline_crop(sample_scene(rng), rng) for _ in range(count)])


def full_pictures(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Return the full pictures of random scenes, float32 [count, 3, 64, 64] from -1 to 1."""
    return to_tensor([render_scene(sample_scene(rng)) for _ in range(count)])


def to_tensor(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Convert pictures, uint8 [height, width, 3] each, to float32 [count, 3, height, width] from -1 to 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(samples: torch.Tensor) -> NDArray[np.uint8]:
    """Convert samples [count, 3, height, width] from -1 to 1 to pictures, uint8 [count, height, width, 3].

    Values outside of this range are clipped.
    """
    scaled = (samples.float().clamp(-1, 1) + 1) * 127.5 + 0.5
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def mean_scores(pictures: NDArray[np.uint8], captions: Sequence[Description]) -> dict[str, float]:
    """Return the oracle's mean scores by name; the oracle compares the figures in each picture with the caption.

    Args:
        pictures: uint8 [pictures, 64, 64, 3].
        captions: one caption for each picture.
    """
    scores = [score_picture(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    names = ("all_correct", "strict", *ATTRIBUTES, "rerender")
    return {name: float(np.mean([_value(score, name) for score in scores])) for name in names}


def _value(score: CaptionScore, name: str) -> float:
    return float(getattr(score, name))


def _outline_crop(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    figure = scene.figures[int(rng.integers(len(scene.figures)))]
    angle = rng.uniform(0, 2 * math.pi)
    corner = [
        int(np.clip(centre + side * figure.radius - CROP / 2 + rng.uniform(-8, 8), 0, CANVAS - CROP))
        for centre, side in ((figure.x, math.cos(angle)), (figure.y, math.sin(angle)))
    ]
    return render_scene(scene)[corner[1] : corner[1] + CROP, corner[0] : corner[0] + CROP]
