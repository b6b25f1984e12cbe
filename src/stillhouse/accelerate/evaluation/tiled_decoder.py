"""A decoder that sees one tile at a time: less memory for the same picture, or nearly."""

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
    """The decoder's runner, fed tiles; a `Runner` that takes and gives what the decoder does.

    Args:
        runner: of the decoder, open for inputs of any size.
        tile: pixels of a tile's side.
        downscale: pixels to one latent.
    """

    runner: Runner
    tile: int
    downscale: int

    @property
    def backend(self) -> str:
        """The decoder's."""
        return self.runner.backend

    @property
    def precision(self) -> str:
        """The decoder's."""
        return self.runner.precision

    @property
    def layer_precisions(self) -> Mapping[str, int]:
        """The decoder's."""
        return self.runner.layer_precisions

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The decoder's."""
        return self.runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The decoder's."""
        return self.runner.outputs

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Decode every row of latents, float32 [R, C, h, w], tile by tile."""
        ((name, latents),) = feeds.items()
        (output,) = (spec.name for spec in self.outputs)

        def decode(tile: Array) -> Array:
            signal: Array = self.runner({name: tile[None]})[output][0]
            return signal

        rows = [decode_tiled(decode, row, self.tile // self.downscale, self.downscale) for row in latents]
        return {output: np.array(rows)}
