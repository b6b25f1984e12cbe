"""Accuracy checks: per noise level, paired scores, same-seed pictures."""

import numpy as np
import pytest

from stillhouse.accelerate.evaluation.accuracy import (
    compare_pictures,
)
from stillhouse.accelerate.evaluation.score_decision import paired_score_gain

RNG = np.random.default_rng(0)


def test_equal_pictures_have_no_distance() -> None:
    pictures = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    latents = RNG.standard_normal((3, 4, 8, 8)).astype(np.float32)
    same = compare_pictures(pictures, pictures, (latents, latents))
    assert (same.psnr, same.worst_psnr, same.drift) == (99.0, 99.0, 0.0)
    assert same.ssim == pytest.approx(1.0)


def test_drift_is_the_relative_error_of_the_final_latents() -> None:
    pictures = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    latents = RNG.standard_normal((3, 4, 8, 8)).astype(np.float32)
    assert compare_pictures(pictures, pictures, (latents, 1.25 * latents)).drift == pytest.approx(0.25, rel=1e-5)


def test_a_gain_is_paired() -> None:
    before = [True] * 50 + [False] * 50
    after = [True] * 45 + [False] * 55
    mean, low, high = paired_score_gain(before, after)
    # Five of a hundred changed. One is added to either count of changes: 6 and 1 of 102 (Bonett and Price 2012).
    assert mean == pytest.approx(-0.05)
    assert (high - low) / 2 == pytest.approx(1.96 * ((7 / 102 - (5 / 102) ** 2) / 102) ** 0.5, rel=1e-3)
