"""What is drawn to probe and to compare: the model's own captions where an oracle reads them, else general prompts."""

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
"""Bytes of the U-Net's weights from which a step takes seconds on a few cores."""
_SHORTENED_STEPS = 4
_CAPTION_SEED = 2000
"""The random stream that captions are drawn from; judging and training draw from others."""
_CALIBRATION_COUNT, _COMPARISON_COUNT = 3, 4


def has_oracle(manifest: Manifest) -> bool:
    """Whether a program can read this pipeline's pictures: the embedded models, and what was made of them."""
    learnt = manifest.distilled is not None and manifest.distilled.teacher[0] in EMBEDDED
    return learnt or "judge" in manifest.evidence


def held_out_captions(count: int, seed: int = _CAPTION_SEED) -> list[tuple[Description, ImageRequest]]:
    """Captions of Shapes that training never saw, each with the description that its picture is read against."""
    rng = np.random.default_rng(seed)
    described = [sample_held_out(rng)[1] for _ in range(count)]
    return [(one, ImageRequest(str(one), seed=number)) for number, one in enumerate(described)]


def calibration_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """The requests at which networks are recorded."""
    return shorten_requests(manifest, _resolve_requests(manifest, user_requests, _CALIBRATION_COUNT))


def comparison_requests(manifest: Manifest, user_requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """The requests whose pictures are compared."""
    return _resolve_requests(manifest, user_requests, _COMPARISON_COUNT)


def shorten_requests(manifest: Manifest, requests: Sequence[ImageRequest]) -> list[ImageRequest]:
    """The requests; of a network that takes seconds a step the first one only, in few steps: it tells two networks
    apart as well as a whole walk does."""
    if not is_heavy(manifest):
        return list(requests)
    if manifest.distilled and manifest.distilled.timesteps:  # it takes few, and can take no others
        return list(requests[:1])
    return [replace(request, steps=request.steps or _SHORTENED_STEPS) for request in requests[:1]]


def is_heavy(manifest: Manifest) -> bool:
    """Whether one step of the U-Net takes seconds on a few cores."""
    unet = manifest.components.get("unet")
    return bool(unet and manifest.files[unet.weights].bytes > HEAVY_BYTES)


def _resolve_requests(manifest: Manifest, user_requests: Sequence[ImageRequest], count: int) -> list[ImageRequest]:
    if user_requests:
        return list(user_requests)
    if has_oracle(manifest):
        return [request for _, request in held_out_captions(count)]
    return [ImageRequest(prompt, seed=number) for number, prompt in enumerate(PROMPTS[:count])]
