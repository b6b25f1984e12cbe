"""What is drawn to probe and to compare: the model's own captions where an oracle reads them, else general prompts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stillhouse.core import ImageRequest
from stillhouse.models.manifest import Manifest, read_manifest
from stillhouse.models.shapes.caption import Description, sample_held_out

PROMPTS = (
    "a lighthouse on a cliff at dusk, waves below",
    "portrait of an old fisherman, soft window light",
    "a red bicycle leaning on a yellow wall",
    "a bowl of oranges on a wooden table, still life",
)
HEAVY_BYTES = 256 << 20
"""Bytes of the U-Net's weights from which a whole picture takes minutes on a few cores."""
_HEAVY_STEPS = 4
_STREAM = 2000
"""The random stream that captions are drawn from; judging and training draw from others."""
_PROBED, _COMPARED = 3, 4


def has_oracle(directory: Path) -> bool:
    """Whether a program can read this pipeline's pictures: the embedded model, and what was made of it."""
    return _has_oracle(read_manifest(directory))


def captions(count: int, stream: int = _STREAM) -> list[tuple[Description, ImageRequest]]:
    """Captions of Shapes that training never saw, each with the description that its picture is read against."""
    rng = np.random.default_rng(stream)
    described = [sample_held_out(rng)[1] for _ in range(count)]
    return [(one, ImageRequest(str(one), seed=number)) for number, one in enumerate(described)]


def probed(directory: Path, given: Sequence[ImageRequest]) -> list[ImageRequest]:
    """The requests at which networks are recorded."""
    return _requests(directory, given, _PROBED)


def compared(directory: Path, given: Sequence[ImageRequest]) -> list[ImageRequest]:
    """The requests whose pictures are compared."""
    return _requests(directory, given, _COMPARED)


def is_heavy(manifest: Manifest) -> bool:
    """Whether a picture takes minutes, so that few and short ones must do."""
    unet = manifest.components.get("unet")
    return bool(unet and manifest.files[unet.weights].bytes > HEAVY_BYTES)


def _requests(directory: Path, given: Sequence[ImageRequest], count: int) -> list[ImageRequest]:
    manifest = read_manifest(directory)
    if given:
        requests = list(given)
    elif _has_oracle(manifest):
        requests = [request for _, request in captions(count)]
    else:
        requests = [ImageRequest(prompt, seed=number) for number, prompt in enumerate(PROMPTS[:count])]
    if is_heavy(manifest):
        requests = [replace(request, steps=request.steps or _HEAVY_STEPS) for request in requests[:1]]
    return requests


def _has_oracle(manifest: Manifest) -> bool:
    return "judge" in manifest.evidence
