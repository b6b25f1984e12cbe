"""How well a pipeline draws what captions say: the oracle on captions that training never saw."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from stillhouse.core import ImageRequest, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import Description, sample_held_out
from stillhouse.shapes.oracle import ATTRIBUTES, CaptionScore, score_picture
from stillhouse.shapes.scene import CANVAS, Scene, render_scene

SCORES = ("all_correct", "strict", "clean", *ATTRIBUTES)
_HELD_OUT_SEED = 1000
"""The random stream that held-out captions come from; training draws from others."""
_BATCH = 8
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Share:
    """A share of pictures with its 95 % interval (Wilson, 1927)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CaptionEvaluation:
    """What the oracle says of a pipeline.

    `scores` is about the pictures that the pipeline drew; `ceiling` about true pictures passed through its
    autoencoder, which no denoiser can beat. `seconds` is per picture, `_TOGETHER` pictures in a batch.
    """

    captions: int
    steps: int
    guidance: float
    sampler: str
    seconds: float
    scores: dict[str, Share]
    ceiling: dict[str, Share]
    rerender: float
    """Mean PSNR in dB between a picture and the clean drawing of what was read in it."""


def evaluate_captions(
    pipeline: Pipeline,
    request: ImageRequest,
    captions: int = 1000,
    progress: Callable[[int], None] = lambda done: None,
) -> CaptionEvaluation:
    """Draw the first `captions` held-out captions and read them back.

    Args:
        pipeline: any pipeline that knows the captions of Shapes.
        asked: steps, guidance and sampler to judge at; its prompt and seed are replaced by each caption's.
        captions: how many; the first thousand are the same for everybody.
        progress: called with the number of pictures that are done.

    Raises:
        InvalidRequest: the pipeline cannot meet `asked`, or does not draw 64x64 pixels.
    """
    scenes = held_out_captions(captions)
    requests = [replace(request, prompt=str(caption), seed=i) for i, (_, caption) in enumerate(scenes)]
    resolved = pipeline.resolve(requests[0]).request
    if (resolved.width, resolved.height) != (CANVAS, CANVAS):
        given = f"{pipeline.manifest.name} draws {resolved.width}x{resolved.height}"
        raise InvalidRequest(given, allowed=f"models of Shapes, which draw {CANVAS}x{CANVAS}")
    began = perf_counter()
    pictures: list[Picture] = []
    for i in range(0, captions, _BATCH):
        pictures += generate_batch(pipeline, requests[i : i + _BATCH])
        progress(len(pictures))
    seconds = (perf_counter() - began) / captions
    scores = _score_all(pictures, scenes)
    ceiling = _score_all([pipeline.decode(pipeline.encode_image(render_scene(scene))) for scene, _ in scenes], scenes)
    assert resolved.steps and resolved.guidance is not None and resolved.sampler
    return CaptionEvaluation(
        captions,
        resolved.steps,
        resolved.guidance,
        resolved.sampler,
        seconds,
        score_shares(scores),
        score_shares(ceiling),
        float(np.mean([one.rerender for one in scores])),
    )


def held_out_captions(captions: int) -> list[tuple[Scene, Description]]:
    """The first held-out captions, each with a scene that it is true of."""
    rng = np.random.default_rng(_HELD_OUT_SEED)
    return [sample_held_out(rng) for _ in range(captions)]


def generate_batch(pipeline: Pipeline, requests: Sequence[ImageRequest]) -> list[Picture]:
    """Several pictures in one batch, in the order of their requests."""
    trajectories = [pipeline.start(request) for request in requests]
    while pending := [trajectory for trajectory in trajectories if not trajectory.is_done]:
        pipeline.advance(pending)
    return [pipeline.finish(trajectory).image for trajectory in trajectories]


def score_shares(scores: Sequence[CaptionScore]) -> dict[str, Share]:
    """For every score the share of pictures that have it in full."""
    return {
        name: wilson_interval(sum(float(getattr(one, name)) == 1.0 for one in scores), len(scores)) for name in SCORES
    }


def wilson_interval(hits: int, tries: int) -> Share:
    """The 95 % score interval of a proportion (Wilson 1927, "Probable inference", equation for the limits of p).

    >>> share = wilson(90, 100)
    >>> round(share.low, 3), round(share.high, 3)
    (0.826, 0.945)
    """
    share = hits / tries
    shrink = 1 + _Z95**2 / tries
    centre = (share + _Z95**2 / (2 * tries)) / shrink
    reach = _Z95 / shrink * math.sqrt(share * (1 - share) / tries + _Z95**2 / (4 * tries**2))
    return Share(share, centre - reach, centre + reach)


def _score_all(pictures: Sequence[Picture], scenes: Sequence[tuple[Scene, Description]]) -> list[CaptionScore]:
    return [score_picture(picture, caption) for picture, (_, caption) in zip(pictures, scenes, strict=True)]
