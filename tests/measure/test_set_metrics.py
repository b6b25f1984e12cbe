"""Set against set, where the answers are known: normal distributions, shifted, stretched, and collapsed."""

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.measure.set_metrics import frechet_distance, precision_recall, prompt_diversity


def normal(count: int, features: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(size=(count, features))


@given(shift=st.floats(-5, 5), stretch=st.floats(0.1, 5), features=st.integers(1, 6))
def test_a_set_that_is_moved_and_stretched_is_as_far_as_the_formula_says(
    shift: float, stretch: float, features: int
) -> None:
    """Of N(m, C) and N(m', s^2 C): |m - m'|^2 + (1 - s)^2 tr C."""
    own = normal(50, features)
    own = own - own.mean(0)
    wanted = features * shift**2 + (1 - stretch) ** 2 * np.trace(np.atleast_2d(np.cov(own, rowvar=False)))
    assert frechet_distance(own, stretch * own + shift) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_the_root_of_a_product_of_covariances_is_scipys() -> None:
    one, other = normal(200, 5), normal(300, 5, seed=1) @ normal(5, 5, seed=2)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    means = one.mean(0) - other.mean(0)
    wanted = means @ means + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_fewer_pictures_than_features_are_no_error() -> None:
    assert frechet_distance(normal(5, 20), normal(5, 20)) == pytest.approx(0, abs=1e-6)


def test_equal_sets_overlap_and_distant_ones_do_not() -> None:
    own = normal(100, 4)
    same, far = precision_recall(own, own), precision_recall(own, own + 100)
    assert (same.precision, same.recall, far.precision, far.recall) == (1, 1, 0, 0)


def test_a_collapsed_set_is_precise_and_recalls_little() -> None:
    """One picture again and again: it lies among the others, and they do not lie around it."""
    own = normal(200, 4)
    collapsed = np.repeat(own[:1], 200, axis=0)
    found = precision_recall(own, collapsed)
    assert found.precision == 1 and found.recall <= 0.02


def test_the_spread_of_equal_pictures_is_nothing_and_doubles_with_their_distances() -> None:
    groups = np.random.default_rng(0).normal(size=(10, 6, 3))
    assert prompt_diversity(np.zeros((3, 4, 2))) == 0
    assert prompt_diversity(2 * groups) == pytest.approx(2 * prompt_diversity(groups))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (lambda: frechet_distance(normal(5, 2), normal(5, 3)), "same number of features"),
        (lambda: frechet_distance(normal(1, 2), normal(5, 2)), "needs two or more"),
        (lambda: precision_recall(normal(5, 2), normal(5, 2)), "above 5"),
        (lambda: precision_recall(normal(9, 2), normal(8, 2)), "need the same number"),
        (lambda: prompt_diversity(np.zeros((3, 1, 2))), "two pictures or more"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(found: object, told: str) -> None:
    assert callable(found)
    with pytest.raises(ValueError, match=told):
        found()
