"""Set against set: how far apart two sets of pictures lie, in the features of some encoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
"""[pictures, features]."""
NEIGHBOURS = 5


def frechet_distance(reference: Features, other: Features) -> float:
    """The squared Frechet distance of two normal distributions that have the sets' means and covariances.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Heusel et al. (arXiv 1706.08500), equation 6; the trace of the root is
    taken as that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric. It is biased upwards by about 1 / pictures:
    compare sets of the same size only.

    Args:
        reference, other: float [pictures, features], both with more pictures than one.

    Raises:
        ValueError: numbers of features differ, or a set of fewer than two pictures.

    >>> sets = np.random.default_rng(0).normal(size=(100, 2))
    >>> round(frechet(sets, sets + [3.0, 4.0]), 6)
    25.0
    """
    _check_features(reference, other)
    means = reference.mean(0) - other.mean(0)
    first, second = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (reference, other))
    root = _matrix_sqrt(first)
    shared = np.linalg.eigvalsh(root @ second @ root).clip(min=0)
    found = means @ means + np.trace(first) + np.trace(second) - 2 * np.sqrt(shared).sum()
    return max(0.0, float(found))  # of equal sets, rounding may leave a little less


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Shares of pictures: of the other set's that lie among the reference's, and of the reference's among those."""

    precision: float
    recall: float


def precision_recall(reference: Features, other: Features, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall of Kynkaanniemi et al. (arXiv 1904.06991), section 3.

    A picture lies among a set where it is within the distance of some picture of that set to its `neighbours`th
    nearest. A low recall is the sign of a collapse.

    Args:
        reference, other: float [pictures, features], of the same number of pictures; each more than `neighbours`.
        neighbours: k of the paper.

    Raises:
        ValueError: sets of different sizes, or too small.
    """
    _check_features(reference, other)
    if len(reference) != len(other) or len(reference) <= neighbours:
        raise ValueError(f"{len(reference)} and {len(other)} pictures; as many of both, more than {neighbours}")
    between = _distances(reference, other)

    def among(own: Features, distances: NDArray[np.float64]) -> float:
        reach = np.partition(_distances(own, own), neighbours, axis=1)[:, neighbours]
        return float((distances <= reach[:, None]).any(axis=0).mean())

    return PrecisionRecall(among(reference, between), among(other, between.T))


def prompt_diversity(groups: NDArray[np.float64]) -> float:
    """Mean distance between pictures of the same prompt: what is left of diversity.

    Args:
        groups: float [prompts, pictures of each, features], of two pictures and more.

    Raises:
        ValueError: fewer than two pictures of each prompt.

    >>> spread(np.array([[[0.0], [1.0]], [[0.0], [3.0]]]))
    2.0
    """
    if groups.ndim != 3 or groups.shape[1] < 2:
        raise ValueError(f"features of shape {list(groups.shape)}; [prompts, two pictures or more, features]")
    count = groups.shape[1]
    sums = [_distances(group, group).sum() / (count * (count - 1)) for group in groups]
    return float(np.mean(sums))


def _distances(features: Features, other: Features) -> NDArray[np.float64]:
    squares = (features**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * features @ other.T
    found: NDArray[np.float64] = np.sqrt(squares.clip(min=0))
    return found


def _matrix_sqrt(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    found: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return found


def _check_features(reference: Features, other: Features) -> None:
    if reference.ndim != 2 or other.ndim != 2 or reference.shape[1] != other.shape[1]:
        raise ValueError(f"features of shapes {list(reference.shape)} and {list(other.shape)}; as many for each")
    if min(len(reference), len(other)) < 2:
        raise ValueError(f"{len(reference)} and {len(other)} pictures; two and more")
