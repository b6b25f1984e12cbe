import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from stillhouse.pipelines.families.base import normalize_pixels, to_pixels


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_there_and_back(picture: NDArray[np.uint8]) -> None:
    signal = normalize_pixels(picture)
    assert signal.dtype == np.float32 and signal.shape == (3, *picture.shape[:2])
    assert np.abs(signal).max() <= 1
    assert np.array_equal(to_pixels(signal), picture)


def test_signals_beyond_the_range_are_cut_off() -> None:
    signal = np.array([-7.0, -1.0, 1.0, 7.0], np.float32).reshape(1, 2, 2).repeat(3, axis=0)
    assert to_pixels(signal)[..., 0].tolist() == [[0, 0], [255, 255]]
