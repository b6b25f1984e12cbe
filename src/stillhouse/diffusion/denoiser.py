"""Denoisers: a network that runs in one call, or one split in two depths, whose deep part can be skipped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array

Conditioning: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs of a network besides latents and timestep, by name, for one row, without a batch axis."""

Denoiser: TypeAlias = Callable[[Array, Array, Conditioning], Array]
"""Takes latents [R, C, h, w], timesteps [R] and conditioning [R, ...] by name; returns the output [R, c, h, w]."""


@dataclass(frozen=True, slots=True)
class SplitDenoiser:
    """A network in two depths, for pictures that cache its deep features.

    Args:
        full: takes the arguments of a `Denoiser`; returns the output and the deep features of the rows, [R, ...].
        shallow: takes the deep features as a fourth argument instead of computing them; returns the output.

    A call of `full` may overwrite the arrays that the previous call of `full` returned, but none that `shallow`
    returned; and the other way round.
    """

    full: Callable[[Array, Array, Conditioning], tuple[Array, NDArray[Any]]]
    shallow: Callable[[Array, Array, Conditioning, NDArray[Any]], Array]


class DenoiserOutput(NamedTuple):
    """The output, float32 [R, c, h, w], and by row the deep features of the rows that ran the whole network."""

    output: Array
    deep: Mapping[int, NDArray[Any]]


def run_denoiser(
    denoise: Denoiser | SplitDenoiser,
    latents: Array,
    timesteps: Array,
    conditioning: Conditioning,
    features: Sequence[NDArray[Any] | None],
) -> DenoiserOutput:
    """Run the network on every row, with one call for the rows of each depth.

    Args:
        denoise: the network; must be a `SplitDenoiser` where a row has features.
        latents: [R, C, h, w]; timesteps: [R]; conditioning: [R, ...] by name.
        features: for each row its cached deep features, which the shallow depth runs with, or None, which runs the
            whole network. Ignored where `denoise` is no `SplitDenoiser`.
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
