"""Requests for calibration and comparison: held-out captions for models with an oracle, else general prompts."""

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
HEAVY_BYTES = 256 << 20
"""Size in bytes of the denoiser's weights above which a step takes seconds on a few CPU cores."""
_SHORTENED_STEPS = 4
_CAPTION_SEED = 2000
"""Seed of the captions; scoring and training use other seeds."""
_CALIBRATION_COUNT, _COMPARISON_COUNT = 3, 4


def has_oracle(manifest: Manifest) -> bool:
    """Return whether a program scores this pipeline's pictures, as it does for embedded models and their students."""
    is_student = manifest.distilled is not None and manifest.distilled.teacher[0] in EMBEDDED
    return is_student or "judge" in manifest.evidence


def held_out_captions(count: int, seed: int = _CAPTION_SEED) -> list[tuple[Description, ImageRequest]]:
    """Return `count` Shapes captions outside the training set, each with the description that scores its picture."""
    rng = np.random.default_rng(seed)
    descriptions = [sample_held_out(rng)[1] for _ in range(count)]
    return [
        (description, ImageRequest(str(description), seed=number)) for number, description in enumerate(descriptions)
    ]


def calibration_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the requests during which components are recorded."""
    return shorten_requests(manifest, _resolve_requests(manifest, user_requests, _CALIBRATION_COUNT))


def comparison_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the requests whose pictures are compared."""
    return _resolve_requests(manifest, user_requests, _COMPARISON_COUNT)


def shorten_requests(manifest: Manifest, requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Return the requests; for a heavy denoiser only the first one with few steps, which is enough to compare
    components.
    """
    if not is_heavy(manifest):
        return list(requests)
    if manifest.distilled and manifest.distilled.timesteps:  # the student's timesteps are few and fixed
        return list(requests[:1])
    return [replace(request, steps=request.steps or _SHORTENED_STEPS) for request in requests[:1]]


def is_heavy(manifest: Manifest) -> bool:
    """Return whether one step of the denoiser takes seconds on a few CPU cores."""
    denoiser = manifest.components.get("denoiser")
    return bool(denoiser and manifest.files[denoiser.weights].bytes > HEAVY_BYTES)


def _resolve_requests(manifest: Manifest, user_requests: Sequence[ImageRequest], count: int) -> list[ImageRequest]:
    if user_requests:
        return list(user_requests)
    if has_oracle(manifest):
        return [request for _, request in held_out_captions(count)]
    return [ImageRequest(prompt, seed=number) for number, prompt in enumerate(PROMPTS[:count])]
