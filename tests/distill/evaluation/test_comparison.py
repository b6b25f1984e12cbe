"""The judge: the teacher stands against itself without a gap; what hurried ways lose is seen."""

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
    monkeypatch.setattr(comparison, "SEEDS", 3)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes")


def mean_colours(pictures: Sequence[Picture]) -> Features:
    """Mean colours of the quarters of each picture: enough to tell sets of pictures apart."""
    return np.array([picture.reshape(2, 32, 2, 32, 3).mean(axis=(1, 3)).ravel() for picture in pictures])


def make_setup(pipeline: Pipeline, name: str, **asked: object) -> GenerationSetup:
    return GenerationSetup(name, pipeline, ImageRequest("", **asked))  # type: ignore[arg-type]


@pytest.mark.parametrize("has_oracle", [True, False])
def test_the_teacher_stands_against_itself_without_a_gap(pipeline: Pipeline, has_oracle: bool) -> None:
    known = shapes_caption_set(FEW)
    subject = known if has_oracle else CaptionSet(known.prompts)
    first, again, hurried = compare_setups(
        [
            make_setup(pipeline, "one", steps=4),
            make_setup(pipeline, "two", steps=4),
            make_setup(pipeline, "three", steps=1, guidance=1.0),
        ],
        subject,
        mean_colours,
    ).results
    assert again.psnr >= 99 and again.ssim == pytest.approx(1.0) and again.diversity == 1.0
    assert hurried.psnr < 40 and hurried.rows == 1 and first.rows == 8
    if has_oracle:
        assert all(one == ScoreDelta(0.0, 0.0, 0.0) for one in again.gaps.values())
        assert set(first.scores) >= {"all_correct", "strict"} and first.rerender is not None
    else:
        assert not first.scores and not first.gaps and first.rerender is None
        assert first.frechet == pytest.approx(0.0, abs=1e-2) and first.precision == first.recall == 1.0
    assert all(one.alone.median > 0 for one in (first, again, hurried))


def test_pictures_are_kept_with_their_prompts(pipeline: Pipeline) -> None:
    found = compare_setups([make_setup(pipeline, "one", steps=1)], shapes_caption_set(FEW), mean_colours)
    assert found.prompts == shapes_caption_set(FEW).prompts[:8]
    assert [picture.shape for picture in found.pictures["one"]] == [(64, 64, 3)] * 8
    alone = pipeline.generate(found.prompts[3], seed=3, steps=1).image
    np.testing.assert_array_equal(found.pictures["one"][3], alone)


def test_the_teacher_is_hurried_as_much_as_each_student_and_by_two_samplers(pipeline: Pipeline) -> None:
    teacher = make_setup(pipeline, "teacher", steps=35)
    ways = comparison_setups(
        teacher,
        [
            make_setup(pipeline, "three", steps=3),
            make_setup(pipeline, "again", steps=3),
            make_setup(pipeline, "one", steps=1),
        ],
    )
    names = [one.name for one in ways]
    assert len(set(names)) == len(names) and names[:4] == ["teacher", "three", "again", "one"]
    assert {"ddim 2 guided", "ddim 3 unguided", "ddim 3 guided", "dpmpp_2m 3 unguided", "ddim 1 unguided"} <= set(names)
    hurried = next(one for one in ways if one.name == "ddim 3 unguided")
    draft = pipeline.start(pipeline.resolve(hurried.request))
    assert (draft.evaluation_count, draft.rows) == (3, 1)


def test_a_gap_is_a_mean_of_pairs_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.random(500)
    found = paired_delta(theirs - 0.1 + 0.01 * rng.standard_normal(500), theirs)
    assert found.low < found.value < found.high and found.value == pytest.approx(-0.1, abs=0.005)
    assert found.high - found.low < 0.005  # pairs: what both share does not widen it
