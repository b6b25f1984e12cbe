"""Encoder of pictures into the feature vectors of Frechet distance, precision and recall.

The network was trained on rendered scenes of geometric figures only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.core import Picture
from stillhouse.measure.set_metrics import Features
from stillhouse.pipelines.manifest import file_sha256
from stillhouse.shapes.scene import CANVAS

FOLDER = Path(__file__).parent / "encoder"
GRAPH, WEIGHTS = FOLDER / "encoder.onnx", FOLDER / "encoder.safetensors"
_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class FeatureEncoder:
    """Function that encodes pictures into feature vectors.

    Args:
        runner: the opened network, which maps `pictures`, float32 [B, 3, 64, 64] from -1 to 1, to `features`, float32
            [B, features].
        checksum: SHA-256 of the weights; metrics that were measured with other weights are not comparable.
    """

    runner: Runner
    checksum: str

    def __call__(self, pictures: Sequence[Picture]) -> Features:
        """Return the features of pictures, float64 [pictures, features].

        The pictures are uint8 [height, width, 3] each. A picture of another size than 64x64 is first scaled to this
        size.
        """
        batches = [pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
        features = [self.runner({"pictures": _to_signal(batch)})["features"] for batch in batches]
        return np.concatenate(features).astype(np.float64)


def open_feature_encoder(threads: int | None = None) -> FeatureEncoder:
    """Open the feature encoder that ships with the package.

    Args:
        threads: number of CPU threads; None: the inference backend decides.
    """
    runner = open_runner(GRAPH, "onnxruntime", RunnerOptions(threads=threads))
    return FeatureEncoder(runner, file_sha256(WEIGHTS))


def _to_signal(pictures: Sequence[Picture]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    scaled = np.stack([_resize(picture) for picture in pictures])
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)


def _resize(picture: Picture) -> Picture:
    if picture.shape[:2] == (CANVAS, CANVAS):
        return picture
    return np.asarray(Image.fromarray(picture).resize((CANVAS, CANVAS), Image.Resampling.BOX))
