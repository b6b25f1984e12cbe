"""A chain: students in turn, resumable to the bit, exact where nothing is saved."""

from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, make_grid
from stillhouse.distill.data.latent_dataset import LatentBatch
from stillhouse.distill.training.networks import (
    Denoiser,
    GuidedInputs,
    UNetInputs,
    add_guidance_embedding,
    student_parameterization,
)
from stillhouse.distill.training.progressive_chain import (
    ChainRecipe,
    Student,
    build_student_unet,
    freeze,
    plan_stages,
    train_chain,
)
from stillhouse.distill.training.stage import full_rollout
from stillhouse.distill.training.targets import make_level_table
from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import UpdateLog
from tests.checkpoints import unet

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
    """Latents and prompts that mean nothing."""

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        latents, said = rng.standard_normal((count, 4, 8, 8)), rng.standard_normal((count, 7, 32))
        return LatentBatch(torch.from_numpy(latents).float(), {"encoder_hidden_states": torch.from_numpy(said).float()})

    def negative_inputs(self, count: int) -> UNetInputs:
        return {"encoder_hidden_states": torch.zeros(count, 7, 32)}


def teacher(prediction: Prediction = "v_prediction", schedule: Schedule = SCHEDULE) -> Denoiser:
    torch.manual_seed(0)
    return freeze(Denoiser(unet("sd2"), schedule, prediction))


def weights(student: Student) -> list[Tensor]:
    return list(student.denoiser.unet.state_dict().values())


def ignore_update(tick: UpdateLog) -> None:
    pass


@pytest.mark.parametrize("method", ["progressive", "consistency"])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_student_walks_its_own_grid_and_knows_its_guidance(tmp_path: Path, method: str, rank: int) -> None:
    students = train_chain(
        teacher(), RandomLatents(), replace(RECIPE, method=method, lora_rank=rank), tmp_path, ignore_update
    )
    assert [student.name for student in students] == ["guidance", "2-steps", "1-steps"]
    assert [student.grid and student.grid.steps for student in students] == [None, 2, 1]
    assert [student.method for student in students] == ["guidance", method, method]
    assert all(student.denoiser.is_conditioned and student.fitted.updates == 6 for student in students)
    assert all(bool(student.lora_weights) == bool(rank) for student in students)
    assert not any("lora_" in name for student in students for name in student.denoiser.unet.state_dict())


def test_a_chain_that_is_stopped_anywhere_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = train_chain(teacher(), RandomLatents(), RECIPE, tmp_path / "whole", ignore_update)

    def stop(at: int) -> None:
        seen = 0

        def report(tick: UpdateLog) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                raise KeyboardInterrupt

        train_chain(teacher(), RandomLatents(), RECIPE, tmp_path / "parts", report, save_every=0.0)

    for at in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            stop(at)
    parts = train_chain(teacher(), RandomLatents(), RECIPE, tmp_path / "parts", ignore_update)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_what_is_learnt_is_not_learnt_again_and_no_time_gives_no_students(tmp_path: Path) -> None:
    assert not train_chain(teacher(), RandomLatents(), RECIPE, tmp_path, ignore_update, deadline=monotonic() - 1)
    first = train_chain(teacher(), RandomLatents(), RECIPE, tmp_path, ignore_update)
    ticks: list[UpdateLog] = []
    again = train_chain(teacher(), RandomLatents(), RECIPE, tmp_path, ticks.append)
    assert not ticks and len(again) == len(first) == 3


def test_a_round_of_equal_counts_asks_for_what_the_teacher_says(tmp_path: Path) -> None:
    """So a student that begins as its teacher has nothing to learn, whatever is drawn."""
    recipe = replace(RECIPE, step_counts=(2, 2), step_recipes={2: SHORT})
    inside, same = train_chain(teacher(), RandomLatents(), recipe, tmp_path, ignore_update)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    text = {"encoder_hidden_states": torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))}
    asked = GuidedInputs(text, RandomLatents().negative_inputs(2), torch.full((2,), 2.5))
    walk = make_level_table(make_grid(SCHEDULE, 2))
    with torch.no_grad():
        one, other = (full_rollout(student.denoiser.denoise_fn(asked), noise, walk) for student in (inside, same))
    assert torch.equal(one, other)


def test_students_of_a_network_that_tells_noise_tell_velocity_from_pure_noise_on() -> None:
    schedule, prediction = student_parameterization(teacher("epsilon", Schedule()))
    assert prediction == "v_prediction" and schedule == Schedule(zero_terminal_snr=True)
    assert student_parameterization(teacher()) == (SCHEDULE, "v_prediction")
    assert student_parameterization(teacher("v_prediction", Schedule())) == (SCHEDULE, "v_prediction")
    student = Denoiser(add_guidance_embedding(unet("sd2")), Schedule(), "v_prediction")
    assert student_parameterization(student) == (Schedule(), "v_prediction"), "it knows no other levels"


def test_a_student_of_an_epsilon_teacher_comes_closer_to_it(tmp_path: Path) -> None:
    """The first lesson changes what the output means: it begins far away."""
    longer = replace(SHORT, updates=60, batch_size=8, learning_rate=3e-3, eval_every=20)
    scores: list[float] = []
    train_chain(
        teacher("epsilon", Schedule()),
        RandomLatents(),
        replace(RECIPE, guidance_recipe=longer),
        tmp_path,
        lambda tick: scores.extend(tick.scores.values()) if tick.stage == "guidance" else None,
    )
    assert len(scores) == 3 and scores[-1] > scores[0]


def test_a_student_is_a_teacher_that_is_not_taught_its_guidance_again(tmp_path: Path) -> None:
    *_, last = train_chain(
        teacher(), RandomLatents(), replace(RECIPE, step_counts=(4, 2)), tmp_path / "first", ignore_update
    )
    recipe = replace(RECIPE, step_counts=(2, 1))
    assert [planned.name for planned in plan_stages(freeze(last.denoiser), recipe, last.grid)] == ["1-steps"]
    (student,) = train_chain(
        freeze(last.denoiser), RandomLatents(), recipe, tmp_path / "second", ignore_update, teacher_grid=last.grid
    )
    assert student.grid is not None and last.grid is not None and student.grid.levels[0] == last.grid.levels[0]
    with pytest.raises(InvalidRequest, match="allowed: 2, which the teacher was distilled to"):
        plan_stages(freeze(last.denoiser), replace(RECIPE, step_counts=(3, 1), step_recipes={1: SHORT}), last.grid)


def test_a_round_that_was_learnt_by_another_method_is_refused(tmp_path: Path) -> None:
    train_chain(teacher(), RandomLatents(), replace(RECIPE, step_counts=(4, 2)), tmp_path, ignore_update)
    with pytest.raises(FitFailed, match="was learnt from something else"):
        train_chain(
            teacher(),
            RandomLatents(),
            replace(RECIPE, step_counts=(4, 2), method="consistency"),
            tmp_path,
            ignore_update,
        )


def test_the_next_student_of_another_teacher_is_refused(tmp_path: Path) -> None:
    """More updates for the first make another teacher of the second."""
    train_chain(teacher(), RandomLatents(), replace(RECIPE, step_counts=(4, 2)), tmp_path, ignore_update)
    longer = replace(RECIPE, step_counts=(4, 2), guidance_recipe=replace(SHORT, updates=8))
    before = (tmp_path / "guidance.checkpoint.pt").read_bytes()
    with pytest.raises(FitFailed, match=r"2-steps.checkpoint.pt was learnt from something else"):
        train_chain(teacher(), RandomLatents(), longer, tmp_path, ignore_update)
    assert (tmp_path / "guidance.checkpoint.pt").read_bytes() == before, "refused before anything was learnt"


def test_checkpointing_takes_less_memory_and_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(1)
        network = build_student_unet(teacher(), replace(RECIPE, gradient_checkpointing=checkpointing))
        assert network.is_gradient_checkpointing is checkpointing
        noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
        network(
            noise, torch.tensor([10, 900]), text, timestep_cond=torch.randn(2, 256)
        ).sample.square().mean().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    plain, saving = gradients(False), gradients(True)
    assert len(plain) == len(saving) > 100
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(plain, saving, strict=True))
