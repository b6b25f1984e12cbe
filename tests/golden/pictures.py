"""A few pictures of each kind, and what is kept of them.

Besides the embedded model and its students one committed checkpoint is drawn, which is imported first: XL has inputs
that no other has (a pooled embedding, time ids, zeros for an empty negative prompt). Its graphs are not committed,
because importing it takes two seconds and is what has to stay the same, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stillhouse

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EXPECTED = Path(__file__).with_name("expected.json")
ADAPTER = CHECKPOINTS / "lora.safetensors"
IMPORTED = "xl"
PROMPT, NEGATIVE = "a small red circle left of a large blue square", "two green triangles"
Summary = dict[str, list[float]]


def picture() -> NDArray[np.uint8]:
    """Draw bands of colours with a bright square, uint8 [64, 64, 3], in whole numbers only."""
    y, x = np.mgrid[:64, :64]
    image = np.stack([(3 * x + 2 * y) % 256, 5 * y % 256, x * y // 8 % 256], axis=-1).astype(np.uint8)
    image[16:32, 16:32] = (250, 20, 20)
    return image


def mask() -> NDArray[np.uint8]:
    """Mark the right half to be repainted, uint8 [64, 64]."""
    return np.repeat(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None], 64, axis=0)


_GUIDED: Mapping[str, Any] = {"guidance": 7.5, "negative_prompt": NEGATIVE}
_CHANGED: Mapping[str, Any] = {"image": picture(), "strength": 0.6}
_REPAINTED: Mapping[str, Any] = {"image": picture(), "mask": mask()}
_USUAL: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"steps": 4, "guidance": 1.0, "sampler": "ddim", "eta": 0.5},
    "heun": {"steps": 3, "sampler": "heun", **_GUIDED, "guidance_interval": (0.2, 1.0)},
    "2m": {"steps": 5, "sampler": "dpmpp_2m", **_GUIDED, "guidance_rescale": 0.7},
    "img2img": {"steps": 6, "sampler": "unipc", **_GUIDED, **_CHANGED},
    "inpaint": {"steps": 6, "sampler": "euler_ancestral", **_GUIDED, **_REPAINTED, "strength": 0.8},
}
_STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "text": {"guidance": 5.0},
    "img2img": {"guidance": 3.0, **_CHANGED},
    "inpaint": {"guidance": 3.0, **_REPAINTED},
}
PICTURES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    (model, name): fields
    for model, cases in (("shapes", _USUAL), ("shapes-3", _STUDENTS), ("shapes-1", _STUDENTS), (IMPORTED, _USUAL))
    for name, fields in cases.items()
}
"""Fields of the request, by model and name."""


def opened(model: str | Path) -> stillhouse.Pipeline:
    """Open a model on onnxruntime in f32 with one thread."""
    return stillhouse.load(model, backend="onnxruntime", precision="f32", threads=1)


def generate(pipeline: stillhouse.Pipeline, fields: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Draw one picture: its clean latents [C, h, w] and its pixels, uint8 [height, width, 3]."""
    drawn = pipeline.start(stillhouse.ImageRequest(PROMPT, seed=7, **fields))
    while not drawn.is_done:
        pipeline.advance([drawn])
    return drawn.latents, pipeline.finish(drawn).image


def summary(latents: NDArray[Any], pixels: NDArray[np.uint8]) -> Summary:
    """Average both over a grid of 4 x 4 latents' parts and of 8 x 8 pixels' parts; with the latents' deviation."""
    parts = {"latents": pooled(latents.transpose(1, 2, 0), 4), "pixels": pooled(pixels, 8)}
    rounded = {name: [float(f"{value:.6g}") for value in part.ravel()] for name, part in parts.items()}
    return {"deviation": [float(f"{latents.std():.6g}")], **rounded}


def pooled(array: NDArray[Any], parts: int) -> NDArray[np.float64]:
    """Means over equal parts of [height, width, channels]: float64 [parts, parts, channels].

    >>> pooled(np.arange(16.0).reshape(4, 4, 1), 2).ravel().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    height, width, channels = array.shape
    blocks = array.astype(np.float64).reshape(parts, height // parts, parts, width // parts, channels)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return means
