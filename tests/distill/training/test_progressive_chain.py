"""A chain: students in turn, resumable to the bit, exact where nothing is saved."""

from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import Prediction, Schedule, make_grid
from stillhouse.distill.data.latent_dataset import Pair
from stillhouse.distill.training.networks import Asked, Denoiser, Inputs, conditioned_on_guidance, taught_as
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, frozen, learner, lessons, teach
from stillhouse.distill.training.stage import ended
from stillhouse.distill.training.targets import walk_of
from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Tick
from tests.checkpoints import unet

SCHEDULE = Schedule(zero_terminal_snr=True)
SHORT = StageRecipe(updates=6, batch=2, rate=1e-3, warm_up=1, decay=0.5, report_every=2, judge_every=6)
RECIPE = ChainRecipe(
    counts=(4, 2, 1), method="progressive", guidance=(1.0, 4.0), inside=SHORT, rounds={2: SHORT, 1: SHORT}, judged=2
)


class RandomPairs:
    """Latents and prompts that mean nothing."""

    def batch(self, rng: np.random.Generator, count: int) -> Pair:
        latents, said = rng.standard_normal((count, 4, 8, 8)), rng.standard_normal((count, 7, 32))
        return Pair(torch.from_numpy(latents).float(), {"encoder_hidden_states": torch.from_numpy(said).float()})

    def nothing(self, count: int) -> Inputs:
        return {"encoder_hidden_states": torch.zeros(count, 7, 32)}


def teacher(prediction: Prediction = "v_prediction", schedule: Schedule = SCHEDULE) -> Denoiser:
    torch.manual_seed(0)
    return frozen(Denoiser(unet("sd2"), schedule, prediction))


def weights(student: Student) -> list[Tensor]:
    return list(student.denoiser.unet.state_dict().values())


def quiet(tick: Tick) -> None:
    pass


@pytest.mark.parametrize("method", ["progressive", "consistency"])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_student_walks_its_own_grid_and_knows_its_guidance(tmp_path: Path, method: str, rank: int) -> None:
    students = teach(teacher(), RandomPairs(), replace(RECIPE, method=method, rank=rank), tmp_path, quiet)
    assert [student.name for student in students] == ["guidance", "2-steps", "1-steps"]
    assert [student.grid and student.grid.steps for student in students] == [None, 2, 1]
    assert [student.method for student in students] == ["guidance", method, method]
    assert all(student.denoiser.is_conditioned and student.fitted.updates == 6 for student in students)
    assert all(bool(student.factors) == bool(rank) for student in students)
    assert not any("lora_" in name for student in students for name in student.denoiser.unet.state_dict())


def test_a_chain_that_is_stopped_anywhere_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = teach(teacher(), RandomPairs(), RECIPE, tmp_path / "whole", quiet)

    def stop(at: int) -> None:
        seen = 0

        def report(tick: Tick) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                raise KeyboardInterrupt

        teach(teacher(), RandomPairs(), RECIPE, tmp_path / "parts", report, save_every=0.0)

    for at in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            stop(at)
    parts = teach(teacher(), RandomPairs(), RECIPE, tmp_path / "parts", quiet)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_what_is_learnt_is_not_learnt_again_and_no_time_gives_no_students(tmp_path: Path) -> None:
    assert not teach(teacher(), RandomPairs(), RECIPE, tmp_path, quiet, deadline=monotonic() - 1)
    first = teach(teacher(), RandomPairs(), RECIPE, tmp_path, quiet)
    ticks: list[Tick] = []
    again = teach(teacher(), RandomPairs(), RECIPE, tmp_path, ticks.append)
    assert not ticks and len(again) == len(first) == 3


def test_a_round_of_equal_counts_asks_for_what_the_teacher_says(tmp_path: Path) -> None:
    """So a student that begins as its teacher has nothing to learn, whatever is drawn."""
    recipe = replace(RECIPE, counts=(2, 2), rounds={2: SHORT})
    inside, same = teach(teacher(), RandomPairs(), recipe, tmp_path, quiet)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    text = {"encoder_hidden_states": torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))}
    asked = Asked(text, RandomPairs().nothing(2), torch.full((2,), 2.5))
    walk = walk_of(make_grid(SCHEDULE, 2))
    with torch.no_grad():
        one, other = (ended(student.denoiser.sees(asked), noise, walk) for student in (inside, same))
    assert torch.equal(one, other)


def test_students_of_a_network_that_tells_noise_tell_velocity_from_pure_noise_on() -> None:
    schedule, prediction = taught_as(teacher("epsilon", Schedule()))
    assert prediction == "v_prediction" and schedule == Schedule(zero_terminal_snr=True)
    assert taught_as(teacher()) == (SCHEDULE, "v_prediction")
    assert taught_as(teacher("v_prediction", Schedule())) == (SCHEDULE, "v_prediction")
    student = Denoiser(conditioned_on_guidance(unet("sd2")), Schedule(), "v_prediction")
    assert taught_as(student) == (Schedule(), "v_prediction"), "it knows no other levels"


def test_a_student_of_an_epsilon_teacher_comes_closer_to_it(tmp_path: Path) -> None:
    """The first lesson changes what the output means: it begins far away."""
    longer = replace(SHORT, updates=60, batch=8, rate=3e-3, judge_every=20)
    scores: list[float] = []
    teach(
        teacher("epsilon", Schedule()),
        RandomPairs(),
        replace(RECIPE, inside=longer),
        tmp_path,
        lambda tick: scores.extend(tick.scores.values()) if tick.stage == "guidance" else None,
    )
    assert len(scores) == 3 and scores[-1] > scores[0]


def test_a_student_is_a_teacher_that_is_not_taught_its_guidance_again(tmp_path: Path) -> None:
    *_, last = teach(teacher(), RandomPairs(), replace(RECIPE, counts=(4, 2)), tmp_path / "first", quiet)
    recipe = replace(RECIPE, counts=(2, 1))
    assert [planned.name for planned in lessons(frozen(last.denoiser), recipe, last.grid)] == ["1-steps"]
    (student,) = teach(frozen(last.denoiser), RandomPairs(), recipe, tmp_path / "second", quiet, begin=last.grid)
    assert student.grid is not None and last.grid is not None and student.grid.levels[0] == last.grid.levels[0]
    with pytest.raises(InvalidRequest, match="allowed: 2, which the teacher was distilled to"):
        lessons(frozen(last.denoiser), replace(RECIPE, counts=(3, 1), rounds={1: SHORT}), last.grid)


def test_a_round_that_was_learnt_by_another_method_is_refused(tmp_path: Path) -> None:
    teach(teacher(), RandomPairs(), replace(RECIPE, counts=(4, 2)), tmp_path, quiet)
    with pytest.raises(FitFailed, match="was learnt from something else"):
        teach(teacher(), RandomPairs(), replace(RECIPE, counts=(4, 2), method="consistency"), tmp_path, quiet)


def test_the_next_student_of_another_teacher_is_refused(tmp_path: Path) -> None:
    """More updates for the first make another teacher of the second."""
    teach(teacher(), RandomPairs(), replace(RECIPE, counts=(4, 2)), tmp_path, quiet)
    longer = replace(RECIPE, counts=(4, 2), inside=replace(SHORT, updates=8))
    before = (tmp_path / "guidance.checkpoint.pt").read_bytes()
    with pytest.raises(FitFailed, match=r"2-steps.checkpoint.pt was learnt from something else"):
        teach(teacher(), RandomPairs(), longer, tmp_path, quiet)
    assert (tmp_path / "guidance.checkpoint.pt").read_bytes() == before, "refused before anything was learnt"


def test_checkpointing_takes_less_memory_and_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(1)
        network = learner(teacher(), replace(RECIPE, checkpointing=checkpointing))
        assert network.is_gradient_checkpointing is checkpointing
        noise, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
        network(
            noise, torch.tensor([10, 900]), text, timestep_cond=torch.randn(2, 256)
        ).sample.square().mean().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    plain, saving = gradients(False), gradients(True)
    assert len(plain) == len(saving) > 100
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(plain, saving, strict=True))
