"""Tensor against tensor: known errors give known figures, and every figure is a finite number."""

import json
import math
from dataclasses import asdict
from sys import float_info
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from stillhouse.measure.fidelity import Fidelity, compare_tensors, worst_fidelity
from stillhouse.validation import convert

EQUAL = Fidelity(999.0, 1.0, 0.0, 0.0)
UNUSABLE = (-999.0, 0.0, float_info.max, float_info.max)
SHAPES = arrays.array_shapes(max_dims=3, max_side=5)
ANYTHING = st.tuples(SHAPES, st.sampled_from([np.float16, np.float32, np.float64])).flatmap(
    lambda kind: st.tuples(arrays.arrays(kind[1], kind[0]), arrays.arrays(kind[1], kind[0]))
)
MODEST = arrays.arrays(np.float64, SHAPES, elements=st.floats(-1e3, 1e3).filter(lambda value: abs(value) > 1e-3))


@pytest.mark.parametrize("decibels", [0, 10, 35.5, 120])
def test_noise_of_known_power_is_told_in_decibels(decibels: float) -> None:
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(2, 3, 64, 64))
    noise *= np.linalg.norm(signal) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
    assert compare_tensors(signal, signal + noise).sqnr == pytest.approx(decibels, abs=1e-6)


def test_a_scaled_tensor_keeps_its_direction() -> None:
    signal = np.random.default_rng(0).normal(size=100)
    found = compare_tensors(signal, 1.1 * signal)
    assert found.sqnr == pytest.approx(20)  # the error is a tenth of the signal
    assert found.cosine == pytest.approx(1)
    assert found.mae == pytest.approx(0.1 * np.abs(signal).mean())
    assert found.largest == pytest.approx(0.1 * np.abs(signal).max())


def test_orthogonal_and_opposite_tensors() -> None:
    right = compare_tensors(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert (right.cosine, right.mae, right.largest) == (0, 1, 1)
    assert right.sqnr == pytest.approx(10 * math.log10(1 / 2))
    assert compare_tensors(np.array([2.0, 1.0]), np.array([-2.0, -1.0])).cosine == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_])
def test_every_dtype_is_compared_in_float64(dtype: Any) -> None:
    found = compare_tensors(np.array([1, 0, 1, 1], dtype), np.array([1, 1, 1, 1], dtype))
    assert (found.mae, found.largest) == (0.25, 1)
    assert found.sqnr == pytest.approx(10 * math.log10(3))


def test_half_precision_sums_do_not_overflow() -> None:
    reference = np.full(100, 60000, np.float16)
    assert compare_tensors(reference, -reference).sqnr == pytest.approx(-20 * math.log10(2))


def test_dtypes_may_differ() -> None:
    reference = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    # Rounding to 11 bits: an error of at most 2^-11 of each element, so 66 dB at least.
    assert 66 < compare_tensors(reference, reference.astype(np.float16)).sqnr < 90


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (4, 4)])
def test_equal_tensors_are_equal_whatever_they_hold(shape: tuple[int, ...]) -> None:
    assert compare_tensors(np.zeros(shape), np.zeros(shape)) == EQUAL
    assert compare_tensors(np.full(shape, 7.0), np.full(shape, 7.0)) == EQUAL


def test_against_nothing_but_zeros_any_error_is_endless() -> None:
    assert compare_tensors(np.zeros(4), np.array([0, 0, 0, 2.0])) == Fidelity(-999.0, 0.0, 0.5, 2.0)


def test_silence_loses_the_whole_signal() -> None:
    found = compare_tensors(np.array([3.0, 4.0]), np.zeros(2))
    assert (found.sqnr, found.cosine, found.largest) == (0, 0, 4)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_makes_the_tensor_unusable(fault: float) -> None:
    reference = np.ones((2, 3))
    other = reference.copy()
    other[0, 1:] = fault
    assert compare_tensors(reference, other) == Fidelity(*UNUSABLE, nonfinite=2)


def test_where_the_reference_is_not_finite_nothing_is_asked() -> None:
    reference = np.array([1.0, -np.inf, np.nan, 2.0])
    assert compare_tensors(reference, reference) == EQUAL
    assert compare_tensors(reference, np.array([1.0, -65504, 0.0, 2.0])) == EQUAL
    assert compare_tensors(reference, np.array([1.0, -np.inf, 0.0, np.nan])).nonfinite == 1


def test_different_shapes_are_refused_even_where_they_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\] and \[2, 2\]"):
        compare_tensors(np.ones((2, 1)), np.ones((2, 2)))


@given(ANYTHING)
def test_every_figure_is_finite_and_within_its_range(pair: tuple[NDArray[Any], NDArray[Any]]) -> None:
    found = compare_tensors(*pair)
    assert -999 <= found.sqnr <= 999
    assert -1 <= found.cosine <= 1
    assert 0 <= found.mae <= float_info.max
    assert found.mae <= found.largest * (1 + 1e-12) <= float_info.max * 2
    assert convert(Fidelity, json.loads(json.dumps(asdict(found), allow_nan=False))) == found


@given(MODEST, st.integers(-1000, 900))
def test_the_unit_does_not_matter(reference: NDArray[np.float64], power: int) -> None:
    other = reference + np.sin(np.arange(reference.size)).reshape(reference.shape)
    plain, scaled = (
        compare_tensors(reference, other),
        compare_tensors(np.ldexp(reference, power), np.ldexp(other, power)),
    )
    assert (scaled.sqnr, scaled.cosine) == pytest.approx((plain.sqnr, plain.cosine), rel=1e-9)
    assert scaled.largest == pytest.approx(plain.largest * 2.0**power, rel=1e-9)


@given(MODEST)
def test_figures_are_those_of_the_textbook(reference: NDArray[np.float64]) -> None:
    other = 0.9 * reference + 1
    error = reference - other
    found = compare_tensors(reference, other)
    assert found.sqnr == pytest.approx(10 * np.log10(np.sum(reference**2) / np.sum(error**2)), abs=1e-6)
    cosine = np.sum(reference * other) / np.sqrt(np.sum(reference**2) * np.sum(other**2))
    assert found.cosine == pytest.approx(cosine, abs=1e-9)
    assert (found.mae, found.largest) == pytest.approx((np.abs(error).mean(), np.abs(error).max()))


def test_the_worst_has_the_least_sqnr_and_what_is_not_finite_is_worse_than_all() -> None:
    near, far = Fidelity(60.0, 1, 0, 0), Fidelity(-3.0, 0, 0, 0)
    assert worst_fidelity([near, far]) is far
    broken = compare_tensors(np.ones(2), np.array([1, np.nan]))
    assert worst_fidelity(iter([near, broken, far])) is broken
    with pytest.raises(ValueError):
        worst_fidelity([])
