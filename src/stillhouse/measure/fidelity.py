"""Distance of a tensor from its reference."""

from collections.abc import Iterable
from dataclasses import dataclass
from sys import float_info
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SQNR, MIN_SQNR = 999.0, -999.0
"""Largest SQNR in dB, that of a tensor that equals its reference, and smallest SQNR. The smallest is that of a tensor
with elements that are not finite, and of a tensor that is not all zero although its reference is."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The distance of a tensor (the other tensor) from its reference. Every value is finite, so that JSON can hold it.

    Args:
        sqnr: signal to quantisation noise ratio in dB, 10 log10(sum ref^2 / sum (ref - other)^2), clipped to -999..999.
            999 for equal tensors, -999 where the other tensor has elements that are not finite.
        cosine: cosine of the angle between the tensors, -1 to 1; 0 where one of them is all zero or not finite.
        mae: mean absolute error; the largest float where the other tensor has elements that are not finite.
        largest: maximum absolute error; the largest float where the other tensor has elements that are not finite.
        nonfinite: number of elements that are NaN or infinite in the other tensor and finite in the reference.
        place: part of the tensor that the SQNR belongs to, such as a channel; "" for the whole tensor.
        agreement: share of rows, 0 to 1, whose largest element has the same index in both tensors, or share of equal
            integers; None where the tensor does not hold classes.
        has_signal: False where the reference is empty, constant, or tiny beside its known range, so that an error
            relative to it means nothing.
    """

    sqnr: float
    cosine: float
    mae: float
    largest: float
    nonfinite: int = 0
    place: str = ""
    agreement: float | None = None
    has_signal: bool = True


def compare_tensors(reference: NDArray[Any], other: NDArray[Any]) -> Fidelity:
    """Return the distance of `other` from `reference`, computed in float64.

    Elements where the reference is not finite are left out. Tensors without elements count as equal.

    Args:
        reference, other: real numbers of any dtype, of the same shape.

    Raises:
        ValueError: the shapes differ.

    >>> compare_tensors(np.array([3.0, 4.0]), np.array([3.0, 4.5])).sqnr
    20.0
    """
    if reference.shape != other.shape:
        raise ValueError(
            f"the tensors have shapes {list(reference.shape)} and {list(other.shape)}; both need the same shape"
        )
    wide, wide_other = reference.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(wide)
    ref, oth = wide[finite], wide_other[finite]
    nonfinite = int(ref.size - np.isfinite(oth).sum())
    if nonfinite:
        return Fidelity(MIN_SQNR, 0.0, float_info.max, float_info.max, nonfinite)
    if np.array_equal(ref, oth):
        return Fidelity(MAX_SQNR, 1.0, 0.0, 0.0)
    # Both tensors are scaled so that no element exceeds 0.5, because squares and differences could overflow otherwise.
    # Scaling by a power of two is exact.
    exponent = int(np.frexp(max(np.abs(ref).max(), np.abs(oth).max()))[1]) + 1
    ref, oth = np.ldexp(ref, -exponent), np.ldexp(oth, -exponent)
    error = np.abs(ref - oth)
    return Fidelity(
        sqnr=_decibels(float(ref @ ref), float(error @ error)),
        cosine=_cosine(ref, oth),
        mae=_unscale(error.mean(), exponent),
        largest=_unscale(error.max(), exponent),
    )


def rescale_sqnr(fidelity: Fidelity, reference: NDArray[Any], peak: float | None = None) -> float:
    """Return the SQNR in dB of a comparison, relative to a constant signal of the given size.

    Args:
        fidelity: result of `compare_tensors` for `reference`.
        reference: the reference tensor.
        peak: size of the signal; None: the largest absolute value of the reference.

    >>> rescale_sqnr(compare_tensors(np.array([0.0, 0.001]), np.array([0.0, 0.002])), np.array([0.0, 0.001]), 1.0)
    60.0
    """
    if fidelity.sqnr in (MAX_SQNR, MIN_SQNR) and fidelity.largest in (0.0, float_info.max):
        return fidelity.sqnr
    signal = float(np.abs(reference.astype(np.float64)).max(initial=0.0)) if peak is None else peak
    return _decibels(signal**2, fidelity.largest**2)


def worst_fidelity(fidelities: Iterable[Fidelity]) -> Fidelity:
    """Return the fidelity with the lowest SQNR, the first one where several are equal.

    Raises:
        ValueError: `fidelities` is empty.
    """
    return min(fidelities, key=lambda fidelity: fidelity.sqnr)


def _decibels(signal: float, noise: float) -> float:
    if not signal or not noise:
        return MAX_SQNR if signal else MIN_SQNR
    return float(np.clip(10 * (np.log10(signal) - np.log10(noise)), MIN_SQNR, MAX_SQNR))


def _cosine(ref: NDArray[np.float64], oth: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(ref) * np.linalg.norm(oth))
    return float(np.clip(ref @ oth / lengths, -1, 1)) if lengths else 0.0


def _unscale(scaled: float, exponent: int) -> float:
    with np.errstate(over="ignore"):
        return min(float(np.ldexp(scaled, exponent)), float_info.max)
