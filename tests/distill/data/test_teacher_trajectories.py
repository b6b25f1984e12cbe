"""Teacher trajectories: latents at the student's levels, edits, routes, resumption and batch size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import stillhouse
from stillhouse.backends import BackendStatus
from stillhouse.core import ImageRequest
from stillhouse.diffusion import NoiseLevel, Schedule, TimestepGrid, Trajectory, make_grid, noise_levels
from stillhouse.distill import strategies
from stillhouse.distill.data import shards
from stillhouse.distill.data.shards import write_shards
from stillhouse.distill.data.teacher_trajectories import (
    SOLVER,
    TeacherTrajectory,
    TrajectoryPlan,
    encode_trajectories,
    generate_trajectories,
    plan_route,
    wait_for_trajectories,
)
from stillhouse.distill.strategies import supports_openvino_bf16, with_denoiser_in_bf16, with_denoiser_on_gpu
from stillhouse.distill.training.distillation_stage import latent_psnr
from stillhouse.distill.training.step_grids import plan_edit_grids, refine
from stillhouse.errors import BackendFailed
from stillhouse.pipelines.manifest import StepCache
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.shapes.caption import is_held_out, random_training_caption

STEPS = 6


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return stillhouse.load("shapes", backend="onnxruntime", precision="f32")


@pytest.fixture(scope="module")
def student_grid(pipeline: Pipeline) -> TimestepGrid:
    return make_grid(pipeline.manifest.sampling.schedule, 3)


@pytest.fixture(scope="module")
def trajectories(pipeline: Pipeline, student_grid: TimestepGrid) -> list[TeacherTrajectory]:
    return list(
        generate_trajectories(
            pipeline, random_training_caption, TrajectoryPlan(student_grid, STEPS, 3, (2.0, 4.0), seed=1)
        )
    )


@pytest.fixture(scope="module")
def with_edits(pipeline: Pipeline, student_grid: TimestepGrid) -> list[TeacherTrajectory]:
    return list(generate_trajectories(pipeline, random_training_caption, plan_with_edits(pipeline, student_grid)))


def plan_with_edits(pipeline: Pipeline, student_grid: TimestepGrid, batch_size: int = 8) -> TrajectoryPlan:
    edits = plan_edit_grids(
        pipeline.manifest.sampling.schedule, STEPS, make_grid(pipeline.manifest.sampling.schedule, 2), (0.3, 0.8)
    )
    grids = {strength: one.student for strength, one in edits.items()}
    return TrajectoryPlan(student_grid, STEPS, 6, (2.0, 4.0), seed=1, edit_grids=grids, batch_size=batch_size)


def test_a_trajectory_has_the_teachers_latents_at_the_students_levels(
    pipeline: Pipeline, student_grid: TimestepGrid, trajectories: list[TeacherTrajectory]
) -> None:
    grid = refine(pipeline.manifest.sampling.schedule, student_grid, STEPS)
    rng = np.random.default_rng((1, 6, 0))
    caption, scale, seed = random_training_caption(rng), float(rng.uniform(2.0, 4.0)), int(rng.integers(2**62))
    assert (trajectories[0].caption, trajectories[0].guidance) == (caption, scale)
    started = pipeline.start(ImageRequest(caption, guidance=scale, seed=seed, sampler=SOLVER))
    alone = ImageTrajectory(
        started.plan.with_grid(grid),
        started.latents,
        started.branches,
        request=started.request,
        started=0.0,
    )
    levels = [alone.latents]
    while not alone.is_done:
        pipeline.advance([alone])
        if alone.is_done or grid.levels[alone.index] in student_grid.levels:
            levels.append(alone.latents)
    np.testing.assert_array_equal(trajectories[0].latents, np.stack(levels))


@pytest.mark.usefixtures("torch_threads")
def test_trajectories_of_a_teacher_on_torch_are_copied_to_numpy(pipeline: Pipeline, student_grid: TimestepGrid) -> None:
    """Latents are torch tensors there. Backends differ by 1e-6 in each evaluation, amplified by guidance."""
    torch_pipeline = stillhouse.load("shapes", backend="torch", precision="f32")
    first_set, second_set = (
        list(generate_trajectories(one, random_training_caption, plan_with_edits(one, student_grid)))
        for one in (torch_pipeline, pipeline)
    )
    for one, other in zip(first_set, second_set, strict=True):
        assert isinstance(one.latents, np.ndarray) and one.cond.keys() == other.cond.keys()
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-3)


def test_trajectories_are_decided_by_seed_and_number_alone(
    pipeline: Pipeline, student_grid: TimestepGrid, trajectories: list[TeacherTrajectory]
) -> None:
    (last,) = generate_trajectories(
        pipeline, random_training_caption, TrajectoryPlan(student_grid, STEPS, 3, (2.0, 4.0), seed=1), start=2
    )
    np.testing.assert_array_equal(last.latents, trajectories[2].latents)
    assert last.caption == trajectories[2].caption and last.guidance == trajectories[2].guidance
    assert all(
        trajectory.latents.shape == (4, 4, 16, 16) and 2 <= trajectory.guidance <= 4 for trajectory in trajectories
    )
    assert not any(is_held_out(trajectory.caption) for trajectory in trajectories)


def test_every_second_trajectory_is_an_edit_of_the_picture_before(
    pipeline: Pipeline,
    student_grid: TimestepGrid,
    trajectories: list[TeacherTrajectory],
    with_edits: list[TeacherTrajectory],
) -> None:
    plan = plan_with_edits(pipeline, student_grid)
    assert [trajectory.kind > 0 for trajectory in with_edits] == [False, True] * 3
    for one, edit, alone in zip(with_edits[::2], with_edits[1::2], trajectories, strict=True):
        np.testing.assert_allclose(one.latents, alone.latents, atol=1e-5)
        first = [*plan.edit_grids.values()][edit.kind - 1].levels[0]
        noise = (edit.latents[0] - first.alpha * one.latents[-1]) / first.sigma
        assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1
        assert edit.latents.shape == one.latents.shape, "padded, where it has fewer levels"
        np.testing.assert_array_equal(edit.latents[-1], edit.latents[-2])
        assert not is_held_out(edit.caption)


def test_an_edit_is_sampled_from_its_level(
    pipeline: Pipeline, student_grid: TimestepGrid, with_edits: list[TeacherTrajectory]
) -> None:
    edit = with_edits[1]
    plan = plan_with_edits(pipeline, student_grid)
    strength, own = [*plan.edit_grids.items()][edit.kind - 1]
    grid = refine(pipeline.manifest.sampling.schedule, own, max(4, round(STEPS * strength)))
    started = pipeline.start(ImageRequest(edit.caption, guidance=edit.guidance, sampler=SOLVER))
    sampling_plan = started.plan.with_grid(grid)
    alone = ImageTrajectory(sampling_plan, edit.latents[0], started.branches, request=started.request, started=0.0)
    while not alone.is_done:
        pipeline.advance([alone])
    np.testing.assert_allclose(edit.latents[-1], alone.latents, atol=1e-5)


@pytest.mark.parametrize("start", [1, 3, 4])
def test_trajectories_with_edits_resume_from_any_number(
    pipeline: Pipeline, student_grid: TimestepGrid, with_edits: list[TeacherTrajectory], start: int
) -> None:
    rest = list(
        generate_trajectories(
            pipeline, random_training_caption, plan_with_edits(pipeline, student_grid, batch_size=2), start
        )
    )
    assert [(trajectory.caption, trajectory.kind) for trajectory in rest] == [
        (trajectory.caption, trajectory.kind) for trajectory in with_edits[start:]
    ]
    for one, other in zip(rest, with_edits[start:], strict=True):
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


def test_stored_trajectories_are_gathered_unchanged(
    pipeline: Pipeline, trajectories: list[TeacherTrajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_SIZE", 2)
    assert write_shards(
        lambda start: trajectories[start:], partial(encode_trajectories, pipeline), tmp_path / "trajectories"
    )
    dataset = wait_for_trajectories(tmp_path / "trajectories")
    assert len(dataset) == 3 and dataset.kinds.tolist() == [0, 0, 0]
    shown = dataset.gather(torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([3, 1]))
    for row, (trajectory, place, reached) in enumerate([(trajectories[2], 1, 3), (trajectories[0], 0, 1)]):
        for tensor, expected in (
            (shown.start, trajectory.latents[0]),
            (shown.current, trajectory.latents[place]),
            (shown.end, trajectory.latents[reached]),
        ):
            assert torch.equal(tensor[row], torch.from_numpy(expected).half().float())
        states = torch.from_numpy(np.array(pipeline.encode_prompt(trajectory.caption)["encoder_hidden_states"]))
        assert torch.equal(shown.cond["encoder_hidden_states"][row], states.half().float())
        assert float(shown.guidance[row]) == np.float32(trajectory.guidance)


def test_a_passed_deadline_samples_none(pipeline: Pipeline, tmp_path: Path) -> None:
    def never(start: int) -> Iterator[TeacherTrajectory]:
        raise AssertionError("the deadline has passed")
        yield

    assert not write_shards(never, partial(encode_trajectories, pipeline), tmp_path / "trajectories", deadline=0.0)


OWN, THEIRS = Schedule(), Schedule(zero_terminal_snr=True)


def angle(point: NoiseLevel) -> float:
    return float(np.arctan2(point.sigma, point.alpha))


@pytest.mark.parametrize("steps", [1, 4, 9, 18, 36, 128])
def test_a_teacher_of_another_schedule_is_evaluated_at_its_nearest_levels(steps: int) -> None:
    student_grid = make_grid(THEIRS, steps)
    route = plan_route(OWN, student_grid, steps)
    assert route.start == student_grid.levels[0] and route.start.alpha == 0
    assert route.teacher_grid.timesteps[0] == 999, "pure noise is evaluated at its noisiest level"
    stored = [route.teacher_grid.levels[place] for place in route.stored_positions[:-1]]
    assert [*route.noisier_levels, *student_grid.levels[1 + len(route.noisier_levels) : -1]] == [
        *student_grid.levels[1:-1]
    ]
    alphas, sigmas = noise_levels(OWN)
    every = np.arctan2(sigmas, alphas)
    assert all(angle(point) > (every[-1] + every[-2]) / 2 for point in route.noisier_levels)
    for point, expected in zip(stored, student_grid.levels[1 + len(route.noisier_levels) :], strict=False):
        assert abs(angle(point) - angle(expected)) <= np.abs(every - angle(expected)).min() + 1e-12


def test_a_teacher_of_the_same_schedule_is_evaluated_at_the_same_levels() -> None:
    route = plan_route(THEIRS, make_grid(THEIRS, 4), 4)
    assert (
        route.teacher_grid == make_grid(THEIRS, 4)
        and not route.noisier_levels
        and route.stored_positions == (1, 2, 3, 4)
    )


def test_latents_at_levels_above_the_teachers_first_follow_its_first_prediction(pipeline: Pipeline) -> None:
    """The pipeline gets a schedule without zero terminal SNR."""
    manifest = replace(pipeline.manifest, sampling=replace(pipeline.manifest.sampling, schedule=OWN))
    unaware = Pipeline(pipeline.directory, backend="onnxruntime", precision="f32", manifest=manifest)
    plan = TrajectoryPlan(make_grid(THEIRS, 9), 12, 1, (2.0, 2.0), seed=0)
    (route,) = plan.routes(OWN)
    (trajectory,) = generate_trajectories(unaware, random_training_caption, plan)
    assert len(trajectory.latents) == 10 and len(route.noisier_levels) == 1
    started = unaware.start(ImageRequest(trajectory.caption, guidance=2.0, sampler=SOLVER))
    alone = ImageTrajectory(
        started.plan.with_grid(route.teacher_grid),
        trajectory.latents[0],
        started.branches,
        request=started.request,
        started=0.0,
    )
    unaware.advance([alone])
    assert alone.denoised is not None
    expected = route.noisier_levels[0].alpha * alone.denoised + route.noisier_levels[0].sigma * trajectory.latents[0]
    np.testing.assert_allclose(trajectory.latents[1], expected, atol=1e-5)


def test_edits_start_at_the_students_own_level() -> None:
    """At the largest strength, the student starts at more noise than a teacher without zero terminal SNR."""
    edit = plan_edit_grids(THEIRS, 12, make_grid(THEIRS, 3), (0.9,))[0.9].student
    route = plan_route(OWN, edit, 6)
    assert route.start == edit.levels[0] and route.start.alpha < noise_levels(OWN)[0].min()
    assert route.teacher_grid.timesteps[0] == 999


def test_the_batch_is_halved_when_memory_runs_out(
    pipeline: Pipeline,
    student_grid: TimestepGrid,
    trajectories: list[TeacherTrajectory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []
    advance = pipeline.advance

    def small(batch: Sequence[Trajectory]) -> None:
        batches.append(len(batch))
        if len(batch) > 1:
            raise BackendFailed("torch could not run unet: CUDA out of memory. Tried to allocate 20.00 GiB")
        advance(batch)

    monkeypatch.setattr(pipeline, "advance", small)
    again = list(
        generate_trajectories(
            pipeline, random_training_caption, TrajectoryPlan(student_grid, STEPS, 3, (2.0, 4.0), seed=1)
        )
    )
    assert batches[:3] == [3, 2, 1] and set(batches[3:]) == {1}
    for one, other in zip(again, trajectories, strict=True):
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


def test_other_failures_are_raised(
    pipeline: Pipeline, student_grid: TimestepGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: Sequence[Trajectory]) -> None:
        raise BackendFailed("torch could not run unet: no kernel")

    monkeypatch.setattr(pipeline, "advance", broken)
    with pytest.raises(BackendFailed, match="no kernel"):
        next(
            generate_trajectories(
                pipeline, random_training_caption, TrajectoryPlan(student_grid, STEPS, 3, (2.0, 4.0), seed=1)
            )
        )


@pytest.mark.parametrize(
    ("convert", "runs"),
    [(with_denoiser_on_gpu, ("torch", "f32", {"device": "cuda"})), (with_denoiser_in_bf16, ("openvino", "bf16", {}))],
    ids=["on a GPU", "in bf16"],
)
def test_the_unaccelerated_network_samples_trajectories(
    convert: Callable[[Pipeline], Pipeline], runs: tuple[str, str, Mapping[str, str]], pipeline: Pipeline
) -> None:
    manifest = pipeline.manifest
    quick = replace(manifest.components["denoiser"], graph="trials/int8/model.onnx", streams=2)
    cut = replace(
        manifest,
        components={**manifest.components, "denoiser": quick},
        step_cache=StepCache("unet/full.onnx", "unet/shallow.onnx"),
        defaults=replace(manifest.defaults, cache_interval=2),
    )
    converted = convert(Pipeline(pipeline.directory, manifest=cut)).manifest
    assert converted.step_cache is None and converted.defaults.cache_interval == 1
    unet = converted.components["denoiser"]
    assert (unet.graph, unet.streams) == ("unet/model.onnx", 1)
    assert (unet.backend, unet.precision, unet.settings) == runs


@pytest.mark.parametrize(("precisions", "is_quick"), [(("f32", "bf16", "auto"), True), (("f32", "auto"), False)])
def test_bf16_is_supported_where_the_cpu_has_it(
    precisions: tuple[str, ...], is_quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = BackendStatus("torch", "2", ("cpu",), ("f32", "bf16"), None, "")
    monkeypatch.setattr(strategies, "backends", lambda: (other, replace(other, name="openvino", precisions=precisions)))
    assert supports_openvino_bf16() == is_quick


@pytest.mark.skipif(not supports_openvino_bf16(), reason="a CPU without bf16")
def test_trajectories_in_bf16_end_near_those_in_float32(pipeline: Pipeline, student_grid: TimestepGrid) -> None:
    """The bound is between the error of bf16, 66 dB on the embedded model, and that of the solver, 44 dB."""
    plan = TrajectoryPlan(student_grid, STEPS, 4, (2.0, 4.0), seed=1)
    first_set, second_set = (
        list(generate_trajectories(one, random_training_caption, plan))
        for one in (with_denoiser_in_bf16(pipeline), pipeline)
    )
    ends = [
        torch.from_numpy(np.stack([trajectory.latents[-1] for trajectory in dataset]))
        for dataset in (first_set, second_set)
    ]
    assert latent_psnr(*ends) > 55
