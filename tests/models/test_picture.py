from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from stillhouse.errors import InvalidRequest
from stillhouse.models.picture import read_mask, read_picture, to_picture, to_signal
from tests.models.conftest import sample_picture


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_there_and_back(picture: NDArray[np.uint8]) -> None:
    signal = to_signal(picture)
    assert signal.dtype == np.float32 and signal.shape == (3, *picture.shape[:2])
    assert np.abs(signal).max() <= 1
    assert np.array_equal(to_picture(signal), picture)


def test_signals_beyond_the_range_are_cut_off() -> None:
    signal = np.array([-7.0, -1.0, 1.0, 7.0], np.float32).reshape(1, 2, 2).repeat(3, axis=0)
    assert to_picture(signal)[..., 0].tolist() == [[0, 0], [255, 255]]


def test_files(tmp_path: Path) -> None:
    picture = sample_picture(height=8, width=12)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "with-alpha.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "picture.png"), picture)
    assert np.array_equal(read_picture(tmp_path / "with-alpha.png"), picture)
    assert np.array_equal(read_mask(tmp_path / "grey.png"), picture[..., 0])


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\0"])
def test_a_picture_that_is_no_picture(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    for read in (read_picture, read_mask):
        with pytest.raises(InvalidRequest, match=r"picture.png cannot be read as a picture .*; allowed: PNG"):
            read(path)


def test_a_picture_cut_short(tmp_path: Path) -> None:
    Image.fromarray(sample_picture()).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_picture(tmp_path / "half.png")
