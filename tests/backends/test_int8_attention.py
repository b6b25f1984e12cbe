"""Attention in int8 equals attention in float64 up to its rounding; rows, heads and threads change no bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.backends.int8_attention import INT8_ATTENTION, int8_attention, multiplies_bf16
from stillhouse.cpu import processor_flags
from stillhouse.measure.fidelity import compare_tensors
from tests.backends.bf16 import from_bf16, to_bf16

Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

REASON = INT8_ATTENTION.missing_reason(processor_flags())
needs_vnni = pytest.mark.skipif(bool(REASON), reason=REASON or "it runs")


def normal(rows: int, queries: int, keys: int, width: int, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    q, k, v = (random.standard_normal((rows, count, width), np.float32) for count in (queries, keys, keys))
    return q, k, v


def exact(q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], heads: int) -> NDArray[np.float64]:
    """Attention in float64, with the usual scale."""

    def split(array: NDArray[np.float32]) -> NDArray[np.float64]:
        return array.reshape(*array.shape[:2], heads, -1).transpose(0, 2, 1, 3).astype(np.float64)

    scores = split(q) @ split(k).swapaxes(2, 3) * (q.shape[2] // heads) ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    joined: NDArray[np.float64] = (weights / weights.sum(-1, keepdims=True) @ split(v)).transpose(0, 2, 1, 3)
    return joined.reshape(q.shape)


def attend(
    q: NDArray[np.float32],
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    heads: int,
    threads: int = 1,
    wide: bool | None = None,
) -> NDArray[np.float32]:
    result = int8_attention(q, k, v, heads, (q.shape[2] // heads) ** -0.5, threads=threads, wide=wide)
    return result.astype(np.float32, copy=False)


WIDTHS = [False, *[True] * multiplies_bf16()]
"""Whether values and weights are multiplied in bf16, where this processor can."""


@needs_vnni
@pytest.mark.parametrize("wide", WIDTHS)
@pytest.mark.parametrize("dim", [4, 8, 12, 40, 64, 72, 80, 128, 160, 256])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (33, 3), (32, 12), (64, 77), (70, 121), (300, 300)])
def test_it_is_attention_up_to_the_rounding(dim: int, queries: int, keys: int, wide: bool) -> None:
    """A step of 1/127 of the largest of some hundred normal values is an error of 1 %, that is 40 dB, for each of four
    tensors, or of two; the products average it."""
    q, k, v = normal(2, queries, keys, 2 * dim)
    assert compare_tensors(exact(q, k, v, 2), attend(q, k, v, 2, wide=wide)).sqnr > (33.0 if wide else 30.0)


@needs_vnni
@pytest.mark.parametrize("wide", WIDTHS)
def test_long_sequences_keep_their_accuracy(wide: bool) -> None:
    q, k, v = normal(1, 64, 4096, 40)
    assert compare_tensors(exact(q, k, v, 1), attend(q, k, v, 1, wide=wide)).sqnr > (35.0 if wide else 30.0)


@needs_vnni
@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
def test_small_weights_beside_a_large_one_are_kept_in_bf16() -> None:
    """With scores of a standard deviation of 2, most weights are below 1/255 of the largest one, and many together."""
    q, k, v = normal(1, 64, 4096, 40)
    q *= 2
    errors = {wide: compare_tensors(exact(q, k, v, 1), attend(q, k, v, 1, wide=wide)).sqnr for wide in (False, True)}
    assert errors[True] > 33.0 > 25.0 > errors[False]


@needs_vnni
@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
@pytest.mark.parametrize(("queries", "keys", "dim"), [(33, 50, 12), (70, 300, 40)])
def test_tensors_in_bf16_stay_in_bf16(queries: int, keys: int, dim: int) -> None:
    """Rounded to bf16 before, float32 tensors give the same but for one rounding of the result."""
    q, k, v = (to_bf16(array) for array in normal(2, queries, keys, 2 * dim))
    floats = attend(from_bf16(q), from_bf16(k), from_bf16(v), 2)
    result = int8_attention(q, k, v, 2, dim**-0.5)
    assert result.dtype == np.uint16
    assert np.array_equal(result, to_bf16(floats))


@needs_vnni
@pytest.mark.parametrize("wide", WIDTHS)
def test_huge_scores_stay_finite(wide: bool) -> None:
    q, k, v = normal(1, 40, 90, 40)
    found = attend(q * 1e12, k * 1e12, v, 1, wide=wide)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= np.abs(v).max() * 1.02


@needs_vnni
def test_one_large_key_costs_the_other_blocks_nothing() -> None:
    """Each block of keys has a scale of its own."""
    q, k, v = normal(1, 64, 1200, 40)
    k[0, 1100] *= 20
    assert compare_tensors(exact(q, k, v, 1), attend(q, k, v, 1)).sqnr > 25.0


@needs_vnni
@given(seed=st.integers(0, 1000), threads=st.integers(1, 9), rows=st.integers(1, 3), heads=st.sampled_from([1, 2, 4]))
def test_threads_rows_and_heads_change_no_bit(seed: int, threads: int, rows: int, heads: int) -> None:
    q, k, v = normal(rows, 65, 50, 16, seed)
    together = attend(q, k, v, heads, threads)
    alone = [attend(q[[row]], k[[row]], v[[row]], heads) for row in range(rows)]
    assert np.array_equal(together, np.concatenate(alone))
    width = 16 // heads
    first = [np.ascontiguousarray(array[:, :, :width]) for array in (q, k, v)]
    assert np.array_equal(together[:, :, :width], attend(first[0], first[1], first[2], 1))


@needs_vnni
def test_what_all_keys_share_changes_nothing() -> None:
    """The softmax does not see it, and neither does the rounding: keys of real networks have large common parts."""
    q, k, v = normal(1, 64, 300, 40)
    shifted = k + 50 * np.random.default_rng(1).standard_normal(40).astype(np.float32)
    assert compare_tensors(exact(q, k, v, 1), attend(q, shifted, v, 1)).sqnr > 30.0


@needs_vnni
def test_a_query_that_finds_its_key_gets_its_value() -> None:
    v = np.random.default_rng(0).standard_normal((1, 300, 40), np.float32)
    k = np.zeros((1, 300, 40), np.float32)
    k[0, 200, 0] = 100.0
    q = np.zeros((1, 1, 40), np.float32)
    q[0, 0, 0] = 100.0
    assert attend(q, k, v, 1)[0, 0] == pytest.approx(v[0, 200], abs=float(np.abs(v).max()) / 127)


@needs_vnni
def test_equal_values_stay_as_they_are() -> None:
    q, k, v = normal(1, 40, 90, 8)
    v[:] = np.arange(-4, 4)
    assert attend(q, k, v, 1) == pytest.approx(np.broadcast_to(v[:, :1], q.shape), rel=1e-5)


@needs_vnni
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(place: int, value: float) -> None:
    """Of a key or a value, all queries of the head; of a query, its own output."""
    arrays = normal(1, 40, 90, 16)
    arrays[place][0, 5, 3] = value
    lost = np.isnan(attend(*arrays, 2))[0]
    assert lost[5, :8].all()
    assert not lost[:, 8:].any()
    assert lost[:, :8].all() == (place > 0)
