"""Image requests for recording calibration data and for comparing pictures.

An embedded model (one that this package contains) gets captions from outside its training set, and a program (oracle)
can score its pictures. Other models get general prompts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stillhouse.core import ImageRequest
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import Manifest
from stillhouse.shapes.caption import Description, sample_held_out

PROMPTS = (
    "a lighthouse on a cliff at dusk, waves below",
    "portrait of an old fisherman, soft window light",
    "a red bicycle leaning on a yellow wall",
    "a bowl of oranges on a wooden table, still life",
)
CALIBRATION_PROMPTS = (
    "a market street in the rain, people with umbrellas",
    "a mountain lake in the morning, mist above the water",
    "a white cat sleeping on a stack of books",
)
"""Prompts of the pictures whose inputs calibrate quantization. Pictures are compared with other prompts."""
HEAVY_BYTES = 256 << 20
"""Size in bytes of a denoiser's weights above which a model is heavy: a step takes seconds on a few CPU cores."""
_SHORTENED_STEPS = 4
_CAPTION_SEED = 2000
"""Seed of random captions for the models that this package contains. Their training and scoring use other seeds."""
_CALIBRATION_SEED = 2001
CALIBRATION_COUNT, MIN_CALIBRATION_COUNT = 24, 3
"""Number of pictures during which calibration data are recorded, and the number where these take long. In our
measurements, int8 weights and activations of the embedded model's decoder, calibrated on 3 pictures, made 6.6 % fewer
pictures correct; on 24 pictures, none.
"""
_PROBE_COUNT, _COMPARISON_COUNT = 2, 4
_SEED_OFFSET = 1000
"""Distance between the seeds of a user's requests and of the pictures of these prompts for calibration."""
_SEED_STEP = 100_000
"""Distance between the seeds of pictures of one prompt for calibration."""


def has_oracle(manifest: Manifest) -> bool:
    """Return whether a program (oracle) can score a pipeline's pictures.

    A program can score the models that this package contains (embedded models), and students distilled from them.
    """
    is_student = manifest.distilled is not None and manifest.distilled.teacher[0] in EMBEDDED
    return is_student or "judge" in manifest.evidence


def held_out_captions(count: int, seed: int = _CAPTION_SEED) -> list[tuple[Description, ImageRequest]]:
    """Return random captions from outside the training set of the models that this package contains.

    Args:
        count: number of captions.
        seed: seed of the captions; equal seeds give equal captions, and a longer list begins with the captions of a
            shorter list.

    Returns:
        for each caption, the description of the objects, by which a picture is scored, and the image request.
    """
    rng = np.random.default_rng(seed)
    descriptions = [sample_held_out(rng)[1] for _ in range(count)]
    return [
        (description, ImageRequest(str(description), seed=number)) for number, description in enumerate(descriptions)
    ]


def calibration_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the image requests during which the inputs of networks are recorded as calibration data.

    Args:
        manifest: manifest of the pipeline; for a heavy model (slow on a CPU, see `is_heavy`) there is only one request,
            of few steps; else there are CALIBRATION_COUNT.
        user_requests: the user's requests, used in place of default ones, with other seeds; empty: default requests.
    """
    if user_requests:
        requests = _repeat([replace(request, seed=(request.seed or 0) + _SEED_OFFSET) for request in user_requests])
    elif has_oracle(manifest):
        requests = [request for _, request in held_out_captions(CALIBRATION_COUNT, _CALIBRATION_SEED)]
    else:
        requests = _repeat([ImageRequest(prompt, seed=number) for number, prompt in enumerate(CALIBRATION_PROMPTS)])
    return shorten_requests(manifest, requests)


def _repeat(requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return CALIBRATION_COUNT requests: the given ones in turn, each time with another seed."""
    count = max(CALIBRATION_COUNT, len(requests))
    rounds = [divmod(number, len(requests)) for number in range(count)]
    return [replace(requests[index], seed=(requests[index].seed or 0) + turn * _SEED_STEP) for turn, index in rounds]


def probe_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the image requests during which probes are recorded, inputs on which candidates are compared and timed.

    None of the pictures is one of `calibration_requests`.

    Args:
        manifest: manifest of the pipeline; for a heavy model there is only one request, of few steps.
        user_requests: the user's requests, of which the first ones are used; empty: two default requests.
    """
    return shorten_requests(manifest, comparison_requests(manifest, user_requests)[:_PROBE_COUNT])


def comparison_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the image requests whose pictures are compared between candidates and baseline.

    Args:
        manifest: manifest of the pipeline.
        user_requests: the user's requests, used in place of default ones; empty: four default requests.
    """
    if user_requests:
        return list(user_requests)
    if has_oracle(manifest):
        return [request for _, request in held_out_captions(_COMPARISON_COUNT)]
    return [ImageRequest(prompt, seed=number) for number, prompt in enumerate(PROMPTS[:_COMPARISON_COUNT])]


def shorten_requests(manifest: Manifest, requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the requests unchanged, or for a heavy model (`is_heavy`: slow on a CPU) only the first, with few steps.

    The number of steps is kept where the request gives one. One picture of few steps is enough to compare networks.
    """
    if not is_heavy(manifest):
        return list(requests)
    if manifest.distilled and manifest.distilled.timesteps:  # a distilled model always runs all these timesteps
        return list(requests[:1])
    return [replace(request, steps=request.steps or _SHORTENED_STEPS) for request in requests[:1]]


def is_heavy(manifest: Manifest) -> bool:
    """Return whether the denoiser is so large (HEAVY_BYTES) that one step takes seconds on a few CPU cores."""
    denoiser = manifest.components.get("denoiser")
    return bool(denoiser and manifest.files[denoiser.weights].bytes > HEAVY_BYTES)
