"""Comparison of setups: deltas, baselines at few steps, and bootstrap intervals."""

from collections.abc import Sequence

import numpy as np
import pytest

from stillhouse import load
from stillhouse.core import ImageRequest, Picture
from stillhouse.distill.evaluation import comparison
from stillhouse.distill.evaluation.comparison import (
    CaptionSet,
    GenerationSetup,
    ScoreDelta,
    compare_setups,
    comparison_setups,
    paired_delta,
    shapes_caption_set,
)
from stillhouse.measure.set_metrics import Features
from stillhouse.pipelines.pipeline import Pipeline

FEW = 12


@pytest.fixture(autouse=True)
def few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "DIVERSITY_SEEDS", 3)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


def mean_colours(pictures: Sequence[Picture]) -> Features:
    """Return the mean colours of the quarters of each picture as features."""
    return np.array([picture.reshape(2, 32, 2, 32, 3).mean(axis=(1, 3)).ravel() for picture in pictures])


def make_setup(pipeline: Pipeline, name: str, **fields: object) -> GenerationSetup:
    return GenerationSetup(name, pipeline, ImageRequest("", **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("has_oracle", [True, False])
def test_the_deltas_of_the_teacher_to_itself_are_zero(pipeline: Pipeline, has_oracle: bool) -> None:
    shapes = shapes_caption_set(FEW)
    captions = shapes if has_oracle else CaptionSet(shapes.prompts)
    first, again, few_steps = compare_setups(
        [
            make_setup(pipeline, "one", steps=4),
            make_setup(pipeline, "two", steps=4),
            make_setup(pipeline, "three", steps=1, guidance=1.0),
        ],
        captions,
        mean_colours,
    ).results
    assert again.psnr >= 99 and again.ssim == pytest.approx(1.0) and again.relative_diversity == 1.0
    assert few_steps.psnr < 40 and few_steps.denoiser_rows == 1 and first.denoiser_rows == 8
    if has_oracle:
        assert all(delta == ScoreDelta(0.0, 0.0, 0.0) for delta in again.deltas.values())
        assert set(first.scores) >= {"all_correct", "strict"} and first.rerender is not None
    else:
        assert not first.scores and not first.deltas and first.rerender is None
        assert first.frechet == pytest.approx(0.0, abs=1e-2) and first.precision == first.recall == 1.0
    assert all(result.latency.median > 0 for result in (first, again, few_steps))


def test_pictures_are_returned_with_their_prompts(pipeline: Pipeline) -> None:
    comparison_ = compare_setups([make_setup(pipeline, "one", steps=1)], shapes_caption_set(FEW), mean_colours)
    assert comparison_.prompts == shapes_caption_set(FEW).prompts[:8]
    assert [picture.shape for picture in comparison_.pictures["one"]] == [(64, 64, 3)] * 8
    alone = pipeline.generate(comparison_.prompts[3], seed=3, steps=1).image
    np.testing.assert_array_equal(comparison_.pictures["one"][3], alone)


def test_baselines_have_the_students_rows_and_two_samplers(pipeline: Pipeline) -> None:
    teacher = make_setup(pipeline, "teacher", steps=35)
    setups = comparison_setups(
        teacher,
        [
            make_setup(pipeline, "three", steps=3),
            make_setup(pipeline, "again", steps=3),
            make_setup(pipeline, "one", steps=1),
        ],
    )
    names = [setup.name for setup in setups]
    assert len(set(names)) == len(names) and names[:4] == ["teacher", "three", "again", "one"]
    assert {"ddim 2 guided", "ddim 3 unguided", "ddim 3 guided", "dpmpp_2m 3 unguided", "ddim 1 unguided"} <= set(names)
    baseline = next(setup for setup in setups if setup.name == "ddim 3 unguided")
    trajectory = pipeline.start(pipeline.resolve(baseline.request))
    assert (trajectory.evaluation_count, trajectory.rows) == (3, 1)


def test_a_delta_is_a_paired_mean_within_its_interval() -> None:
    rng = np.random.default_rng(1)
    baseline = rng.random(500)
    delta = paired_delta(baseline - 0.1 + 0.01 * rng.standard_normal(500), baseline)
    assert delta.low < delta.value < delta.high and delta.value == pytest.approx(-0.1, abs=0.005)
    assert delta.high - delta.low < 0.005  # the variation that pairs share does not widen the interval
