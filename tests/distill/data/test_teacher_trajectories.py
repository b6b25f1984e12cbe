"""Walks: what the teacher passes through, kept at a student's levels; and what a student learns from them."""

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
from stillhouse.distill.strategies import supports_openvino_bf16, with_unet_in_bf16, with_unet_on_gpu
from stillhouse.distill.training.stage import latent_psnr
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
def served(pipeline: Pipeline) -> TimestepGrid:
    return make_grid(pipeline.manifest.schedule, 3)


@pytest.fixture(scope="module")
def walked(pipeline: Pipeline, served: TimestepGrid) -> list[TeacherTrajectory]:
    return list(
        generate_trajectories(pipeline, random_training_caption, TrajectoryPlan(served, STEPS, 3, (2.0, 4.0), seed=1))
    )


@pytest.fixture(scope="module")
def edited(pipeline: Pipeline, served: TimestepGrid) -> list[TeacherTrajectory]:
    return list(generate_trajectories(pipeline, random_training_caption, plan_with_edits(pipeline, served)))


def plan_with_edits(pipeline: Pipeline, served: TimestepGrid, batch_size: int = 8) -> TrajectoryPlan:
    edits = plan_edit_grids(pipeline.manifest.schedule, STEPS, make_grid(pipeline.manifest.schedule, 2), (0.3, 0.8))
    grids = {strength: one.student for strength, one in edits.items()}
    return TrajectoryPlan(served, STEPS, 6, (2.0, 4.0), seed=1, edit_grids=grids, batch_size=batch_size)


def test_a_walk_is_the_teachers_own_at_the_students_levels(
    pipeline: Pipeline, served: TimestepGrid, walked: list[TeacherTrajectory]
) -> None:
    fine = refine(pipeline.manifest.schedule, served, STEPS)
    rng = np.random.default_rng((1, 6, 0))
    caption, scale, seed = random_training_caption(rng), float(rng.uniform(2.0, 4.0)), int(rng.integers(2**62))
    assert (walked[0].caption, walked[0].guidance) == (caption, scale)
    draft = pipeline.start(ImageRequest(caption, guidance=scale, seed=seed, sampler=SOLVER))
    alone = ImageTrajectory(
        replace(draft.plan, grid=fine),
        draft.latents,
        draft.conditioning,
        draft.unconditional,
        request=draft.request,
        started=0.0,
    )
    levels = [alone.latents]
    while not alone.is_done:
        pipeline.advance([alone])
        if alone.is_done or fine.levels[alone.index] in served.levels:
            levels.append(alone.latents)
    np.testing.assert_array_equal(walked[0].latents, np.stack(levels))


@pytest.mark.usefixtures("torch_threads")
def test_walks_of_a_teacher_on_torch_are_read_as_they_pass(pipeline: Pipeline, served: TimestepGrid) -> None:
    """Its latents lie where torch runs it. Two engines differ by 1e-6 in each evaluation, and guidance widens that."""
    there = stillhouse.load("shapes", backend="torch", precision="f32")
    ours, theirs = (
        list(generate_trajectories(one, random_training_caption, plan_with_edits(one, served)))
        for one in (there, pipeline)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one.latents, np.ndarray) and one.cond.keys() == other.cond.keys()
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-3)


def test_walks_are_decided_by_seed_and_number_alone(
    pipeline: Pipeline, served: TimestepGrid, walked: list[TeacherTrajectory]
) -> None:
    (last,) = generate_trajectories(
        pipeline, random_training_caption, TrajectoryPlan(served, STEPS, 3, (2.0, 4.0), seed=1), start=2
    )
    np.testing.assert_array_equal(last.latents, walked[2].latents)
    assert last.caption == walked[2].caption and last.guidance == walked[2].guidance
    assert all(walk.latents.shape == (4, 4, 16, 16) and 2 <= walk.guidance <= 4 for walk in walked)
    assert not any(is_held_out(walk.caption) for walk in walked)


def test_every_second_walk_is_an_edit_of_the_picture_before(
    pipeline: Pipeline, served: TimestepGrid, walked: list[TeacherTrajectory], edited: list[TeacherTrajectory]
) -> None:
    plan = plan_with_edits(pipeline, served)
    assert [walk.kind > 0 for walk in edited] == [False, True] * 3
    for one, edit, alone in zip(edited[::2], edited[1::2], walked, strict=True):
        np.testing.assert_allclose(one.latents, alone.latents, atol=1e-5)
        first = [*plan.edit_grids.values()][edit.kind - 1].levels[0]
        noise = (edit.latents[0] - first.alpha * one.latents[-1]) / first.sigma
        assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1
        assert edit.latents.shape == one.latents.shape, "filled up, where it has fewer levels"
        np.testing.assert_array_equal(edit.latents[-1], edit.latents[-2])
        assert not is_held_out(edit.caption)


def test_an_edit_walks_on_from_its_level(
    pipeline: Pipeline, served: TimestepGrid, edited: list[TeacherTrajectory]
) -> None:
    edit = edited[1]
    plan = plan_with_edits(pipeline, served)
    strength, own = [*plan.edit_grids.items()][edit.kind - 1]
    fine = refine(pipeline.manifest.schedule, own, max(4, round(STEPS * strength)))
    draft = pipeline.start(ImageRequest(edit.caption, guidance=edit.guidance, sampler=SOLVER))
    course = replace(draft.plan, grid=fine)
    asked = (draft.conditioning, draft.unconditional)
    alone = ImageTrajectory(course, edit.latents[0], *asked, request=draft.request, started=0.0)
    while not alone.is_done:
        pipeline.advance([alone])
    np.testing.assert_allclose(edit.latents[-1], alone.latents, atol=1e-5)


@pytest.mark.parametrize("begin", [1, 3, 4])
def test_walks_with_edits_go_on_from_any_number(
    pipeline: Pipeline, served: TimestepGrid, edited: list[TeacherTrajectory], begin: int
) -> None:
    rest = list(
        generate_trajectories(pipeline, random_training_caption, plan_with_edits(pipeline, served, batch_size=2), begin)
    )
    assert [(walk.caption, walk.kind) for walk in rest] == [(walk.caption, walk.kind) for walk in edited[begin:]]
    for one, other in zip(rest, edited[begin:], strict=True):
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


def test_what_is_kept_is_shown_again(
    pipeline: Pipeline, walked: list[TeacherTrajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PART", 2)
    assert write_shards(lambda begin: walked[begin:], partial(encode_trajectories, pipeline), tmp_path / "walks")
    walks = wait_for_trajectories(tmp_path / "walks")
    assert len(walks) == 3 and walks.kinds.tolist() == [0, 0, 0]
    shown = walks.gather(torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([3, 1]))
    for row, (walk, place, reached) in enumerate([(walked[2], 1, 3), (walked[0], 0, 1)]):
        for tensor, wanted in (
            (shown.start, walk.latents[0]),
            (shown.current, walk.latents[place]),
            (shown.end, walk.latents[reached]),
        ):
            assert torch.equal(tensor[row], torch.from_numpy(wanted).half().float())
        states = torch.from_numpy(np.array(pipeline.encode_prompt(walk.caption)["encoder_hidden_states"]))
        assert torch.equal(shown.cond["encoder_hidden_states"][row], states.half().float())
        assert float(shown.guidance[row]) == np.float32(walk.guidance)


def test_no_time_makes_none(pipeline: Pipeline, tmp_path: Path) -> None:
    def never(begin: int) -> Iterator[TeacherTrajectory]:
        raise AssertionError("there is no time for any")
        yield

    assert not write_shards(never, partial(encode_trajectories, pipeline), tmp_path / "walks", deadline=0.0)


OWN, THEIRS = Schedule(), Schedule(zero_terminal_snr=True)


def angle(point: NoiseLevel) -> float:
    return float(np.arctan2(point.sigma, point.alpha))


@pytest.mark.parametrize("steps", [1, 4, 9, 18, 36, 128])
def test_a_teacher_of_another_schedule_is_asked_at_its_nearest_levels(steps: int) -> None:
    served = make_grid(THEIRS, steps)
    route = plan_route(OWN, served, steps)
    assert route.start == served.levels[0] and route.start.alpha == 0
    assert route.teacher_grid.timesteps[0] == 999, "pure noise is shown to it at its noisiest level"
    kept = [route.teacher_grid.levels[place] for place in route.stored_positions[:-1]]
    assert [*route.noisier_levels, *served.levels[1 + len(route.noisier_levels) : -1]] == [*served.levels[1:-1]]
    alphas, sigmas = noise_levels(OWN)
    every = np.arctan2(sigmas, alphas)
    assert all(angle(point) > (every[-1] + every[-2]) / 2 for point in route.noisier_levels)
    for point, wanted in zip(kept, served.levels[1 + len(route.noisier_levels) :], strict=False):
        assert abs(angle(point) - angle(wanted)) <= np.abs(every - angle(wanted)).min() + 1e-12


def test_a_teacher_of_the_same_schedule_is_asked_at_the_very_levels() -> None:
    route = plan_route(THEIRS, make_grid(THEIRS, 4), 4)
    assert (
        route.teacher_grid == make_grid(THEIRS, 4)
        and not route.noisier_levels
        and route.stored_positions == (1, 2, 3, 4)
    )


def test_levels_that_a_teacher_does_not_know_lie_on_the_way_to_what_it_sees_first(pipeline: Pipeline) -> None:
    """For that the pipeline is taken for one that was never taught pure noise."""
    manifest = replace(pipeline.manifest, schedule=OWN)
    unaware = Pipeline(pipeline.directory, backend="onnxruntime", precision="f32", manifest=manifest)
    plan = TrajectoryPlan(make_grid(THEIRS, 9), 12, 1, (2.0, 2.0), seed=0)
    (route,) = plan.routes(OWN)
    (walk,) = generate_trajectories(unaware, random_training_caption, plan)
    assert len(walk.latents) == 10 and len(route.noisier_levels) == 1
    draft = unaware.start(ImageRequest(walk.caption, guidance=2.0, sampler=SOLVER))
    asked = (draft.conditioning, draft.unconditional)
    alone = ImageTrajectory(
        replace(draft.plan, grid=route.teacher_grid), walk.latents[0], *asked, request=draft.request, started=0.0
    )
    unaware.advance([alone])
    assert alone.denoised is not None
    wanted = route.noisier_levels[0].alpha * alone.denoised + route.noisier_levels[0].sigma * walk.latents[0]
    np.testing.assert_allclose(walk.latents[1], wanted, atol=1e-5)


def test_edits_are_laid_out_at_the_students_own_level() -> None:
    """By the strongest, the student begins at more noise than a teacher knows that was never taught pure noise."""
    edit = plan_edit_grids(THEIRS, 12, make_grid(THEIRS, 3), (0.9,))[0.9].student
    route = plan_route(OWN, edit, 6)
    assert route.start == edit.levels[0] and route.start.alpha < noise_levels(OWN)[0].min()
    assert route.teacher_grid.timesteps[0] == 999


def test_where_memory_is_too_small_fewer_are_drawn_at_once(
    pipeline: Pipeline, served: TimestepGrid, walked: list[TeacherTrajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    advance = pipeline.advance

    def small(drafts: Sequence[Trajectory]) -> None:
        taken.append(len(drafts))
        if len(drafts) > 1:
            raise BackendFailed("torch could not run unet: CUDA out of memory. Tried to allocate 20.00 GiB")
        advance(drafts)

    monkeypatch.setattr(pipeline, "advance", small)
    again = list(
        generate_trajectories(pipeline, random_training_caption, TrajectoryPlan(served, STEPS, 3, (2.0, 4.0), seed=1))
    )
    assert taken[:3] == [3, 2, 1] and set(taken[3:]) == {1}
    for one, other in zip(again, walked, strict=True):
        np.testing.assert_allclose(one.latents, other.latents, atol=1e-5)


def test_other_failures_are_told(pipeline: Pipeline, served: TimestepGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(drafts: Sequence[Trajectory]) -> None:
        raise BackendFailed("torch could not run unet: no kernel")

    monkeypatch.setattr(pipeline, "advance", broken)
    with pytest.raises(BackendFailed, match="no kernel"):
        next(
            generate_trajectories(
                pipeline, random_training_caption, TrajectoryPlan(served, STEPS, 3, (2.0, 4.0), seed=1)
            )
        )


@pytest.mark.parametrize(
    ("moved", "runs"),
    [(with_unet_on_gpu, ("torch", "f32", {"device": "cuda"})), (with_unet_in_bf16, ("openvino", "bf16", {}))],
    ids=["on a GPU", "in halves"],
)
def test_the_teachers_whole_network_walks_however_it_was_accelerated(
    moved: Callable[[Pipeline], Pipeline], runs: tuple[str, str, Mapping[str, str]], pipeline: Pipeline
) -> None:
    manifest = pipeline.manifest
    quick = replace(manifest.components["unet"], graph="trials/int8/model.onnx", streams=2)
    cut = replace(
        manifest,
        components={**manifest.components, "unet": quick},
        step_cache=StepCache("unet/full.onnx", "unet/shallow.onnx"),
        defaults=replace(manifest.defaults, cache_interval=2),
    )
    walking = moved(Pipeline(pipeline.directory, manifest=cut)).manifest
    assert walking.step_cache is None and walking.defaults.cache_interval == 1
    unet = walking.components["unet"]
    assert (unet.graph, unet.streams) == ("unet/model.onnx", 1)
    assert (unet.backend, unet.precision, unet.settings) == runs


@pytest.mark.parametrize(("precisions", "is_quick"), [(("f32", "bf16", "auto"), True), (("f32", "auto"), False)])
def test_bf16_is_taken_where_the_processor_has_it(
    precisions: tuple[str, ...], is_quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = BackendStatus("torch", "2", ("cpu",), ("f32", "bf16"), None, "")
    monkeypatch.setattr(strategies, "backends", lambda: (other, replace(other, name="openvino", precisions=precisions)))
    assert supports_openvino_bf16() == is_quick


@pytest.mark.skipif(not supports_openvino_bf16(), reason="a processor without bf16")
def test_walks_in_halves_come_where_others_do(pipeline: Pipeline, served: TimestepGrid) -> None:
    """The bound is between what bf16 costs, 66 dB on the whole of the embedded world, and the solver's own 44 dB."""
    plan = TrajectoryPlan(served, STEPS, 4, (2.0, 4.0), seed=1)
    ours, theirs = (
        list(generate_trajectories(one, random_training_caption, plan))
        for one in (with_unet_in_bf16(pipeline), pipeline)
    )
    ends = [torch.from_numpy(np.stack([walk.latents[-1] for walk in walks])) for walks in (ours, theirs)]
    assert latent_psnr(*ends) > 55
