"""A decoder that decodes tile by tile, which needs less memory and gives almost the same result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.runner import Runner, Tensors
from stillhouse.core import Array, TensorSpec
from stillhouse.pipelines.tiled_decode import decode_tiled


@dataclass(frozen=True, slots=True)
class TiledDecoder:
    """A `Runner` that decodes tile by tile with another runner.

    Args:
        runner: decoder, open for inputs of any size.
        tile: side of a tile in pixels.
        downscale: pixels per latent.
    """

    runner: Runner
    tile: int
    downscale: int

    @property
    def backend(self) -> str:
        """Return the `backend` of the wrapped runner."""
        return self.runner.backend

    @property
    def precision(self) -> str:
        """Return the `precision` of the wrapped runner."""
        return self.runner.precision

    @property
    def layer_precisions(self) -> Mapping[str, int]:
        """Return the `layer_precisions` of the wrapped runner."""
        return self.runner.layer_precisions

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the `inputs` of the wrapped runner."""
        return self.runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the `outputs` of the wrapped runner."""
        return self.runner.outputs

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Decode latents, float32 [R, C, h, w], row by row and tile by tile."""
        ((name, latents),) = feeds.items()
        (output,) = (spec.name for spec in self.outputs)

        def decode(tile: Array) -> Array:
            signal: Array = self.runner({name: tile[None]})[output][0]
            return signal

        rows = [decode_tiled(decode, row, self.tile // self.downscale, self.downscale) for row in latents]
        return {output: np.array(rows)}
