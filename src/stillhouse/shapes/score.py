"""Measure how well a pipeline follows captions that training never used.

The oracle (`shapes.oracle`) recognises the figures in the generated pictures and scores them.
"""

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
"""Seed from which the captions for evaluation are drawn; training uses other seeds."""
_BATCH = 8
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion, 0 to 1, with the ends of its 95 % confidence interval (Wilson 1927)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CaptionEvaluation:
    """The oracle's scores of pictures that a pipeline generated from captions.

    The oracle recognises figures in pictures and scores a picture against its caption.

    Args:
        captions: number of captions, with one picture each.
        steps, guidance, sampler: settings with which the pictures were generated.
        seconds: seconds for each picture, generated in batches of 8.
        scores: share of the pictures with the full score 1, by name of the score.
        ceiling: upper bound of `scores` for any denoiser, by name of the score. It is measured on ideal pictures that
            the pipeline's autoencoder encoded and decoded.
        rerender: mean PSNR in dB between a picture and an ideal rendering of the recognised scene.
    """

    captions: int
    steps: int
    guidance: float
    sampler: str
    seconds: float
    scores: dict[str, Share]
    ceiling: dict[str, Share]
    rerender: float


def evaluate_captions(
    pipeline: Pipeline,
    request: ImageRequest,
    captions: int = 1000,
    progress: Callable[[int], None] = lambda done: None,
) -> CaptionEvaluation:
    """Generate a picture for each of several captions that training never used, and score it with the oracle.

    Args:
        pipeline: a pipeline that was trained on Shapes (pictures of geometric figures, 64x64 pixels).
        request: steps, guidance and sampler; prompt and seed are replaced for each caption.
        captions: number of captions, taken in a fixed order.
        progress: receives the number of pictures generated so far.

    Raises:
        InvalidRequest: the pipeline refuses the request, or does not generate pictures of 64x64 pixels.
    """
    scenes = held_out_captions(captions)
    requests = [replace(request, prompt=str(caption), seed=seed) for seed, (_, caption) in enumerate(scenes)]
    resolved = pipeline.resolve(requests[0]).request
    if (resolved.width, resolved.height) != (CANVAS, CANVAS):
        problem = (
            f"{pipeline.manifest.name} generates {resolved.width}x{resolved.height} pixels, which cannot be scored"
        )
        raise InvalidRequest(problem, allowed=f"models of Shapes, which generate {CANVAS}x{CANVAS} pixels")
    started = perf_counter()
    pictures: list[Picture] = []
    for start in range(0, captions, _BATCH):
        pictures += generate_batch(pipeline, requests[start : start + _BATCH])
        progress(len(pictures))
    seconds = (perf_counter() - started) / captions
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
        float(np.mean([score.rerender for score in scores])),
    )


def held_out_captions(captions: int) -> list[tuple[Scene, Description]]:
    """Return pairs of a scene and a caption that describes the scene; training never uses these captions.

    Args:
        captions: number of pairs; a smaller number gives the first pairs of a larger number.
    """
    rng = np.random.default_rng(_HELD_OUT_SEED)
    return [sample_held_out(rng) for _ in range(captions)]


def generate_batch(pipeline: Pipeline, requests: Sequence[ImageRequest]) -> list[Picture]:
    """Generate a picture for each request in one batch, and return the pictures in the order of the requests.

    A picture is uint8 [height, width, 3].
    """
    trajectories = [pipeline.start(request) for request in requests]
    while pending := [trajectory for trajectory in trajectories if not trajectory.is_done]:
        pipeline.advance(pending)
    return [pipeline.finish(trajectory).image for trajectory in trajectories]


def score_shares(scores: Sequence[CaptionScore]) -> dict[str, Share]:
    """Return the share of pictures with the full score 1, with its 95 % interval, by name of the score."""
    return {
        name: wilson_interval(sum(float(getattr(score, name)) == 1.0 for score in scores), len(scores))
        for name in SCORES
    }


def wilson_interval(hits: int, tries: int) -> Share:
    """Return the proportion `hits / tries` with its 95 % confidence interval (Wilson 1927, "Probable inference").

    >>> share = wilson_interval(90, 100)
    >>> round(share.low, 3), round(share.high, 3)
    (0.826, 0.945)
    """
    share = hits / tries
    shrink = 1 + _Z95**2 / tries
    centre = (share + _Z95**2 / (2 * tries)) / shrink
    half_width = _Z95 / shrink * math.sqrt(share * (1 - share) / tries + _Z95**2 / (4 * tries**2))
    return Share(share, centre - half_width, centre + half_width)


def _score_all(pictures: Sequence[Picture], scenes: Sequence[tuple[Scene, Description]]) -> list[CaptionScore]:
    return [score_picture(picture, caption) for picture, (_, caption) in zip(pictures, scenes, strict=True)]
