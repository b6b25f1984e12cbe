"""Pictures for calibration are crops of real photographs, and pages and lines of text, of any size and layout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.accelerate.calibration.real_pictures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    has_colour_axis,
    make_real_pictures,
    scale_pixels,
)


@settings(max_examples=40, deadline=None)
@given(
    outer=st.lists(st.integers(1, 2), max_size=2),
    channels=st.sampled_from([1, 3, 4]),
    sides=st.tuples(st.integers(8, 160), st.integers(8, 300)),
    is_channels_last=st.booleans(),
    index=st.integers(0, 9),
)
def test_pictures_of_any_size_and_layout(
    outer: list[int], channels: int, sides: tuple[int, int], is_channels_last: bool, index: int
) -> None:
    shape = (*outer, *sides, channels) if is_channels_last else (*outer, channels, *sides)
    assert has_colour_axis(shape)
    pictures = make_real_pictures(np.random.default_rng(0), shape, index)
    assert pictures.shape == shape and pictures.dtype == np.uint8
    for picture in pictures.reshape(-1, *shape[-3:]):
        colours = picture if is_channels_last else np.moveaxis(picture, 0, -1)
        assert colours[..., :3].min() == 0 and colours[..., :3].max() == 255
        assert channels < 4 or (colours[..., 3] == 255).all()


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (5, 32, 48), (1, 16, 64, 64), (1, 2, 5), (1, 3, 7, 64)])
def test_other_arrays_hold_no_pictures(shape: tuple[int, ...]) -> None:
    assert not has_colour_axis(shape)


@pytest.mark.parametrize(("index", "is_text"), [(0, False), (1, False), (2, False), (3, True), (4, False), (7, True)])
def test_every_fourth_picture_is_a_page_of_text(index: int, is_text: bool) -> None:
    picture = make_real_pictures(np.random.default_rng(1), (1, 256, 256, 1), index)[0, ..., 0]
    # Most of a page is paper of a single grey, which no photograph has.
    assert (np.bincount(picture.ravel()).max() > 0.5 * picture.size) == is_text
    # Neighbours in noise differ by 85 in the mean.
    assert np.abs(np.diff(picture.astype(float))).mean() < 45


def test_wide_pictures_hold_a_line_of_text() -> None:
    line = make_real_pictures(np.random.default_rng(2), (1, 1, 48, 320), 0)[0, 0]
    assert np.bincount(line.ravel()).max() > 0.5 * line.size
    # Letters reach from the left edge to the right edge.
    assert all((part < 128).any() for part in np.split(line, 4, axis=1))


def test_normalised_pixels_of_the_mean_are_zero() -> None:
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    pictures = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8)
    expected = np.array([[[-mean / std, (1 - mean) / std]]])
    np.testing.assert_allclose(scale_pixels(pictures, "imagenet"), expected)
    np.testing.assert_allclose(scale_pixels(np.moveaxis(pictures, -1, 1), "imagenet"), np.moveaxis(expected, -1, 1))
    grey = scale_pixels(np.zeros((1, 1, 2, 2), np.uint8), "imagenet")
    np.testing.assert_allclose(grey, np.full((1, 1, 2, 2), -mean.mean() / std.mean()))
    many = scale_pixels(make_real_pictures(np.random.default_rng(0), (30, 96, 96, 3), 0), "imagenet")
    assert abs(many.mean()) < 0.3 and many.std() == pytest.approx(1, rel=0.4)


@pytest.mark.parametrize(("pixels", "low", "high"), [("0..1", 0, 1), ("0..255", 0, 255), ("-1..1", -1, 1)])
def test_ranges_are_linear(pixels: str, low: float, high: float) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = np.linspace(low, high, 256).reshape(1, 1, 16, 16)
    np.testing.assert_allclose(scale_pixels(values, pixels), expected, atol=1e-12)
