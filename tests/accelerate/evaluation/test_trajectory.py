"""Recorded trajectories: closed forms of local errors, and the recording of the embedded model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.evaluation.trajectory import (
    RecordedTrajectory,
    local_error,
    read_trajectory,
    record_trajectory,
    write_trajectory,
)
from stillhouse.core import ImageRequest
from stillhouse.diffusion import Evaluation, SamplingPlan, add_noise
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.resolve import resolve

STEPS = 12


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load("shapes", threads=1)


def plan(pipeline: Pipeline, **options: object) -> SamplingPlan:
    return resolve(pipeline.manifest, ImageRequest("", **options)).plan  # type: ignore[arg-type]


def constant_trajectory(evaluations: tuple[Evaluation, ...], guidance: float = 0.0) -> RecordedTrajectory:
    """A trajectory of a network that always predicts the same picture; `guidance` is its change by guidance."""
    rng = np.random.default_rng(0)
    clean, noise = (rng.standard_normal((4, 8, 8)).astype(np.float32) for _ in range(2))
    levels = [evaluation.level for evaluation in evaluations]
    latents = np.array([add_noise(clean, noise, level.alpha, level.sigma) for level in levels], np.float32)
    guided = np.array([clean] * len(levels))
    return RecordedTrajectory(
        np.array([level.alpha for level in levels]),
        np.array([level.sigma for level in levels]),
        np.array([level.timestep for level in levels]),
        latents,
        guided,
        np.asarray(guided * (1 - guidance), np.float32),
        clean,
    )


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc"])
def test_a_constant_prediction_makes_no_error_with_any_steps(pipeline: Pipeline, sampler: str) -> None:
    recorded = constant_trajectory(plan(pipeline, steps=STEPS).evaluations)
    assert local_error([recorded], plan(pipeline, steps=4, sampler=sampler)) < 1e-4


def test_the_error_of_unguided_steps_is_the_share_of_the_picture_that_guidance_adds(pipeline: Pipeline) -> None:
    recorded = constant_trajectory(plan(pipeline, steps=STEPS).evaluations, guidance=0.1)
    first_half = plan(pipeline, steps=2, guidance_interval=(0.0, 0.4))
    last = first_half.evaluations[-1].coefficients.x0
    assert local_error([recorded], first_half) == pytest.approx(0.1 * last, rel=1e-3)
    assert local_error([recorded], plan(pipeline, steps=2)) < 1e-4


def test_recording_changes_no_picture_and_its_own_plan_has_no_error(pipeline: Pipeline) -> None:
    request = ImageRequest("a red circle", seed=3, steps=STEPS)
    recorded = record_trajectory(pipeline, request)
    trajectory = pipeline.start(request)
    for _ in pipeline.steps([trajectory]):
        pass
    assert np.array_equal(recorded.final, trajectory.latents)
    assert recorded.latents.shape == recorded.guided.shape == recorded.unguided.shape == (STEPS, 4, 16, 16)
    assert np.linalg.norm(recorded.guided - recorded.unguided) > 0.01 * np.linalg.norm(recorded.guided)
    assert local_error([recorded], trajectory.plan) < 1e-4


def test_errors_grow_with_fewer_steps_less_guidance_and_longer_caching(pipeline: Pipeline) -> None:
    recorded = [record_trajectory(pipeline, ImageRequest("a red circle", seed=3, steps=2 * STEPS))]
    fewer = [local_error(recorded, plan(pipeline, steps=steps)) for steps in (STEPS, 8, 4)]
    assert fewer == sorted(fewer) and fewer[0] > 0
    shorter = [
        local_error(recorded, plan(pipeline, steps=2 * STEPS, guidance_interval=(0.0, end))) for end in (1, 0.6, 0.3)
    ]
    assert shorter == sorted(shorter)
    whole = plan(pipeline, steps=2 * STEPS)
    cached = [local_error(recorded, replace(whole, cache_interval=interval)) for interval in (1, 2, 3)]
    assert cached == sorted(cached)


def test_a_trajectory_is_read_as_it_was_written(pipeline: Pipeline, tmp_path: Path) -> None:
    recorded = constant_trajectory(plan(pipeline, steps=3).evaluations)
    write_trajectory(tmp_path / "a" / "trajectory.npz", recorded)
    stored = read_trajectory(tmp_path / "a" / "trajectory.npz")
    assert np.array_equal(stored.latents, recorded.latents) and np.array_equal(stored.final, recorded.final)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["trajectory.npz"]
