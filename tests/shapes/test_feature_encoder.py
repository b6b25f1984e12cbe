"""The feature encoder: distances of similar and damaged pictures, and independence of batch and size."""

import numpy as np
import pytest

from stillhouse.measure.set_metrics import frechet_distance, precision_recall
from stillhouse.shapes.feature_encoder import FeatureEncoder, open_feature_encoder
from stillhouse.shapes.scene import render_scene, sample_scene


@pytest.fixture(scope="module")
def encoder() -> FeatureEncoder:
    return open_feature_encoder(threads=1)


def rendered_scenes(seed: int, count: int = 1000) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [render_scene(sample_scene(rng)) for _ in range(count)]


def test_rendered_pictures_are_nearer_to_each_other_than_to_damaged_ones(encoder: FeatureEncoder) -> None:
    reference, others = rendered_scenes(1), rendered_scenes(2)
    rng = np.random.default_rng(0)
    blurred = [np.repeat(np.repeat(picture[::4, ::4], 4, 0), 4, 1) for picture in others]
    noisy = [np.clip(picture + rng.normal(0, 40, picture.shape), 0, 255).astype(np.uint8) for picture in others]
    same = [others[0]] * len(others)
    true = encoder(reference)
    near = frechet_distance(true, encoder(others))
    assert all(frechet_distance(true, encoder(pictures)) > 1.5 * near for pictures in (blurred, noisy, same))
    assert precision_recall(true, encoder(others)).recall > 0.7 > 0.1 > precision_recall(true, encoder(same)).recall


def test_features_do_not_depend_on_the_batch(encoder: FeatureEncoder) -> None:
    pictures = rendered_scenes(3, 70)
    together = encoder(pictures)
    np.testing.assert_allclose(encoder([pictures[66]])[0], together[66], rtol=1e-4, atol=1e-4)
    assert together.shape == (70, 112) and together.dtype == np.float64


def test_larger_pictures_are_scaled_first(encoder: FeatureEncoder) -> None:
    (picture,) = rendered_scenes(4, 1)
    larger = np.repeat(np.repeat(picture, 2, 0), 2, 1)
    np.testing.assert_allclose(encoder([larger]), encoder([picture]), rtol=1e-5, atol=1e-5)


def test_the_checksum_is_a_sha256(encoder: FeatureEncoder) -> None:
    assert len(encoder.checksum) == 64
