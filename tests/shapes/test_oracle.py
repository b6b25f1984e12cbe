"""The oracle: exact on rendered scenes, and lower scores for the wrong attribute alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from stillhouse.shapes.caption import Description, Phrase, describe, drop_words
from stillhouse.shapes.oracle import CaptionScore, read_scene, render_reading, score_picture
from stillhouse.shapes.scene import PALETTE, SHAPES, Figure, Scene, render_scene, sample_scene
from tests.captions import parse_caption

LEFT = Figure("circle", "red", "small", 16, 30, 7.5)
RIGHT = Figure("square", "blue", "big", 48, 34, 12.5)
SCENE = Scene((LEFT, RIGHT), "yellow", "left of")
CAPTION = describe(SCENE)


def score_figures(*figures: Figure, background: str = "yellow") -> CaptionScore:
    return score_picture(render_scene(Scene(figures, background)), CAPTION)


def test_two_thousand_rendered_scenes_are_recognised() -> None:
    rng = np.random.default_rng(20)
    results = []
    for _ in range(2000):
        scene = sample_scene(rng)
        results.append(score_picture(render_scene(scene), drop_words(describe(scene), rng)))
    assert np.mean([result.all_correct for result in results]) >= 0.995
    assert np.mean([result.strict for result in results]) >= 0.995
    assert min(result.rerender for result in results) > 45


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_centres_and_radii_are_exact_to_a_tenth_of_a_pixel(seed: int) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    figures = sorted(read_scene(render_scene(scene)).figures, key=lambda figure: (round(figure.x), figure.y))
    for truth in scene.figures:
        nearest = min(figures, key=lambda figure: abs(figure.x - truth.x) + abs(figure.y - truth.y))
        assert (nearest.x, nearest.y, nearest.radius) == pytest.approx((truth.x, truth.y, truth.radius), abs=0.1)


def test_attributes_without_mention_are_free() -> None:
    assert score_picture(render_scene(SCENE), parse_caption("a circle left of a square")).strict
    assert score_picture(render_scene(SCENE), parse_caption("a square right of a small circle")).strict


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "circle"])
def test_a_wrong_shape_costs_the_shape_alone(shape: str) -> None:
    result = score_figures(replace(LEFT, shape=shape), RIGHT)
    assert (result.shape, result.colour, result.size, result.relation, result.count) == (0.5, 1, 1, 1, 1)
    assert not result.all_correct


@pytest.mark.parametrize("colour", [colour for colour in PALETTE if colour not in ("red", "yellow", "blue")])
def test_a_wrong_colour_costs_the_colour_alone(colour: str) -> None:
    result = score_figures(replace(LEFT, colour=colour), RIGHT)
    assert (result.shape, result.colour, result.size, result.relation) == (1, 0.5, 1, 1)


def test_a_wrong_size_costs_the_size_alone() -> None:
    result = score_figures(replace(LEFT, size="big", radius=12.0), RIGHT)
    assert (result.shape, result.colour, result.size, result.relation) == (1, 1, 0.5, 1)


def test_a_swapped_relation_costs_the_relation_alone() -> None:
    result = score_figures(replace(LEFT, x=48), replace(RIGHT, x=16))
    assert (result.shape, result.colour, result.size, result.relation) == (1, 1, 1, 0)


def test_a_wrong_background_costs_the_background_alone() -> None:
    result = score_figures(LEFT, RIGHT, background="white")
    assert result.background == 0 and result.shape == result.colour == result.relation == 1


def test_a_missing_figure_is_counted() -> None:
    assert score_figures(LEFT).count == 0 and not score_figures(LEFT).all_correct


def test_an_extra_figure_is_counted() -> None:
    assert score_figures(LEFT, RIGHT, Figure("cross", "green", "small", 16, 54, 7.5)).count == 0


def test_swapped_colours_are_noticed() -> None:
    assert score_figures(replace(LEFT, colour="blue"), replace(RIGHT, colour="red")).colour == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda picture: ndimage.gaussian_filter(picture, (1.5, 1.5, 0)),
        lambda picture: _noisy(picture, 25),
        lambda picture: _with_blob(picture),
    ],
    ids=["blur", "noise", "stray blob"],
)
def test_an_unclean_picture_is_correct_but_not_strict(
    spoil: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    result = score_picture(spoil(render_scene(SCENE)), CAPTION)
    assert result.all_correct and not result.strict


def test_noise_meets_no_caption() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not score_picture(noise, CAPTION).all_correct


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 16))
def test_any_picture_can_be_scored(seed: int, grain: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 255], np.uint8), (64 // grain + 1, 64 // grain + 1, 3))
    picture = coarse.repeat(grain, 0).repeat(grain, 1)[:64, :64]
    assert not score_picture(np.ascontiguousarray(picture), CAPTION).strict


def test_a_figure_with_the_background_as_median_colour_is_recognised() -> None:
    picture = np.full((64, 64, 3), 20, np.uint8)
    for row in range(20, 40):
        picture[row, 20:40] = np.eye(3, dtype=np.uint8)[row % 3] * 235 + 20
    assert len(read_scene(picture).figures) == 1


def test_an_empty_picture_has_no_figures() -> None:
    reading = read_scene(np.full((64, 64, 3), 20, np.uint8))
    assert reading.figures == () and reading.background == "black" and reading.is_clean


def test_rendering_a_recognised_scene_reproduces_the_picture() -> None:
    picture = render_scene(SCENE)
    assert np.abs(render_reading(read_scene(picture)).astype(int) - picture).max() <= 24


def test_the_best_assignment_of_figures_to_phrases_counts() -> None:
    """Two red circles of different size, and a phrase without a size: either order may be meant."""
    twins = Scene((replace(LEFT, size="small"), replace(RIGHT, shape="circle", colour="red")), "yellow", "left of")
    caption = Description((Phrase("circle", "red"), Phrase("circle", "red", "big")), "left of")
    assert score_picture(render_scene(twins), caption).all_correct


def _noisy(picture: NDArray[np.uint8], deviation: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(3).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _with_blob(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    spoilt = picture.copy()
    spoilt[55:58, 4:8] = (20, 20, 20)
    return spoilt
