"""Metrics of sets of pictures, computed from the features of an encoder: FID, precision and recall, diversity."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
"""Features of a set of pictures: float64 [pictures, features]."""
NEIGHBOURS = 5


def frechet_distance(reference: Features, other: Features) -> float:
    """Return the squared Frechet distance (FID) of two sets, each taken as normal with its mean and covariance.

    The distance is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Heusel et al. (arXiv 1706.08500), equation 6. The trace
    of (C1 C2)^(1/2) is computed as the equal trace of (C1^(1/2) C2 C1^(1/2))^(1/2), because this matrix is symmetric.
    The estimate is biased upwards by about 1 / pictures: compare sets of the same size only. Sets are float
    [pictures, features]. ValueError is raised if the numbers of features differ, or a set has fewer than two pictures.

    >>> sets = np.random.default_rng(0).normal(size=(100, 2))
    >>> round(frechet_distance(sets, sets + [3.0, 4.0]), 6)
    25.0
    """
    _check_features(reference, other)
    means = reference.mean(0) - other.mean(0)
    first, second = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (reference, other))
    root = _matrix_sqrt(first)
    shared = np.linalg.eigvalsh(root @ second @ root).clip(min=0)
    distance = means @ means + np.trace(first) + np.trace(second) - 2 * np.sqrt(shared).sum()
    return max(0.0, float(distance))  # rounding can give equal sets a distance below 0


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """Precision and recall of a set of pictures (the other set) in comparison with a reference set, 0 to 1.

    Args:
        precision: share of the other set's pictures inside the reference set's manifold.
        recall: share of the reference set's pictures inside the other set's manifold.
    """

    precision: float
    recall: float


def precision_recall(reference: Features, other: Features, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Return precision and recall of a set of pictures: Kynkaanniemi et al. (arXiv 1904.06991), section 3.

    Precision is the share of `other` inside the manifold of `reference`. Recall is the reverse: it is low where `other`
    lacks diversity. A picture lies inside a set's manifold where its distance to some picture of the set is at most
    that picture's distance to its `neighbours`th nearest picture in the set (k of the paper). Both sets are float
    [pictures, features] of one shape, with more pictures than `neighbours`; other sets raise ValueError.
    """
    _check_features(reference, other)
    if len(reference) != len(other) or len(reference) <= neighbours:
        raise ValueError(
            f"the sets have {len(reference)} and {len(other)} pictures; both need the same number, above {neighbours}"
        )
    between = _distances(reference, other)

    def share_inside(features: Features, distances: NDArray[np.float64]) -> float:
        radius = np.partition(_distances(features, features), neighbours, axis=1)[:, neighbours]
        return float((distances <= radius[:, None]).any(axis=0).mean())

    return PrecisionRecall(share_inside(reference, between), share_inside(other, between.T))


def prompt_diversity(groups: NDArray[np.float64]) -> float:
    """Return the mean distance between the features of two pictures of the same prompt.

    Args:
        groups: float [prompts, pictures of a prompt, features], with two pictures or more of each prompt.

    Raises:
        ValueError: there are fewer than two pictures of each prompt.

    >>> prompt_diversity(np.array([[[0.0], [1.0]], [[0.0], [3.0]]]))
    2.0
    """
    if groups.ndim != 3 or groups.shape[1] < 2:
        raise ValueError(f"features have shape {list(groups.shape)}, not [prompts, two pictures or more, features]")
    count = groups.shape[1]
    sums = [_distances(group, group).sum() / (count * (count - 1)) for group in groups]
    return float(np.mean(sums))


def _distances(features: Features, other: Features) -> NDArray[np.float64]:
    squares = (features**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * features @ other.T
    distances: NDArray[np.float64] = np.sqrt(squares.clip(min=0))
    return distances


def _matrix_sqrt(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def _check_features(reference: Features, other: Features) -> None:
    if reference.ndim != 2 or other.ndim != 2 or reference.shape[1] != other.shape[1]:
        raise ValueError(
            f"the sets have arrays of shape {list(reference.shape)} and {list(other.shape)}; both need the shape "
            "[pictures, features] with the same number of features"
        )
    if min(len(reference), len(other)) < 2:
        raise ValueError(f"the sets have {len(reference)} and {len(other)} pictures; each needs two or more")
