"""Students of kept walks: what they are told, how they end, and that they go on to the same bits."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import Schedule, make_grid
from stillhouse.distill.data.teacher_trajectories import TrajectoryDataset
from stillhouse.distill.settings import EDIT_STRENGTHS
from stillhouse.distill.training import trajectory_regression
from stillhouse.distill.training.networks import Denoiser, GuidedInputs, add_guidance_embedding
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, freeze
from stillhouse.distill.training.stage import full_rollout, latent_psnr
from stillhouse.distill.training.step_grids import coarsen, plan_edit_grids
from stillhouse.distill.training.targets import make_level_table
from stillhouse.distill.training.trajectory_chain import plan_student_grids, train_on_trajectories
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import UpdateLog
from tests.checkpoints import unet

SCHEDULE = Schedule(zero_terminal_snr=True)
SHORT = StageRecipe(
    updates=6, batch_size=4, learning_rate=1e-3, warmup_updates=1, decay_fraction=0.5, report_every=2, eval_every=6
)
RECIPE = ChainRecipe(
    step_counts=(12, 4, 2),
    method="walks",
    guidance=(1.0, 4.0),
    guidance_recipe=SHORT,
    step_recipes={4: SHORT, 2: SHORT},
    eval_samples=2,
)
TRAJECTORIES = 12


def teacher() -> Denoiser:
    torch.manual_seed(0)
    return freeze(Denoiser(add_guidance_embedding(unet("sd2")), SCHEDULE, "v_prediction"))


def random_trajectories(levels: int = 5, kinds: int = 1) -> TrajectoryDataset:
    generator = torch.Generator().manual_seed(1)
    return TrajectoryDataset(
        torch.randn(TRAJECTORIES, levels, 4, 8, 8, generator=generator).half(),
        torch.arange(TRAJECTORIES) % 3,
        torch.rand(TRAJECTORIES, generator=generator) * 3 + 1,
        {"encoder_hidden_states": torch.randn(3, 7, 32, generator=generator).half()},
        torch.arange(TRAJECTORIES) % kinds,
        {"encoder_hidden_states": torch.randn(1, 7, 32, generator=generator).half()},
    )


def student_trajectories(denoiser: Denoiser, count: int) -> TrajectoryDataset:
    """Walks of a network that takes so many steps: it has nothing to learn from them."""
    walks, walk = random_trajectories(), make_level_table(make_grid(SCHEDULE, count))
    shown = walks.gather(
        torch.arange(TRAJECTORIES),
        torch.zeros(TRAJECTORIES, dtype=torch.int64),
        torch.zeros(TRAJECTORIES, dtype=torch.int64),
    )
    sees = denoiser.denoise_fn(GuidedInputs(shown.cond, {}, shown.guidance))
    levels = [shown.start]
    with torch.no_grad():
        for place in range(1, count + 1):
            stop = replace(
                walk, **{name: getattr(walk, name)[: place + 1] for name in ("timesteps", "alphas", "sigmas")}
            )
            levels.append(full_rollout(sees, shown.start, stop))
    return replace(walks, latents=torch.stack(levels, dim=1).half())


def regression_stage(dataset: TrajectoryDataset, denoiser: Denoiser, **fields: object) -> TrajectoryRegressionStage:
    (served,) = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4)))
    told = {"name": "4-steps", "recipe": SHORT, "walks": dataset, "judged": 2}
    told |= {"kept": served.all_grids, "served": served.all_grids}
    network = {"unet": denoiser.unet, "schedule": denoiser.schedule, "prediction": denoiser.prediction}
    return TrajectoryRegressionStage(**{**told, **network, **fields})


def ignore_update(tick: UpdateLog) -> None:
    pass


def weights(student: Student) -> list[Tensor]:
    return list(student.denoiser.unet.state_dict().values())


def test_who_walks_as_the_walks_do_has_nothing_to_learn() -> None:
    """Halves round the levels by 5e-4, and a step from pure noise to alpha 0.3 makes three times that of it."""
    denoiser = teacher()
    same = regression_stage(student_trajectories(denoiser, 4), denoiser)
    with torch.no_grad():
        assert max(float(same.loss(number)) for number in range(4)) < 1e-4
        assert float(regression_stage(random_trajectories(), denoiser).loss(0)) > 0.1
    assert same.evaluate()["agreement"] > 60


def test_what_is_shown_is_where_the_student_comes_itself_every_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told the way back from there: with its own steps only, walks that it does not take change what it is shown."""
    denoiser = teacher()
    seen: list[Tensor] = []

    def noted(lesson: TrajectoryRegressionStage) -> list[Tensor]:
        hook = denoiser.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        with torch.no_grad():
            lesson.loss(3)
        hook.remove()
        return seen

    monkeypatch.setattr(trajectory_regression, "OWN", 0.0)
    calls = len(noted(regression_stage(random_trajectories(), denoiser)))
    assert calls == 1, "nothing but the examples themselves"
    seen.clear()
    monkeypatch.setattr(trajectory_regression, "OWN", 1.0)
    assert len(noted(regression_stage(random_trajectories(), denoiser))) > 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_student_that_walks_through_is_told_of_its_picture_only(share: float) -> None:
    """The loss is that of its own pictures, whatever its teacher passed through; and every step has a gradient."""
    denoiser, walks = teacher(), random_trajectories()
    network = {"unet": denoiser.unet.requires_grad_(True), "through": share}
    changed = walks.latents.clone()
    changed[:, 1:-1] += 1
    one, other = (
        regression_stage(walks, denoiser, **network),
        regression_stage(replace(walks, latents=changed), denoiser, **network),
    )
    assert (float(one.loss(0).detach()) == float(other.loss(0).detach())) == (share == 1.0)
    if share == 1.0:
        ours, theirs = one._rollouts(one.sample_indices(np.random.default_rng((0, 7, 0)), SHORT.batch_size))
        assert float(one.loss(0).detach()) == pytest.approx(float((ours - theirs).square().mean()), rel=1e-6)
    calls: list[Tensor] = []
    hook = denoiser.unet.register_forward_hook(lambda module, inputs, outputs: calls.append(outputs[0]))
    loss = one.loss(0)
    hook.remove()
    through = [output for output in calls if len(output) == share * SHORT.batch_size][:4]
    gradients = torch.autograd.grad(loss, through)
    assert len(gradients) == 4 and all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_walks_that_are_judged_by_are_not_learnt_from() -> None:
    denoiser, walks = teacher(), random_trajectories()
    before = [float(regression_stage(walks, denoiser).loss(number).detach()) for number in range(3)]
    changed = walks.latents.clone()
    changed[-2:, 1:] += 1
    after = regression_stage(replace(walks, latents=changed), denoiser)
    assert [float(after.loss(number).detach()) for number in range(3)] == before
    assert after.evaluate() != regression_stage(walks, denoiser).evaluate()


def test_every_student_walks_a_part_of_the_grid_before(tmp_path: Path) -> None:
    students = train_on_trajectories(teacher(), teacher(), random_trajectories(), RECIPE, tmp_path, ignore_update)
    assert [student.name for student in students] == ["4-steps", "2-steps"]
    assert [student.grid and student.grid.steps for student in students] == [4, 2]
    assert all(student.method == "walks" and student.denoiser.is_conditioned for student in students)
    first, second = (set(student.grid.timesteps.tolist()) for student in students if student.grid)
    assert second < first


@pytest.mark.parametrize("match", [{}, {2: 0.5}], ids=["walks", "matched"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(match: dict[int, float], tmp_path: Path) -> None:
    recipe = replace(RECIPE, dmd_weights=match)
    whole = train_on_trajectories(
        teacher(), teacher(), random_trajectories(), recipe, tmp_path / "whole", ignore_update
    )

    def stopped(tick: UpdateLog) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_on_trajectories(
                teacher(), teacher(), random_trajectories(), recipe, tmp_path / "parts", stopped, save_every=0.0
            )
    parts = train_on_trajectories(
        teacher(), teacher(), random_trajectories(), recipe, tmp_path / "parts", ignore_update
    )
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_another_beginning_is_another_lesson(tmp_path: Path) -> None:
    train_on_trajectories(teacher(), teacher(), random_trajectories(), RECIPE, tmp_path, ignore_update, origin="one")
    with pytest.raises(FitFailed, match="was learnt from something else"):
        train_on_trajectories(
            teacher(), teacher(), random_trajectories(), RECIPE, tmp_path, ignore_update, origin="another"
        )


def test_a_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    """Two steps learn to end where four of the same network do, on the walks that they look at."""
    denoiser = teacher()
    walks = student_trajectories(denoiser, 4)
    kept = replace(walks, latents=walks.latents[:, [0, 2, 4]])
    recipe = replace(RECIPE, step_counts=(4, 2), step_recipes={2: replace(SHORT, updates=40, batch_size=8)})
    (student,) = train_on_trajectories(denoiser, denoiser, kept, recipe, tmp_path, ignore_update)
    assert student.grid
    shown = kept.gather(
        torch.arange(TRAJECTORIES - 2),
        torch.zeros(TRAJECTORIES - 2, dtype=torch.int64),
        torch.full((TRAJECTORIES - 2,), 2),
    )
    asked = GuidedInputs(shown.cond, {}, shown.guidance)
    with torch.no_grad():
        begun, learnt = (
            latent_psnr(full_rollout(one.denoise_fn(asked), shown.start, make_level_table(student.grid)), shown.end)
            for one in (denoiser, student.denoiser)
        )
    assert learnt > begun + 1


def test_counts_that_are_no_chain_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="none larger than the one before"):
        plan_student_grids(teacher(), replace(RECIPE, step_counts=(12, 2, 4)))


def test_every_student_takes_its_steps_for_edits_too(tmp_path: Path) -> None:
    recipe = replace(RECIPE, edit_strengths=(0.4, 0.8))
    students = train_on_trajectories(
        teacher(), teacher(), random_trajectories(kinds=3), recipe, tmp_path, ignore_update
    )
    planned = plan_edit_grids(SCHEDULE, 12, make_grid(SCHEDULE, 4), (0.4, 0.8))
    first = {strength: one.student for strength, one in planned.items()}
    second = {strength: coarsen(edit, 2) for strength, edit in first.items()}
    assert [student.edit_grids for student in students] == [first, second]


@pytest.mark.parametrize("counts", [(12, 3), (36, 18, 9, 3), (36, 18, 4), (12, 4, 3), (12, 1), (16, 3, 1)])
def test_no_level_is_that_of_two_grids(counts: tuple[int, ...]) -> None:
    """A student is told the level only, and could not tell what it is to do there."""
    for one in plan_student_grids(teacher(), replace(RECIPE, step_counts=counts, edit_strengths=EDIT_STRENGTHS)):
        levels = [timestep for grid in one.all_grids for timestep in grid.timesteps.tolist()]
        assert len(one.all_grids) == 10 and len(levels) == len(set(levels)) == 10 * one.grid.steps


def test_a_student_walks_parts_of_what_the_one_before_it_does() -> None:
    served = plan_student_grids(
        teacher(), replace(RECIPE, step_counts=(36, 18, 9, 3, 1), edit_strengths=EDIT_STRENGTHS)
    )
    for before, after in pairwise(served):
        for fine, coarse in zip(before.all_grids, after.all_grids, strict=True):
            assert coarse.levels[0] == fine.levels[0] and set(coarse.levels) <= set(fine.levels)


def test_walks_of_other_kinds_are_not_looked_at() -> None:
    denoiser, walks = teacher(), random_trajectories(kinds=2)
    (served,) = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4)))
    told = {"kept": served.all_grids, "served": served.all_grids}
    before = [float(regression_stage(walks, denoiser, **told).loss(number).detach()) for number in range(3)]
    changed = walks.latents.clone()
    changed[1::2] += 1
    after = regression_stage(replace(walks, latents=changed), denoiser, **told)
    assert [float(after.loss(number).detach()) for number in range(3)] == before
    assert set(after.evaluate()) == {"agreement"}


def test_edits_are_judged_by_themselves_and_apart_from_pictures_that_were_learnt() -> None:
    denoiser, walks = teacher(), random_trajectories(kinds=2)
    served = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4), edit_strengths=(0.5,)))[0]
    told = {"kept": served.all_grids, "served": served.all_grids, "judged": 3}
    one = regression_stage(walks, denoiser, **told)
    assert set(one.evaluate()) == {"agreement", "edits"}
    changed = walks.latents.clone()
    changed[8:] += 1
    other = regression_stage(replace(walks, latents=changed), denoiser, **told)
    assert float(one.loss(0).detach()) == float(other.loss(0).detach()), "an edit goes with the walk before it"


def test_a_walk_is_shown_at_the_levels_of_its_kind() -> None:
    """Where the kinds are mixed up, what it sees lands elsewhere."""
    denoiser = teacher()
    served = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4), edit_strengths=(0.5,)))[0]
    walks = random_trajectories(kinds=2)
    told = {"kept": served.all_grids, "served": served.all_grids}
    seen: list[Tensor] = []
    hook = denoiser.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].clone()))
    with torch.no_grad():
        regression_stage(walks, denoiser, **told).loss(0)
    hook.remove()
    rng = np.random.default_rng((0, 7, 0))
    edits, _, steps = rng.random(4) < trajectory_regression.EDIT_SHARE, rng.random(4), rng.integers(4, size=4)
    grids = [[*one.timesteps] for one in served.all_grids]
    wanted = [grids[int(edit)][step] for edit, step in zip(edits, steps, strict=True)]
    assert {*edits} == {False, True}
    assert seen[-1].tolist() == wanted
