"""A VAE decoder that decodes latents tile by tile, which needs less memory and gives almost the same picture."""

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
    """An open decoder that decodes latents in tiles, each with a call of another open decoder.

    Args:
        runner: the decoder that is called for each tile.
        tile: side of a tile in pixels.
        downscale: ratio of a picture's side to the side of its latents, for example 8.
    """

    runner: Runner
    tile: int
    downscale: int

    @property
    def backend(self) -> str:
        """Return the name of the backend that decodes each tile."""
        return self.runner.backend

    @property
    def precision(self) -> str:
        """Return the compute precision of the decoder that decodes each tile."""
        return self.runner.precision

    @property
    def layer_precisions(self) -> Mapping[str, int]:
        """Return how many operations of the decoder compute in each precision, as its backend reports them."""
        return self.runner.layer_precisions

    @property
    def weight_types(self) -> Mapping[str, int]:
        """Return how many weights of the decoder are stored as integers, by type."""
        return self.runner.weight_types

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the input specifications of the decoder that decodes each tile."""
        return self.runner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the output specifications of the decoder that decodes each tile."""
        return self.runner.outputs

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Decode the only input, latents [R, C, h, w], row by row and tile by tile; return the output by name."""
        ((name, latents),) = feeds.items()
        (output,) = (spec.name for spec in self.outputs)

        def decode(tile: Array) -> Array:
            signal: Array = self.runner({name: tile[None]})[output][0]
            return signal

        rows = [decode_tiled(decode, row, self.tile // self.downscale, self.downscale) for row in latents]
        return {output: np.array(rows)}
