"""Step caching: the deep features of a U-Net change slowly along a walk, so most evaluations may take older ones.

The manner of DeepCache (Ma et al., arXiv 2312.00858, section 3.3): every `cache_interval`-th evaluation runs the whole
network and keeps what its deep part made of each row; those between run its shallow part on what was kept. Which rows
are kept, and for how long, depends on one picture's own course only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array

Conditioning: TypeAlias = Mapping[str, NDArray[Any]]
"""A network's other inputs by name: one row each, without a batch axis."""

Denoiser: TypeAlias = Callable[[Array, Array, Conditioning], Array]
"""(rows [R, C, h, w], timesteps [R], conditioning [R, ...] by name) -> the network's output [R, c, h, w]."""


@dataclass(frozen=True, slots=True)
class SplitDenoiser:
    """A network in two depths, for pictures that cache_interval its deep features every few evaluations.

    Args:
        full: as a `Denoiser`, and gives the deep features of the rows, [R, ...], beside the output.
        shallow: takes those features as a fourth argument instead of computing them.

    Each may reuse its output buffers in its own next call, and leaves the other's alone.
    """

    full: Callable[[Array, Array, Conditioning], tuple[Array, NDArray[Any]]]
    shallow: Callable[[Array, Array, Conditioning, NDArray[Any]], Array]


@dataclass(frozen=True, slots=True, eq=False)
class CachedFeatures:
    """What the deep part made of a picture's rows: [1 or 2, ...], unconditional first, and at which evaluation."""

    rows: NDArray[Any]
    index: int


class DenoiserOutput(NamedTuple):
    """The network's output, float32 [R, c, h, w], and its deep features for the rows that ran in full, by row."""

    output: Array
    deep: Mapping[int, NDArray[Any]]


def usable_features(features: CachedFeatures | None, cache_interval: int, index: int, rows: int) -> NDArray[Any] | None:
    """The kept features for the rows of evaluation `index`; None where the whole network must run.

    None where no features are cached, where the cached ones are `cache_interval` evaluations old, and where guidance
    sets in and a row has no features: mixing old and new features of a pair would amplify their difference by the
    guidance scale.

    >>> kept = Features(np.zeros((1, 8)), index=3)
    >>> [usable(kept, 2, index, rows) is not None for index, rows in ((4, 1), (5, 1), (4, 2))]
    [True, False, False]
    """
    if features is None or index - features.index >= cache_interval or len(features.rows) < rows:
        return None
    return features.rows[-rows:]


def run_denoiser(
    denoise: Denoiser | SplitDenoiser,
    rows: Array,
    timesteps: Array,
    conditioning: Conditioning,
    kept: Sequence[NDArray[Any] | None],
) -> DenoiserOutput:
    """Ask the network about every row, those with kept features in its shallow depth: one call for each depth.

    Args:
        denoise: a `SplitDenoiser` where a row has kept features.
        rows: [R, C, h, w]; timesteps: [R]; conditioning: [R, ...] by name.
        kept: the features of each row, or None.
    """
    if not isinstance(denoise, SplitDenoiser):
        return DenoiserOutput(_float32(denoise(rows, timesteps, conditioning)), {})
    whole = [row for row, features in enumerate(kept) if features is None]
    rest = [row for row, features in enumerate(kept) if features is not None]
    answers: list[tuple[list[int], Array]] = []
    deep: dict[int, NDArray[Any]] = {}
    if whole:
        output, features = denoise.full(*_picked(whole, rows, timesteps, conditioning))
        answers.append((whole, output))
        deep = dict(zip(whole, features, strict=True))
    if rest:
        stacked = np.array([kept[row] for row in rest])
        answers.append((rest, denoise.shallow(*_picked(rest, rows, timesteps, conditioning), stacked)))
    if len(answers) == 1:
        return DenoiserOutput(_float32(answers[0][1]), deep)
    output = np.empty((len(rows), *answers[0][1].shape[1:]), np.float32)
    for places, part in answers:
        output[places] = part
    return DenoiserOutput(output, deep)


def _picked(
    places: list[int], rows: Array, timesteps: Array, conditioning: Conditioning
) -> tuple[Array, Array, Conditioning]:
    if len(places) == len(rows):
        return rows, timesteps, conditioning
    return rows[places], timesteps[places], {name: array[places] for name, array in conditioning.items()}


def _float32(output: Array) -> Array:
    return output.astype(np.float32, copy=False) if isinstance(output, np.ndarray) else output
