"""Denoisers: a network in one call, or split in two depths of which the deep one may be skipped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array

Conditioning: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs of a network besides latents and timestep, by name; of one row, without a batch axis."""

Denoiser: TypeAlias = Callable[[Array, Array, Conditioning], Array]
"""(latents [R, C, h, w], timesteps [R], conditioning [R, ...] by name) -> the network's output [R, c, h, w]."""


@dataclass(frozen=True, slots=True)
class SplitDenoiser:
    """A network in two depths, for pictures that cache its deep features.

    Args:
        full: as a `Denoiser`; returns the deep features of the rows, [R, ...], beside the output.
        shallow: takes those features as a fourth argument instead of computing them.

    Each may reuse its output buffers in its own next call, and leaves the other's alone.
    """

    full: Callable[[Array, Array, Conditioning], tuple[Array, NDArray[Any]]]
    shallow: Callable[[Array, Array, Conditioning, NDArray[Any]], Array]


class DenoiserOutput(NamedTuple):
    """The network's output, float32 [R, c, h, w], and the deep features of the rows that ran in full, by row."""

    output: Array
    deep: Mapping[int, NDArray[Any]]


def run_denoiser(
    denoise: Denoiser | SplitDenoiser,
    latents: Array,
    timesteps: Array,
    conditioning: Conditioning,
    features: Sequence[NDArray[Any] | None],
) -> DenoiserOutput:
    """Run the network on every row, one call for each depth in use.

    Args:
        denoise: a `SplitDenoiser` where a row has features.
        latents: [R, C, h, w]; timesteps: [R]; conditioning: [R, ...] by name.
        features: cached deep features of each row, with which its shallow depth runs; None runs the row in full.
    """
    if not isinstance(denoise, SplitDenoiser):
        return DenoiserOutput(_float32(denoise(latents, timesteps, conditioning)), {})
    full = [row for row, cached in enumerate(features) if cached is None]
    shallow = [row for row, cached in enumerate(features) if cached is not None]
    outputs: list[tuple[list[int], Array]] = []
    deep: dict[int, NDArray[Any]] = {}
    if full:
        output, computed = denoise.full(*_select(full, latents, timesteps, conditioning))
        outputs.append((full, output))
        deep = dict(zip(full, computed, strict=True))
    if shallow:
        cached = np.array([features[row] for row in shallow])
        outputs.append((shallow, denoise.shallow(*_select(shallow, latents, timesteps, conditioning), cached)))
    if len(outputs) == 1:
        return DenoiserOutput(_float32(outputs[0][1]), deep)
    output = np.empty((len(latents), *outputs[0][1].shape[1:]), np.float32)
    for rows, part in outputs:
        output[rows] = part
    return DenoiserOutput(output, deep)


def _select(
    rows: list[int], latents: Array, timesteps: Array, conditioning: Conditioning
) -> tuple[Array, Array, Conditioning]:
    if len(rows) == len(latents):
        return latents, timesteps, conditioning
    return latents[rows], timesteps[rows], {name: array[rows] for name, array in conditioning.items()}


def _float32(output: Array) -> Array:
    return output.astype(np.float32, copy=False) if isinstance(output, np.ndarray) else output
