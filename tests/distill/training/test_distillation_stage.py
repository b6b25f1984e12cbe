"""Weighting of errors and the pseudo-Huber loss."""

import numpy as np
import pytest
import torch

from stillhouse.distill.training.distillation_stage import weighted_loss
from stillhouse.distill.training.targets import Levels

ANGLES = np.array([0.05, 0.6, 1.2, np.pi / 2])
LEVELS = Levels(torch.arange(4), torch.from_numpy(np.cos(ANGLES)), torch.from_numpy(np.sin(ANGLES)))


def errors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 3, 5, 5))


def test_the_error_of_v_is_snr_plus_one_times_that_of_the_clean_picture() -> None:
    """With v = alpha noise - sigma x and one z, an error e of x is one of -e alpha / sigma of the noise, e / sigma of
    v (Salimans and Ho, arXiv 2202.00512, appendix D)."""
    clean = errors()
    velocity = clean / np.sin(ANGLES)[:, None, None, None]
    snr = (np.cos(ANGLES) / np.sin(ANGLES)) ** 2
    expected = np.mean((1 + snr) * (clean**2).mean(axis=(1, 2, 3)))
    actual = weighted_loss(torch.from_numpy(velocity), LEVELS, "v", 0.0).item()
    assert actual == pytest.approx(expected, rel=1e-12)


def test_truncated_snr_is_the_larger_of_the_errors_of_the_clean_picture_and_of_the_noise() -> None:
    clean = errors()
    noise = clean * (np.cos(ANGLES) / np.sin(ANGLES))[:, None, None, None]
    losses = np.maximum((clean**2).mean(axis=(1, 2, 3)), (noise**2).mean(axis=(1, 2, 3)))
    velocity = torch.from_numpy(clean / np.sin(ANGLES)[:, None, None, None])
    assert weighted_loss(velocity, LEVELS, "snr_trunc", 0.0).item() == pytest.approx(losses.mean(), rel=1e-12)


@pytest.mark.parametrize("width", [1e-3, 0.1, 10.0])
def test_the_pseudo_huber_loss_is_that_of_each_examples_error(width: float) -> None:
    """sqrt(e^2 + c^2) - c (Song and Dhariwal, arXiv 2310.14189, equation 8), of the root mean square of an example."""
    square = (errors() ** 2).mean(axis=(1, 2, 3))
    expected = np.mean(np.sqrt(square + width**2) - width)
    assert weighted_loss(torch.from_numpy(errors()), LEVELS, "v", width).item() == pytest.approx(expected, rel=1e-9)
