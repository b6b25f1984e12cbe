"""Group normalisation in bf16 equals the one in float64 up to one rounding; rows and threads change no bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.backends.group_norm import GROUP_NORM, group_norm
from stillhouse.cpu import processor_flags
from tests.backends.bf16 import from_bf16, to_bf16

REASON = GROUP_NORM.missing_reason(processor_flags())
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "it runs")
ROUNDING = 2.0**-8
"""Largest relative error of a number rounded to bf16, which keeps 8 binary digits."""


def draw(rows: int, pixels: int, channels: int, seed: int = 0, offset: float = 0.0) -> tuple[NDArray[np.uint16], ...]:
    random = np.random.default_rng(seed)
    return (to_bf16(random.standard_normal((rows, pixels, channels)) * 2 + offset),)


def constants(channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(1)
    return random.standard_normal(channels, np.float32), random.standard_normal(channels, np.float32)


def exact(
    x: NDArray[np.uint16], scale: NDArray[np.float32], shift: NDArray[np.float32], groups: int, silu: bool
) -> NDArray[np.float64]:
    """The formula in float64, with an epsilon of 1e-5."""
    grouped = from_bf16(x).astype(np.float64).reshape(*x.shape[:2], groups, -1)
    mean, variance = (take(grouped, axis=(1, 3), keepdims=True) for take in (np.mean, np.var))
    y: NDArray[np.float64] = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + shift
    return y / (1 + np.exp(-y)) if silu else y


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("pixels", "channels", "groups"), [(1, 64, 32), (77, 320, 32), (1500, 36, 4), (600, 130, 1)])
def test_it_is_the_formula_rounded_once(pixels: int, channels: int, groups: int, silu: bool) -> None:
    """SiLU is computed to 2^-12, and products of factors of some units in float32, which adds little to a rounding."""
    (x,), (scale, shift) = draw(2, pixels, channels), constants(channels)
    expected = exact(x, scale, shift, groups, silu)
    found = from_bf16(group_norm(x, scale, shift, groups, 1e-5, silu=silu))
    assert (np.abs(found - expected) <= (ROUNDING + 2.0**-11) * np.abs(expected) + 1e-5).all()


def test_a_large_mean_costs_no_accuracy() -> None:
    """Sums of squares of the values themselves would lose the variance."""
    (x,), (scale, shift) = draw(1, 4000, 64, offset=200.0), constants(64)
    expected = exact(x, scale, shift, 32, False)
    found = from_bf16(group_norm(x, scale, shift, 32, 1e-5))
    assert np.abs(found - expected).max() < (ROUNDING + 2.0**-11) * np.abs(expected).max()


def test_equal_values_give_the_shift() -> None:
    x, (scale, shift) = np.full((1, 9, 32), 0x4248, np.uint16), constants(32)
    assert np.array_equal(group_norm(x, scale, shift, 8, 1e-5), np.broadcast_to(to_bf16(shift), x.shape))


@given(seed=st.integers(0, 1000), threads=st.integers(1, 9), rows=st.integers(1, 3), pixels=st.sampled_from([3, 1100]))
def test_threads_and_rows_change_no_bit(seed: int, threads: int, rows: int, pixels: int) -> None:
    (x,), (scale, shift) = draw(rows, pixels, 128, seed), constants(128)
    together = group_norm(x, scale, shift, 32, 1e-5, silu=True, threads=threads)
    alone = [group_norm(x[[row]], scale, shift, 32, 1e-5, silu=True) for row in range(rows)]
    assert np.array_equal(together, np.concatenate(alone))


def test_large_tensors_are_shared_among_threads_without_a_change() -> None:
    (x,), (scale, shift) = draw(1, 4096, 128), constants(128)
    one, two = (group_norm(x, scale, shift, 32, 1e-5, threads=threads) for threads in (1, 2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(value: float, silu: bool) -> None:
    """It takes the whole group with it, as in the formula, and no other group."""
    (x,), (scale, shift) = draw(1, 20, 64), constants(64)
    x[0, 5, 17] = to_bf16(np.array(value))
    lost = np.isnan(from_bf16(group_norm(x, scale, shift, 4, 1e-5, silu=silu)))[0]
    assert lost[:, 16:32].all()
    assert not lost[:, :16].any()
    assert not lost[:, 32:].any()


def test_the_silu_of_very_low_values_is_zero() -> None:
    x = to_bf16(np.repeat([-1.0, 1.0], 32).reshape(1, 2, 32))
    scale, shift = np.full(32, 1e30, np.float32), np.zeros(32, np.float32)
    low, high = from_bf16(group_norm(x, scale, shift, 1, 1e-5, silu=True))[0]
    assert np.abs(low).max() < 1e-3
    assert high == pytest.approx(np.full(32, 1e30), rel=ROUNDING)


def test_the_result_is_written_where_it_is_asked_for() -> None:
    (x,), (scale, shift) = draw(2, 6, 32), constants(32)
    out = np.zeros_like(x)
    assert group_norm(x, scale, shift, 4, 1e-5, out=out) is out
    assert np.array_equal(out, group_norm(x, scale, shift, 4, 1e-5))
