"""Accuracy checks: per noise level, paired scores, same-seed pictures."""

from dataclasses import replace

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.evaluation.accuracy import (
    compare_pictures,
    compare_probes,
    find_violation,
    paired_score_gain,
)
from stillhouse.accelerate.records.report import Bounds
from tests.accelerate.trials import make_trial

RNG = np.random.default_rng(0)
CLEAN = RNG.standard_normal((4, 1000)).astype(np.float32)


def probes(tensors: np.ndarray, name: str = "out") -> list[Probe]:
    return [Probe(f"noise 0.{i // 2}, prompt {i % 2}", {name: row}) for i, row in enumerate(tensors)]


def test_each_noise_level_has_its_own_figure() -> None:
    noisy = CLEAN.copy()
    noisy[2:] += 0.1 * RNG.standard_normal((2, 1000)).astype(np.float32)
    fidelity = compare_probes(probes(CLEAN), probes(noisy))
    assert list(fidelity) == ["noise 0.0", "noise 0.1"]
    assert fidelity["noise 0.0"].sqnr == 999.0
    assert fidelity["noise 0.1"].sqnr == pytest.approx(20.0, abs=0.6)  # noise of a tenth is 20 dB below the signal


def test_an_answer_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="the network's outputs are other; allowed: out, the outputs of the baseline"):
        compare_probes(probes(CLEAN), probes(CLEAN, "other"))
    with pytest.raises(ValueError, match=r"shape \[999\], the baseline's has \[1000\]"):
        compare_probes(probes(CLEAN), probes(CLEAN[:, :999]))


def test_fast_on_ones_and_wrong_on_the_rest_is_found() -> None:
    wrong = [Probe(probe.label, {"out": np.ones(1000, np.float32)}) for probe in probes(CLEAN)]
    fidelity = compare_probes(probes(CLEAN), wrong)
    assert "below the bound" in find_violation(replace(make_trial("x"), fidelity=fidelity), Bounds(min_sqnr=10))


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
    # Five of a hundred changed: the deviation of the differences is sqrt(p - p^2), with p = 0.05.
    assert mean == pytest.approx(-0.05)
    assert (high - low) / 2 == pytest.approx(1.96 * (0.05 * 0.95 / 99) ** 0.5, rel=1e-3)
