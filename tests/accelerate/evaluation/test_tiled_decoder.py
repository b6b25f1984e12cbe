"""The tiled decoder equals the decoder where output pixels depend on near latents only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.accelerate.evaluation.tiled_decoder import TiledDecoder
from stillhouse.backends.runner import Runner
from stillhouse.core import TensorSpec


@dataclass(slots=True)
class Enlarging:
    """A decoder that enlarges each latent to 8 x 8 pixels and records the shapes of its calls."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    backend: str = "numpy"
    precision: str = "f32"
    layer_precisions: Mapping[str, int] = field(default_factory=dict)
    weight_types: Mapping[str, int] = field(default_factory=lambda: {"int8": 3})
    inputs: tuple[TensorSpec, ...] = (TensorSpec("latent_sample", "float32", (None, 4, None, None)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("sample", "float32", (None, 4, None, None)),)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (latents,) = feeds.values()
        self.shapes.append(latents.shape)
        return {"sample": latents.repeat(8, axis=2).repeat(8, axis=3)}


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (2, 4, 9, 20), (1, 4, 5, 5)])
def test_the_same_picture_comes_from_smaller_pieces(shape: tuple[int, ...]) -> None:
    whole, pieces = Enlarging(), Enlarging()
    runner: Runner = TiledDecoder(pieces, tile=64, downscale=8)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    actual, expected = (decoder({"latent_sample": latents})["sample"] for decoder in (runner, whole))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert {shape[2:] for shape in pieces.shapes} == {tuple(min(side, 8) for side in latents.shape[2:])}
    assert {shape[0] for shape in pieces.shapes} == {1}


def test_it_tells_what_the_decoder_tells() -> None:
    inner = Enlarging()
    runner = TiledDecoder(inner, tile=64, downscale=8)
    names = ("backend", "precision", "layer_precisions", "weight_types", "inputs", "outputs")
    assert all(getattr(runner, name) == getattr(inner, name) for name in names)
