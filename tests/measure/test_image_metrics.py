"""Picture against picture: known differences give known figures; SSIM as an independent loop computes it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core import Picture
from stillhouse.measure.image_metrics import difference_image, psnr, ssim

SIDES = st.integers(1, 14)


def flat(level: int, height: int = 16, width: int = 16) -> Picture:
    return np.full((height, width, 3), level, np.uint8)


def noise(height: int = 24, width: int = 17, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ssim_by_hand(x: Picture, y: Picture) -> float:
    """Equations 13 to 17 of the paper, window by window, each moment about its own mean."""
    size = min(11, *x.shape[:2])
    places = [place - (size - 1) / 2 for place in range(size)]
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * 1.5 * 1.5)) for j in places] for i in places])
    weights /= weights.sum()
    values = []
    for channel in range(3):
        for top in range(x.shape[0] - size + 1):
            for left in range(x.shape[1] - size + 1):
                window = np.s_[top : top + size, left : left + size, channel]
                a, b = x[window].astype(float), y[window].astype(float)
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a = (weights * (a - mean_a) ** 2).sum()
                var_b = (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                values.append(brightness * (2 * both + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("step", [1, 7, 100])
def test_an_even_offset_has_the_psnr_of_its_square(step: int) -> None:
    assert psnr(flat(100), flat(100 + step)) == pytest.approx(20 * math.log10(255 / step))


def test_psnr_of_one_wrong_channel_of_one_pixel() -> None:
    other = flat(0)
    other[3, 4, 1] = 16
    assert psnr(flat(0), other) == pytest.approx(10 * math.log10(255**2 * 16 * 16 * 3 / 16**2))


def test_psnr_goes_up_and_down_without_wrapping_round() -> None:
    assert psnr(flat(0), flat(255)) == psnr(flat(255), flat(0)) == 0


def test_equal_pictures_have_the_greatest_psnr() -> None:
    assert psnr(noise(), noise()) == 99
    large = np.zeros((400, 400, 3), np.uint8)
    other = large.copy()
    other[0, 0, 0] = 1  # 104.9 dB
    assert psnr(large, other) == 99


@pytest.mark.parametrize(("height", "width"), [(11, 11), (24, 17), (12, 30), (10, 40), (7, 7), (4, 9), (1, 1), (2, 5)])
def test_ssim_is_that_of_the_paper(height: int, width: int) -> None:
    x = noise(height, width)
    y = (0.7 * x + 0.3 * noise(height, width, seed=1)).astype(np.uint8)
    # The two forms of the variance differ by rounding of 255^2 in float64, far below 1e-9 of C2.
    assert ssim(x, y) == pytest.approx(ssim_by_hand(x, y), abs=1e-9)


def test_ssim_of_flat_pictures_is_that_of_their_brightness() -> None:
    c1 = 2.55**2
    assert ssim(flat(100), flat(200)) == pytest.approx((2 * 100 * 200 + c1) / (100**2 + 200**2 + c1))


def test_ssim_falls_with_noise_and_stays_with_brightness() -> None:
    """The reason to have it beside PSNR: equal mean squared errors of two kinds."""
    picture = np.kron(noise(8, 8) // 2 + 64, np.ones((8, 8, 1), np.uint8))
    lighter = picture + np.uint8(20)
    signs = np.random.default_rng(0).choice([-20, 20], picture.shape)
    noisy = (picture + signs).astype(np.uint8)
    assert psnr(picture, lighter) == pytest.approx(psnr(picture, noisy))
    assert ssim(picture, lighter) > 0.9 > 0.7 > ssim(picture, noisy)


def test_ssim_sees_a_wrong_colour_of_the_same_brightness() -> None:
    red, green = flat(60), flat(60)
    red[4:12, 4:12] = (200, 0, 60)
    green[4:12, 4:12] = (0, 102, 60)  # 0.299 red + 0.587 green + 0.114 blue within a level of the other's
    assert ssim(red, green) < 0.6


@given(SIDES, SIDES, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_pictures_of_any_size_are_measured_the_same_from_both_sides(height: int, width: int, seed: int) -> None:
    x, y = noise(height, width, seed), noise(height, width, seed + 1)
    assert ssim(x, x) == pytest.approx(1)
    assert -1 <= ssim(x, y) <= 1
    assert ssim(x, y) == pytest.approx(ssim(y, x))
    assert psnr(x, y) == psnr(y, x)
    assert np.array_equal(difference_image(x, y), difference_image(y, x))


@given(st.integers(0, 255), st.integers(0, 255), st.floats(0, 20))
def test_a_difference_is_amplified_up_to_white(one: int, two: int, gain: float) -> None:
    found = difference_image(flat(one, 2, 3), flat(two, 2, 3), gain)
    assert found.shape == (2, 3, 3) and found.dtype == np.uint8
    assert (found == round(min(255, gain * abs(one - two)))).all()


def test_a_difference_shows_where_it_is_and_in_which_colour() -> None:
    other = flat(50)
    other[2, 5] = (50, 40, 50)
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[2, 5, 1] = 40
    assert np.array_equal(difference_image(flat(50), other), expected)


def test_pictures_of_different_sizes_or_none_are_refused() -> None:
    for measure in (psnr, ssim, difference_image):
        with pytest.raises(ValueError, match=r"\[4, 4, 3\] and \[4, 5, 3\]"):
            measure(flat(0, 4, 4), flat(0, 4, 5))
        with pytest.raises(ValueError, match="without pixels"):
            measure(flat(0, 0, 4), flat(0, 0, 4))
