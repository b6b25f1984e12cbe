"""Tensor against tensor: how far one network's output lies from another's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import float_info
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SQNR, MIN_SQNR = 999.0, -999.0
"""dB: the SQNR of equal tensors, and of a tensor with which nothing can be done. No measured one lies outside."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far a tensor lies from its reference. Every figure is finite, so that JSON and bounds can hold it.

    Args:
        sqnr: signal to quantisation noise in dB, 10 log10(sum ref^2 / sum (ref - other)^2), cut off at -999 and 999;
            equal tensors 999, and -999 where the other tensor has elements that are not finite.
        cosine: of the angle between the two, -1 to 1; 0 where one of them is all zero or not finite.
        mae: mean absolute error; the largest float where the other tensor has elements that are not finite.
        largest: maximum absolute error; the same.
        nonfinite: elements that are NaN or infinite in the other tensor where the reference is finite.
    """

    sqnr: float
    cosine: float
    mae: float
    largest: float
    nonfinite: int = 0


def compare_tensors(reference: NDArray[Any], other: NDArray[Any]) -> Fidelity:
    """How far `other` lies from `reference`, computed in float64.

    Elements whose reference is not finite say nothing, and are left out. Tensors without elements are equal.

    Args:
        reference, other: real numbers of any dtype, of the same shape.

    Raises:
        ValueError: the shapes differ.

    >>> compare(np.array([3.0, 4.0]), np.array([3.0, 4.5])).sqnr
    20.0
    """
    if reference.shape != other.shape:
        raise ValueError(f"shapes differ: {list(reference.shape)} and {list(other.shape)}")
    wide, wide_other = reference.astype(np.float64), other.astype(np.float64)
    known = np.isfinite(wide)
    ref, oth = wide[known], wide_other[known]
    nonfinite = int(ref.size - np.isfinite(oth).sum())
    if nonfinite:
        return Fidelity(MIN_SQNR, 0.0, float_info.max, float_info.max, nonfinite)
    if np.array_equal(ref, oth):
        return Fidelity(MAX_SQNR, 1.0, 0.0, 0.0)
    # A power of two takes the largest element to at most one half: exact, and neither squares nor differences overflow.
    exponent = int(np.frexp(max(np.abs(ref).max(), np.abs(oth).max()))[1]) + 1
    ref, oth = np.ldexp(ref, -exponent), np.ldexp(oth, -exponent)
    error = np.abs(ref - oth)
    return Fidelity(
        sqnr=_decibels(float(ref @ ref), float(error @ error)),
        cosine=_cosine(ref, oth),
        mae=_unscale(error.mean(), exponent),
        largest=_unscale(error.max(), exponent),
    )


def compare_outputs(references: Mapping[str, NDArray[Any]], others: Mapping[str, NDArray[Any]]) -> dict[str, Fidelity]:
    """`compare` for each output of a network, by its name.

    Raises:
        ValueError: the names differ, or the shapes of an output.

    >>> compare_outputs({"boxes": np.ones(2)}, {"boxes": np.ones(2)})["boxes"].sqnr
    999.0
    """
    if references.keys() != others.keys():
        raise ValueError(f"outputs differ: {', '.join(references)} and {', '.join(others)}")
    return {name: _compare_named(name, reference, others[name]) for name, reference in references.items()}


def worst_fidelity(fidelities: Iterable[Fidelity]) -> Fidelity:
    """The one with the least SQNR; the first of several. ValueError where there is none."""
    return min(fidelities, key=lambda one: one.sqnr)


def _compare_named(name: str, reference: NDArray[Any], other: NDArray[Any]) -> Fidelity:
    try:
        return compare_tensors(reference, other)
    except ValueError as error:
        raise ValueError(f"output {name}: {error}") from error


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
