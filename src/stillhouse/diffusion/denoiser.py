"""Denoisers: networks that run in one call, and networks that are split so that their deep layers can be skipped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array

Conditioning: TypeAlias = Mapping[str, NDArray[Any]]
"""Inputs of a denoiser other than latents and timestep, such as the encoded prompt, by name.

Each function says whether these arrays have a batch axis.
"""

Denoiser: TypeAlias = Callable[[Array, Array, Conditioning], Array]
"""A network that predicts noise, velocity or the clean picture for R rows of a batch.

The arguments are latents [R, C, h, w], timesteps [R] and the other inputs [R, ...] by name. The result is [R, c, h, w].
C is larger than c where the network has extra input channels, for example for inpainting.
"""


@dataclass(frozen=True, slots=True)
class SplitDenoiser:
    """A denoiser whose deep layers can be skipped at some steps: it runs whole, or with deep features from a cache.

    Args:
        full: runs the whole network. Takes the arguments of a `Denoiser`; returns the output and the deep features of
            the rows, [R, ...].
        shallow: runs the network without its deep layers. Takes the arguments of a `Denoiser` and the deep features of
            the rows, [R, ...]; returns the output.

    Each function may overwrite the arrays that its own previous call returned, but never arrays that the other function
    returned.
    """

    full: Callable[[Array, Array, Conditioning], tuple[Array, NDArray[Any]]]
    shallow: Callable[[Array, Array, Conditioning, NDArray[Any]], Array]


class DenoiserOutput(NamedTuple):
    """The result of `run_denoiser`.

    Args:
        output: the network's output, [R, c, h, w]; float32 where it is a NumPy array.
        deep: the deep features of each row that ran the whole network, by index of the row.
    """

    output: Array
    deep: Mapping[int, NDArray[Any]]


def run_denoiser(
    denoise: Denoiser | SplitDenoiser,
    latents: Array,
    timesteps: Array,
    conditioning: Conditioning,
    features: Sequence[NDArray[Any] | None],
) -> DenoiserOutput:
    """Run the network on every row of a batch.

    A `SplitDenoiser` is called once for the rows that run the whole network, and once for the rows that skip its deep
    layers.

    Args:
        denoise: the network.
        latents: [R, C, h, w]; timesteps: [R]; conditioning: [R, ...] by name.
        features: the cached deep features of each row, or None where the row runs the whole network. Ignored unless
            `denoise` is a `SplitDenoiser`.
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
