"""Progressive chains: students in order, bit-exact resumption, and exactness for equal step counts."""

from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, make_grid
from stillhouse.distill.data.latent_dataset import LatentBatch
from stillhouse.distill.training.distillation_stage import full_rollout
from stillhouse.distill.training.networks import (
    Denoiser,
    DenoiserInputs,
    GuidedInputs,
    add_guidance_embedding,
    student_parameterization,
)
from stillhouse.distill.training.progressive_chain import (
    ChainRecipe,
    Student,
    TrainingRun,
    build_student_network,
    freeze,
    plan_stages,
    train_chain,
)
from stillhouse.distill.training.targets import make_level_table
from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import UpdateLog
from tests.checkpoints import SMALLEST, NetworkSizes, unet

SCHEDULE = Schedule(zero_terminal_snr=True)
SHORT = StageRecipe(
    updates=6, batch_size=2, learning_rate=1e-3, warmup_updates=1, decay_fraction=0.5, report_every=2, eval_every=6
)
RECIPE = ChainRecipe(
    step_counts=(4, 2, 1),
    method="progressive",
    guidance=(1.0, 4.0),
    guidance_recipe=SHORT,
    step_recipes={2: SHORT, 1: SHORT},
    eval_samples=2,
)


class RandomLatents:
    """Random latents and text inputs."""

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        latents, text = rng.standard_normal((count, 4, 8, 8)), rng.standard_normal((count, 7, 32))
        return LatentBatch(torch.from_numpy(latents).float(), {"encoder_hidden_states": torch.from_numpy(text).float()})

    def negative_inputs(self, count: int) -> DenoiserInputs:
        return {"encoder_hidden_states": torch.zeros(count, 7, 32)}


def teacher(
    prediction: Prediction = "v_prediction", schedule: Schedule = SCHEDULE, sizes: NetworkSizes = SMALLEST
) -> Denoiser:
    torch.manual_seed(0)
    return freeze(Denoiser(unet("sd2", sizes), schedule, prediction))


def weights(student: Student) -> list[Tensor]:
    return list(student.denoiser.network.state_dict().values())


def ignore_update(update_log: UpdateLog) -> None:
    pass


def quiet_run(folder: Path) -> TrainingRun:
    return TrainingRun(folder, ignore_update)


@pytest.mark.parametrize("method", ["progressive", "consistency"])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_student_has_its_own_grid_and_a_guidance_embedding(tmp_path: Path, method: str, rank: int) -> None:
    students = train_chain(
        teacher(), RandomLatents(), replace(RECIPE, method=method, lora_rank=rank), quiet_run(tmp_path)
    )
    assert [student.name for student in students] == ["guidance", "2-steps", "1-steps"]
    assert [student.grid and student.grid.steps for student in students] == [None, 2, 1]
    assert [student.method for student in students] == ["guidance", method, method]
    assert all(student.denoiser.is_conditioned and student.fitted.updates == 6 for student in students)
    assert all(bool(student.lora_weights) == bool(rank) for student in students)
    assert not any("lora_" in name for student in students for name in student.denoiser.network.state_dict())


def test_an_interrupted_chain_resumes_bit_exactly(tmp_path: Path) -> None:
    whole = train_chain(teacher(), RandomLatents(), RECIPE, quiet_run(tmp_path / "whole"))

    def stop(at: int) -> None:
        reports = 0

        def report(update_log: UpdateLog) -> None:
            nonlocal reports
            reports += 1
            if reports == at:
                raise KeyboardInterrupt

        train_chain(teacher(), RandomLatents(), RECIPE, TrainingRun(tmp_path / "parts", report, save_every=0.0))

    for at in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            stop(at)
    parts = train_chain(teacher(), RandomLatents(), RECIPE, quiet_run(tmp_path / "parts"))
    for student, resumed in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(student), weights(resumed), strict=True))


def test_finished_stages_are_not_repeated_and_a_passed_deadline_gives_no_students(tmp_path: Path) -> None:
    assert not train_chain(
        teacher(), RandomLatents(), RECIPE, TrainingRun(tmp_path, ignore_update, deadline=monotonic() - 1)
    )
    first = train_chain(teacher(), RandomLatents(), RECIPE, quiet_run(tmp_path))
    logs: list[UpdateLog] = []
    again = train_chain(teacher(), RandomLatents(), RECIPE, TrainingRun(tmp_path, logs.append))
    assert not logs and len(again) == len(first) == 3


def test_the_target_of_equal_step_counts_is_the_teachers_prediction(tmp_path: Path) -> None:
    """A student with the weights of its teacher then has a loss of zero."""
    recipe = replace(RECIPE, step_counts=(2, 2), step_recipes={2: SHORT})
    guided, student = train_chain(teacher(), RandomLatents(), recipe, quiet_run(tmp_path))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    text = {"encoder_hidden_states": torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))}
    inputs = GuidedInputs(text, RandomLatents().negative_inputs(2), torch.full((2,), 2.5))
    table = make_level_table(make_grid(SCHEDULE, 2))
    with torch.no_grad():
        first, second = (full_rollout(one.denoiser.denoise_fn(inputs), noise, table) for one in (guided, student))
    assert torch.equal(first, second)


def test_students_of_an_epsilon_teacher_predict_velocity_from_pure_noise() -> None:
    schedule, prediction = student_parameterization(teacher("epsilon", Schedule()))
    assert prediction == "v_prediction" and schedule == Schedule(zero_terminal_snr=True)
    assert student_parameterization(teacher()) == (SCHEDULE, "v_prediction")
    assert student_parameterization(teacher("v_prediction", Schedule())) == (SCHEDULE, "v_prediction")
    student = Denoiser(add_guidance_embedding(unet("sd2", SMALLEST)), Schedule(), "v_prediction")
    assert student_parameterization(student) == (Schedule(), "v_prediction"), "a distilled teacher keeps its schedule"


def test_a_student_of_an_epsilon_teacher_approaches_it(tmp_path: Path) -> None:
    """The first stage changes the parameterization, so its initial score is low."""
    longer = replace(SHORT, updates=60, batch_size=8, learning_rate=3e-3, eval_every=20)
    scores: list[float] = []
    train_chain(
        teacher("epsilon", Schedule()),
        RandomLatents(),
        replace(RECIPE, guidance_recipe=longer),
        TrainingRun(tmp_path, lambda log: scores.extend(log.scores.values()) if log.stage == "guidance" else None),
    )
    assert len(scores) == 3 and scores[-1] > scores[0]


def test_a_distilled_teacher_skips_guidance_distillation(tmp_path: Path) -> None:
    *_, last = train_chain(
        teacher(), RandomLatents(), replace(RECIPE, step_counts=(4, 2)), quiet_run(tmp_path / "first")
    )
    recipe = replace(RECIPE, step_counts=(2, 1))
    assert [plan.name for plan in plan_stages(freeze(last.denoiser), recipe, last.grid)] == ["1-steps"]
    (student,) = train_chain(
        freeze(last.denoiser), RandomLatents(), recipe, quiet_run(tmp_path / "second"), teacher_grid=last.grid
    )
    assert student.grid is not None and last.grid is not None and student.grid.levels[0] == last.grid.levels[0]
    with pytest.raises(InvalidRequest, match="allowed: 2, the steps that the teacher was distilled to"):
        plan_stages(freeze(last.denoiser), replace(RECIPE, step_counts=(3, 1), step_recipes={1: SHORT}), last.grid)


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    train_chain(teacher(), RandomLatents(), replace(RECIPE, step_counts=(4, 2)), quiet_run(tmp_path))
    with pytest.raises(FitFailed, match="was trained with another teacher"):
        train_chain(
            teacher(),
            RandomLatents(),
            replace(RECIPE, step_counts=(4, 2), method="consistency"),
            quiet_run(tmp_path),
        )


def test_the_next_student_of_another_teacher_is_refused(tmp_path: Path) -> None:
    """More updates of the first student make it another teacher of the second."""
    train_chain(teacher(), RandomLatents(), replace(RECIPE, step_counts=(4, 2)), quiet_run(tmp_path))
    longer = replace(RECIPE, step_counts=(4, 2), guidance_recipe=replace(SHORT, updates=8))
    before = (tmp_path / "guidance.checkpoint.pt").read_bytes()
    with pytest.raises(FitFailed, match=r"2-steps.checkpoint.pt was trained with another teacher"):
        train_chain(teacher(), RandomLatents(), longer, quiet_run(tmp_path))
    assert (tmp_path / "guidance.checkpoint.pt").read_bytes() == before, "refused before training"


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(1)
        network = build_student_network(
            teacher(sizes=NetworkSizes()), replace(RECIPE, gradient_checkpointing=checkpointing)
        )
        assert network.is_gradient_checkpointing is checkpointing
        noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
        network(
            noise, torch.tensor([10, 900]), text, timestep_cond=torch.randn(2, 256)
        ).sample.square().mean().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    plain, recomputed = gradients(False), gradients(True)
    assert len(plain) == len(recomputed) > 100
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(plain, recomputed, strict=True))
