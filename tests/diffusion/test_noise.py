import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, Philox

from stillhouse.diffusion import INITIAL_STEP, MAX_SEED, gaussian
from stillhouse.errors import InvalidRequest

SEEDS = st.integers(0, MAX_SEED)
STEPS = st.integers(INITIAL_STEP, 2000)
MANY = (1000, 1000)


def test_it_is_standard_normal_float32() -> None:
    drawn = gaussian(7, INITIAL_STEP, MANY)
    assert drawn.dtype == np.float32
    assert abs(float(drawn.mean(dtype=np.float64))) < 4e-3
    assert float(drawn.std(dtype=np.float64)) == pytest.approx(1, abs=3e-3)
    cubed, fourth = (float((drawn.astype(np.float64) ** power).mean()) for power in (3, 4))
    assert abs(cubed) < 0.016
    assert fourth == pytest.approx(3, abs=0.04)
    assert float((np.abs(drawn) > 1.959964).mean()) == pytest.approx(0.05, abs=9e-4)


@given(seed=SEEDS, step=STEPS)
def test_the_same_seed_and_step_always_draw_the_same(seed: int, step: int) -> None:
    assert gaussian(seed, step, (4, 8, 8)).tobytes() == gaussian(seed, step, (4, 8, 8)).tobytes()


@given(first=st.tuples(SEEDS, STEPS), second=st.tuples(SEEDS, STEPS))
def test_other_seeds_and_other_steps_draw_something_else(first: tuple[int, int], second: tuple[int, int]) -> None:
    same = bool((gaussian(*first, (4, 8, 8)) == gaussian(*second, (4, 8, 8))).all())
    assert same == (first == second)


@pytest.mark.parametrize("other", [(7, 0), (8, INITIAL_STEP), (8, 0), (7, 1), (MAX_SEED, INITIAL_STEP)])
def test_draws_are_uncorrelated(other: tuple[int, int]) -> None:
    correlation = float((gaussian(7, INITIAL_STEP, MANY).ravel() @ gaussian(*other, MANY).ravel()) / 1e6)
    assert abs(correlation) < 4e-3


@given(seed=SEEDS, step=STEPS)
def test_it_is_numpys_philox_with_seed_and_step_as_its_key(seed: int, step: int) -> None:
    key = np.array([seed, step + 1], np.uint64)
    expected = Generator(Philox(key=key)).standard_normal((3, 5), np.float32)
    assert gaussian(seed, step, (3, 5)).tobytes() == expected.tobytes()


def test_pictures_of_older_releases_keep_their_noise() -> None:
    """Every seed that a user wrote down depends on these."""
    drawn = gaussian(7, INITIAL_STEP, (4,))
    np.testing.assert_array_equal(drawn, np.array([-0.293339, 1.7038306, 1.5391918, 0.63675386], np.float32))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7", None])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(InvalidRequest, match=f"seed is .*; allowed: a whole number from 0 to {MAX_SEED}"):
        gaussian(seed, INITIAL_STEP, (1,))


def test_steps_before_the_start_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="step is -2"):
        gaussian(7, -2, (1,))
