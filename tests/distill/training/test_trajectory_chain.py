"""Trajectory regression: examples, targets, held-out trajectories, edits, and bit-exact resumption."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import Schedule, make_grid
from stillhouse.distill.data.teacher_trajectories import TrajectoryDataset
from stillhouse.distill.settings import EDIT_STRENGTHS
from stillhouse.distill.training import trajectory_regression
from stillhouse.distill.training.distillation_stage import full_rollout, latent_psnr
from stillhouse.distill.training.networks import Denoiser, GuidedInputs, add_guidance_embedding
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, TrainingRun, freeze
from stillhouse.distill.training.step_grids import coarsen, plan_edit_grids
from stillhouse.distill.training.targets import make_level_table
from stillhouse.distill.training.trajectory_chain import plan_student_grids, train_on_trajectories
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import UpdateLog
from tests.checkpoints import SMALLEST, unet

SCHEDULE = Schedule(zero_terminal_snr=True)
SHORT = StageRecipe(
    updates=6, batch_size=4, learning_rate=1e-3, warmup_updates=1, decay_fraction=0.5, report_every=2, eval_every=6
)
RECIPE = ChainRecipe(
    step_counts=(12, 4, 2),
    method="trajectories",
    guidance=(1.0, 4.0),
    guidance_recipe=SHORT,
    step_recipes={4: SHORT, 2: SHORT},
    eval_samples=2,
)
TRAJECTORIES = 12


def teacher() -> Denoiser:
    torch.manual_seed(0)
    return freeze(Denoiser(add_guidance_embedding(unet("sd2", SMALLEST)), SCHEDULE, "v_prediction"))


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
    """Return trajectories of a denoiser itself with a number of steps; its regression loss on them is zero."""
    dataset, table = random_trajectories(), make_level_table(make_grid(SCHEDULE, count))
    shown = dataset.gather(
        torch.arange(TRAJECTORIES),
        torch.zeros(TRAJECTORIES, dtype=torch.int64),
        torch.zeros(TRAJECTORIES, dtype=torch.int64),
    )
    denoise = denoiser.denoise_fn(GuidedInputs(shown.cond, {}, shown.guidance))
    levels = [shown.start]
    with torch.no_grad():
        for step in range(1, count + 1):
            part = replace(
                table, **{name: getattr(table, name)[: step + 1] for name in ("timesteps", "alphas", "sigmas")}
            )
            levels.append(full_rollout(denoise, shown.start, part))
    return replace(dataset, latents=torch.stack(levels, dim=1).half())


def regression_stage(dataset: TrajectoryDataset, denoiser: Denoiser, **fields: object) -> TrajectoryRegressionStage:
    (grids,) = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4)))
    fields_ = {"name": "4-steps", "recipe": SHORT, "dataset": dataset, "eval_samples": 2}
    fields_ |= {"stored_grids": grids.all_grids, "student_grids": grids.all_grids}
    network = {"network": denoiser.network, "schedule": denoiser.schedule, "prediction": denoiser.prediction}
    return TrajectoryRegressionStage(**{**fields_, **network, **fields})


def ignore_update(update_log: UpdateLog) -> None:
    pass


def train(
    folder: Path, recipe: ChainRecipe = RECIPE, dataset: TrajectoryDataset | None = None, **options: Any
) -> Sequence[Student]:
    dataset = random_trajectories() if dataset is None else dataset
    run = TrainingRun(folder, options.pop("report", ignore_update), save_every=options.pop("save_every", 120.0))
    return train_on_trajectories(teacher(), teacher(), dataset, recipe, run, **options)


def weights(student: Student) -> list[Tensor]:
    return list(student.denoiser.network.state_dict().values())


def test_the_loss_of_a_students_own_trajectories_is_zero() -> None:
    """float16 rounds latents by 5e-4, and a step from pure noise to alpha 0.3 amplifies this three times."""
    denoiser = teacher()
    same = regression_stage(student_trajectories(denoiser, 4), denoiser)
    with torch.no_grad():
        assert max(float(same.loss(number)) for number in range(4)) < 1e-4
        assert float(regression_stage(random_trajectories(), denoiser).loss(0)) > 0.1
    assert same.evaluate()["latent_psnr"] > 60


def test_half_of_the_examples_start_from_the_students_own_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of 1, the student is called first to produce the inputs of the loss."""
    denoiser = teacher()
    inputs: list[Tensor] = []

    def inputs_of(stage: TrajectoryRegressionStage) -> list[Tensor]:
        hook = denoiser.network.register_forward_pre_hook(lambda module, values: inputs.append(values[0].clone()))
        with torch.no_grad():
            stage.loss(3)
        hook.remove()
        return inputs

    monkeypatch.setattr(trajectory_regression, "ON_POLICY_SHARE", 0.0)
    calls = len(inputs_of(regression_stage(random_trajectories(), denoiser)))
    assert calls == 1, "one call for the examples themselves"
    inputs.clear()
    monkeypatch.setattr(trajectory_regression, "ON_POLICY_SHARE", 1.0)
    assert len(inputs_of(regression_stage(random_trajectories(), denoiser))) > 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_end_to_end_examples_depend_on_the_final_latents_only(share: float) -> None:
    """The loss is that of the final latents, independent of intermediate ones, and every step has a gradient."""
    denoiser, dataset = teacher(), random_trajectories()
    network = {"network": denoiser.network.requires_grad_(True), "end_to_end_fraction": share}
    changed = dataset.latents.clone()
    changed[:, 1:-1] += 1
    one, other = (
        regression_stage(dataset, denoiser, **network),
        regression_stage(replace(dataset, latents=changed), denoiser, **network),
    )
    assert (float(one.loss(0).detach()) == float(other.loss(0).detach())) == (share == 1.0)
    if share == 1.0:
        final, target = one._rollouts(one.sample_indices(np.random.default_rng((0, 7, 0)), SHORT.batch_size))
        assert float(one.loss(0).detach()) == pytest.approx(float((final - target).square().mean()), rel=1e-6)
    calls: list[Tensor] = []
    hook = denoiser.network.register_forward_hook(lambda module, inputs, outputs: calls.append(outputs[0]))
    loss = one.loss(0)
    hook.remove()
    outputs = [output for output in calls if len(output) == share * SHORT.batch_size][:4]
    gradients = torch.autograd.grad(loss, outputs)
    assert len(gradients) == 4 and all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_held_out_trajectories_are_not_trained_on() -> None:
    denoiser, dataset = teacher(), random_trajectories()
    before = [float(regression_stage(dataset, denoiser).loss(number).detach()) for number in range(3)]
    changed = dataset.latents.clone()
    changed[-2:, 1:] += 1
    after = regression_stage(replace(dataset, latents=changed), denoiser)
    assert [float(after.loss(number).detach()) for number in range(3)] == before
    assert after.evaluate() != regression_stage(dataset, denoiser).evaluate()


def test_every_students_grid_is_a_subset_of_the_one_before(tmp_path: Path) -> None:
    students = train(tmp_path)
    assert [student.name for student in students] == ["4-steps", "2-steps"]
    assert [student.grid and student.grid.steps for student in students] == [4, 2]
    assert all(student.method == "trajectories" and student.denoiser.is_conditioned for student in students)
    first, second = (set(student.grid.timesteps.tolist()) for student in students if student.grid)
    assert second < first


@pytest.mark.parametrize("match", [{}, {2: 0.5}], ids=["regression", "matched"])
def test_an_interrupted_run_resumes_bit_exactly(match: dict[int, float], tmp_path: Path) -> None:
    recipe = replace(RECIPE, dmd_weights=match)
    whole = train(tmp_path / "whole", recipe)

    def interrupt(update_log: UpdateLog) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", recipe, report=interrupt, save_every=0.0)
    parts = train(tmp_path / "parts", recipe)
    for student, resumed in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(student), weights(resumed), strict=True))


def test_a_checkpoint_of_another_origin_is_refused(tmp_path: Path) -> None:
    train(tmp_path, origin="one")
    with pytest.raises(FitFailed, match="was trained with another teacher"):
        train(tmp_path, origin="another")


def test_a_student_approaches_its_teacher(tmp_path: Path) -> None:
    """Two steps are trained to end where four of the same network do."""
    denoiser = teacher()
    dataset = student_trajectories(denoiser, 4)
    stored = replace(dataset, latents=dataset.latents[:, [0, 2, 4]])
    recipe = replace(RECIPE, step_counts=(4, 2), step_recipes={2: replace(SHORT, updates=40, batch_size=8)})
    run = TrainingRun(tmp_path, ignore_update)
    (student,) = train_on_trajectories(denoiser, denoiser, stored, recipe, run)
    assert student.grid
    shown = stored.gather(
        torch.arange(TRAJECTORIES - 2),
        torch.zeros(TRAJECTORIES - 2, dtype=torch.int64),
        torch.full((TRAJECTORIES - 2,), 2),
    )
    inputs = GuidedInputs(shown.cond, {}, shown.guidance)
    with torch.no_grad():
        before, after = (
            latent_psnr(full_rollout(one.denoise_fn(inputs), shown.start, make_level_table(student.grid)), shown.end)
            for one in (denoiser, student.denoiser)
        )
    assert after > before + 1


def test_increasing_step_counts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="none larger than the one before"):
        plan_student_grids(teacher(), replace(RECIPE, step_counts=(12, 2, 4)))


def test_every_student_has_grids_of_its_steps_for_edits(tmp_path: Path) -> None:
    recipe = replace(RECIPE, edit_strengths=(0.4, 0.8))
    students = train(tmp_path, recipe, random_trajectories(kinds=3))
    planned = plan_edit_grids(SCHEDULE, 12, make_grid(SCHEDULE, 4), (0.4, 0.8))
    first = {strength: one.student for strength, one in planned.items()}
    second = {strength: coarsen(edit, 2) for strength, edit in first.items()}
    assert [student.edit_grids for student in students] == [first, second]


@pytest.mark.parametrize("counts", [(12, 3), (36, 18, 9, 3), (36, 18, 4), (12, 4, 3), (12, 1), (16, 3, 1)])
def test_no_level_belongs_to_two_grids(counts: tuple[int, ...]) -> None:
    """The level is the only input besides the latents: its target must be unique."""
    for one in plan_student_grids(teacher(), replace(RECIPE, step_counts=counts, edit_strengths=EDIT_STRENGTHS)):
        levels = [timestep for grid in one.all_grids for timestep in grid.timesteps.tolist()]
        assert len(one.all_grids) == 10 and len(levels) == len(set(levels)) == 10 * one.grid.steps


def test_the_grids_of_a_student_are_subsets_of_those_before() -> None:
    planned = plan_student_grids(
        teacher(), replace(RECIPE, step_counts=(36, 18, 9, 3, 1), edit_strengths=EDIT_STRENGTHS)
    )
    for before, after in pairwise(planned):
        for fine, coarse in zip(before.all_grids, after.all_grids, strict=True):
            assert coarse.levels[0] == fine.levels[0] and set(coarse.levels) <= set(fine.levels)


def test_trajectories_of_other_kinds_are_ignored() -> None:
    denoiser, dataset = teacher(), random_trajectories(kinds=2)
    (grids,) = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4)))
    fields = {"stored_grids": grids.all_grids, "student_grids": grids.all_grids}
    before = [float(regression_stage(dataset, denoiser, **fields).loss(number).detach()) for number in range(3)]
    changed = dataset.latents.clone()
    changed[1::2] += 1
    after = regression_stage(replace(dataset, latents=changed), denoiser, **fields)
    assert [float(after.loss(number).detach()) for number in range(3)] == before
    assert set(after.evaluate()) == {"latent_psnr"}


def test_edits_are_evaluated_separately_from_training_pictures() -> None:
    denoiser, dataset = teacher(), random_trajectories(kinds=2)
    grids = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4), edit_strengths=(0.5,)))[0]
    fields = {"stored_grids": grids.all_grids, "student_grids": grids.all_grids, "eval_samples": 3}
    one = regression_stage(dataset, denoiser, **fields)
    assert set(one.evaluate()) == {"latent_psnr", "edits"}
    changed = dataset.latents.clone()
    changed[8:] += 1
    other = regression_stage(replace(dataset, latents=changed), denoiser, **fields)
    assert float(one.loss(0).detach()) == float(other.loss(0).detach()), (
        "an edit stays with the trajectory of its picture"
    )


def test_a_trajectory_is_evaluated_at_the_levels_of_its_kind() -> None:
    """Each trajectory is evaluated at the levels of its own kind."""
    denoiser = teacher()
    grids = plan_student_grids(denoiser, replace(RECIPE, step_counts=(12, 4), edit_strengths=(0.5,)))[0]
    dataset = random_trajectories(kinds=2)
    fields = {"stored_grids": grids.all_grids, "student_grids": grids.all_grids}
    timesteps_seen: list[Tensor] = []
    hook = denoiser.network.register_forward_pre_hook(lambda module, inputs: timesteps_seen.append(inputs[1].clone()))
    with torch.no_grad():
        regression_stage(dataset, denoiser, **fields).loss(0)
    hook.remove()
    rng = np.random.default_rng((0, 7, 0))
    edits, _, steps = rng.random(4) < trajectory_regression.EDIT_SHARE, rng.random(4), rng.integers(4, size=4)
    timesteps = [[*grid.timesteps] for grid in grids.all_grids]
    expected = [timesteps[int(edit)][step] for edit, step in zip(edits, steps, strict=True)]
    assert {*edits} == {False, True}
    assert timesteps_seen[-1].tolist() == expected
