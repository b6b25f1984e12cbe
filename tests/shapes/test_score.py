"""Caption evaluation: held-out captions, confidence intervals and scores."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core import ImageRequest, ImageResult, Picture
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.shapes.caption import is_held_out
from stillhouse.shapes.scene import render_scene
from stillhouse.shapes.score import evaluate_captions, held_out_captions, wilson_interval


class FakeTrajectory:
    """A trajectory of two steps."""

    def __init__(self, request: ImageRequest) -> None:
        self.request, self.steps = request, 0

    @property
    def is_done(self) -> bool:
        return self.steps == 2


class TruthPipeline:
    """Generates the scene of each caption, but a black picture for every `wrong`-th."""

    def __init__(self, wrong: int) -> None:
        self.wrong, self.width = wrong, 64
        self.manifest = SimpleNamespace(name="painter")
        self.truths = {str(caption): render_scene(scene) for scene, caption in held_out_captions(24)}

    def resolve(self, request: ImageRequest) -> SimpleNamespace:
        fields: dict[str, Any] = {"steps": 2, "guidance": 1.0, "sampler": "ddim", "width": self.width, "height": 64}
        return SimpleNamespace(request=replace(request, **fields))

    def start(self, request: ImageRequest) -> FakeTrajectory:
        return FakeTrajectory(request)

    def advance(self, trajectories: Sequence[FakeTrajectory]) -> None:
        for trajectory in trajectories:
            trajectory.steps += 1

    def finish(self, trajectory: FakeTrajectory) -> ImageResult:
        empty = np.zeros((64, 64, 3), np.uint8)
        picture = empty if trajectory.request.seed % self.wrong == 0 else self.truths[trajectory.request.prompt]
        return ImageResult(picture, trajectory.request, 0.0)

    def encode_image(self, picture: Picture) -> Picture:
        return picture

    def decode(self, latents: Picture) -> Picture:
        return latents


def truth_pipeline(wrong: int) -> Pipeline:
    return cast(Pipeline, cast(Any, TruthPipeline(wrong)))


def test_the_thousand_captions_are_held_out_and_deterministic() -> None:
    first, again = held_out_captions(1000), held_out_captions(1000)
    assert first == again
    assert all(is_held_out(str(caption)) for _, caption in first)


def test_scores_count_right_pictures() -> None:
    progress: list[int] = []
    evaluation = evaluate_captions(truth_pipeline(wrong=4), ImageRequest(""), captions=24, progress=progress.append)
    assert evaluation.scores["all_correct"].value == pytest.approx(18 / 24)
    assert evaluation.scores["count"].value == pytest.approx(18 / 24)
    assert evaluation.ceiling["all_correct"].value == evaluation.ceiling["strict"].value == 1.0
    assert progress == [8, 16, 24] and (evaluation.steps, evaluation.sampler) == (2, "ddim")


def test_a_model_of_another_size_is_refused_before_generation() -> None:
    wide = TruthPipeline(wrong=4)
    wide.manifest = SimpleNamespace(name="wide")
    wide.width = 512
    with pytest.raises(InvalidRequest, match="wide generates 512x64"):
        evaluate_captions(cast(Pipeline, cast(Any, wide)), ImageRequest(""), captions=24)


@given(st.integers(1, 2000).flatmap(lambda tries: st.tuples(st.integers(0, tries), st.just(tries))))
def test_an_interval_contains_its_share_and_stays_within_zero_and_one(pair: tuple[int, int]) -> None:
    share = wilson_interval(*pair)
    assert -1e-12 <= share.low <= share.value + 1e-12 and share.value - 1e-12 <= share.high <= 1 + 1e-12


def test_the_interval_covers_the_true_share_in_95_percent() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.9, size=2000)
    covered = [share.low <= 0.9 <= share.high for share in (wilson_interval(int(hits), 200) for hits in draws)]
    assert 0.93 <= np.mean(covered) <= 0.975
