"""Scenes: their rules, and deterministic rendering."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.shapes.scene import (
    CANVAS,
    PALETTE,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZE_BOUNDARY,
    SIZES,
    Figure,
    Scene,
    coverage,
    render_scene,
    sample_scene,
)

scenes = st.integers(0, 2**32).map(lambda seed: sample_scene(np.random.default_rng(seed)))


def test_the_vocabulary_is_large_enough() -> None:
    assert len(SHAPES) >= 3 and len(PALETTE) >= 6 and len(SIZES) == 2 and len(RELATIONS) == 4


def test_palette_colours_are_far_apart() -> None:
    colours = np.array(list(PALETTE.values()), float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(len(colours), dtype=bool)].min() > 100


def test_no_radius_lies_near_the_boundary_between_sizes() -> None:
    assert RADIUS["small"][1] + 2 <= SIZE_BOUNDARY <= RADIUS["big"][0] - 2


@given(scenes)
def test_figures_stay_on_the_canvas_and_apart(scene: Scene) -> None:
    covers = [coverage(f.shape, f.x, f.y, f.radius) > 0 for f in scene.figures]
    for cover in covers:
        assert not (cover[0].any() or cover[-1].any() or cover[:, 0].any() or cover[:, -1].any())
    assert np.sum(covers, axis=0).max() <= 1


@given(scenes)
def test_figures_differ_from_each_other_and_from_the_background(scene: Scene) -> None:
    assert len({(f.shape, f.colour, f.size) for f in scene.figures}) == len(scene.figures)
    assert scene.background not in {f.colour for f in scene.figures}


@given(scenes)
def test_the_relation_agrees_with_the_centres(scene: Scene) -> None:
    if scene.relation is None:
        assert len(scene.figures) == 1
        return
    first, second = scene.figures
    offset = {"left of": second.x - first.x, "right of": first.x - second.x}
    offset |= {"above": second.y - first.y, "below": first.y - second.y}
    assert offset[scene.relation] == max(offset.values()) >= 30


@given(scenes)
def test_rendering_is_deterministic(scene: Scene) -> None:
    picture = render_scene(scene)
    assert picture.dtype == np.uint8 and picture.shape == (CANVAS, CANVAS, 3)
    assert np.array_equal(picture, render_scene(scene))


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi), ("square", 1.76**2), ("triangle", 1.9**2 / 2)])
def test_covered_area_is_the_shape_s_own(shape: str, area: float) -> None:
    """Anti-aliased coverage integrates to the area; corners cost less than half a pixel each."""
    assert coverage(shape, 32.3, 31.8, 12.0).sum() == pytest.approx(area * 144, abs=2.0)


def test_moving_a_figure_by_whole_pixels_moves_its_pixels() -> None:
    here = render_scene(Scene((Figure("cross", "red", "small", 20.25, 30.5, 7.5),), "white"))
    there = render_scene(Scene((Figure("cross", "red", "small", 25.25, 27.5, 7.5),), "white"))
    assert np.array_equal(np.roll(here, (-3, 5), (0, 1)), there)


def test_the_number_of_figures_can_be_given() -> None:
    rng = np.random.default_rng(0)
    assert [len(sample_scene(rng, count).figures) for count in (1, 2, 1, 2)] == [1, 2, 1, 2]
