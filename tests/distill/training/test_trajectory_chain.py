"""Students of kept walks: what they are told, how they end, and that they go on to the same bits."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import Schedule, make_grid
from stillhouse.distill.data.teacher_trajectories import KeptWalks
from stillhouse.distill.settings import STRENGTHS
from stillhouse.distill.training import trajectory_regression
from stillhouse.distill.training.networks import Asked, Denoiser, conditioned_on_guidance
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, frozen
from stillhouse.distill.training.stage import agreement, ended
from stillhouse.distill.training.step_grids import plan_edits, thinned
from stillhouse.distill.training.targets import walk_of
from stillhouse.distill.training.trajectory_chain import plan_walks, teach_walks
from stillhouse.distill.training.trajectory_regression import WalkLesson
from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Tick
from tests.checkpoints import unet

SCHEDULE = Schedule(zero_terminal_snr=True)
SHORT = StageRecipe(updates=6, batch=4, rate=1e-3, warm_up=1, decay=0.5, report_every=2, judge_every=6)
RECIPE = ChainRecipe(
    counts=(12, 4, 2), method="walks", guidance=(1.0, 4.0), inside=SHORT, rounds={4: SHORT, 2: SHORT}, judged=2
)
WALKS = 12


def teacher() -> Denoiser:
    torch.manual_seed(0)
    return frozen(Denoiser(conditioned_on_guidance(unet("sd2")), SCHEDULE, "v_prediction"))


def random_walks(levels: int = 5, kinds: int = 1) -> KeptWalks:
    generator = torch.Generator().manual_seed(1)
    return KeptWalks(
        torch.randn(WALKS, levels, 4, 8, 8, generator=generator).half(),
        torch.arange(WALKS) % 3,
        torch.rand(WALKS, generator=generator) * 3 + 1,
        {"encoder_hidden_states": torch.randn(3, 7, 32, generator=generator).half()},
        torch.arange(WALKS) % kinds,
        {"encoder_hidden_states": torch.randn(1, 7, 32, generator=generator).half()},
    )


def own_walks(denoiser: Denoiser, count: int) -> KeptWalks:
    """Walks of a network that takes so many steps: it has nothing to learn from them."""
    walks, walk = random_walks(), walk_of(make_grid(SCHEDULE, count))
    shown = walks.shown(
        torch.arange(WALKS), torch.zeros(WALKS, dtype=torch.int64), torch.zeros(WALKS, dtype=torch.int64)
    )
    sees = denoiser.sees(Asked(shown.said, {}, shown.guidance))
    levels = [shown.begun]
    with torch.no_grad():
        for place in range(1, count + 1):
            stop = replace(
                walk, **{name: getattr(walk, name)[: place + 1] for name in ("timesteps", "alphas", "sigmas")}
            )
            levels.append(ended(sees, shown.begun, stop))
    return replace(walks, latents=torch.stack(levels, dim=1).half())


def lesson(walks: KeptWalks, denoiser: Denoiser, **fields: object) -> WalkLesson:
    (served,) = plan_walks(denoiser, replace(RECIPE, counts=(12, 4)))
    told = {"name": "4-steps", "recipe": SHORT, "walks": walks, "judged": 2}
    told |= {"kept": served.every, "served": served.every}
    network = {"unet": denoiser.unet, "schedule": denoiser.schedule, "prediction": denoiser.prediction}
    return WalkLesson(**{**told, **network, **fields})


def quiet(tick: Tick) -> None:
    pass


def weights(student: Student) -> list[Tensor]:
    return list(student.denoiser.unet.state_dict().values())


def test_who_walks_as_the_walks_do_has_nothing_to_learn() -> None:
    """Halves round the levels by 5e-4, and a step from pure noise to alpha 0.3 makes three times that of it."""
    denoiser = teacher()
    same = lesson(own_walks(denoiser, 4), denoiser)
    with torch.no_grad():
        assert max(float(same.loss(number)) for number in range(4)) < 1e-4
        assert float(lesson(random_walks(), denoiser).loss(0)) > 0.1
    assert same.judge()["agreement"] > 60


def test_what_is_shown_is_where_the_student_comes_itself_every_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told the way back from there: with its own steps only, walks that it does not take change what it is shown."""
    denoiser = teacher()
    seen: list[Tensor] = []

    def noted(lesson: WalkLesson) -> list[Tensor]:
        hook = denoiser.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        with torch.no_grad():
            lesson.loss(3)
        hook.remove()
        return seen

    monkeypatch.setattr(trajectory_regression, "OWN", 0.0)
    calls = len(noted(lesson(random_walks(), denoiser)))
    assert calls == 1, "nothing but the examples themselves"
    seen.clear()
    monkeypatch.setattr(trajectory_regression, "OWN", 1.0)
    assert len(noted(lesson(random_walks(), denoiser))) > 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_student_that_walks_through_is_told_of_its_picture_only(share: float) -> None:
    """The loss is that of its own pictures, whatever its teacher passed through; and every step has a gradient."""
    denoiser, walks = teacher(), random_walks()
    network = {"unet": denoiser.unet.requires_grad_(True), "through": share}
    changed = walks.latents.clone()
    changed[:, 1:-1] += 1
    one, other = lesson(walks, denoiser, **network), lesson(replace(walks, latents=changed), denoiser, **network)
    assert (float(one.loss(0).detach()) == float(other.loss(0).detach())) == (share == 1.0)
    if share == 1.0:
        ours, theirs = one._endings(one.drawn(np.random.default_rng((0, 7, 0)), SHORT.batch))
        assert float(one.loss(0).detach()) == pytest.approx(float((ours - theirs).square().mean()), rel=1e-6)
    calls: list[Tensor] = []
    hook = denoiser.unet.register_forward_hook(lambda module, inputs, outputs: calls.append(outputs[0]))
    loss = one.loss(0)
    hook.remove()
    through = [output for output in calls if len(output) == share * SHORT.batch][:4]
    gradients = torch.autograd.grad(loss, through)
    assert len(gradients) == 4 and all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_walks_that_are_judged_by_are_not_learnt_from() -> None:
    denoiser, walks = teacher(), random_walks()
    before = [float(lesson(walks, denoiser).loss(number).detach()) for number in range(3)]
    changed = walks.latents.clone()
    changed[-2:, 1:] += 1
    after = lesson(replace(walks, latents=changed), denoiser)
    assert [float(after.loss(number).detach()) for number in range(3)] == before
    assert after.judge() != lesson(walks, denoiser).judge()


def test_every_student_walks_a_part_of_the_grid_before(tmp_path: Path) -> None:
    students = teach_walks(teacher(), teacher(), random_walks(), RECIPE, tmp_path, quiet)
    assert [student.name for student in students] == ["4-steps", "2-steps"]
    assert [student.grid and student.grid.steps for student in students] == [4, 2]
    assert all(student.method == "walks" and student.denoiser.is_conditioned for student in students)
    first, second = (set(student.grid.timesteps.tolist()) for student in students if student.grid)
    assert second < first


@pytest.mark.parametrize("match", [{}, {2: 0.5}], ids=["walks", "matched"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(match: dict[int, float], tmp_path: Path) -> None:
    recipe = replace(RECIPE, match=match)
    whole = teach_walks(teacher(), teacher(), random_walks(), recipe, tmp_path / "whole", quiet)

    def stopped(tick: Tick) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            teach_walks(teacher(), teacher(), random_walks(), recipe, tmp_path / "parts", stopped, save_every=0.0)
    parts = teach_walks(teacher(), teacher(), random_walks(), recipe, tmp_path / "parts", quiet)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_another_beginning_is_another_lesson(tmp_path: Path) -> None:
    teach_walks(teacher(), teacher(), random_walks(), RECIPE, tmp_path, quiet, origin="one")
    with pytest.raises(FitFailed, match="was learnt from something else"):
        teach_walks(teacher(), teacher(), random_walks(), RECIPE, tmp_path, quiet, origin="another")


def test_a_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    """Two steps learn to end where four of the same network do, on the walks that they look at."""
    denoiser = teacher()
    walks = own_walks(denoiser, 4)
    kept = replace(walks, latents=walks.latents[:, [0, 2, 4]])
    recipe = replace(RECIPE, counts=(4, 2), rounds={2: replace(SHORT, updates=40, batch=8)})
    (student,) = teach_walks(denoiser, denoiser, kept, recipe, tmp_path, quiet)
    assert student.grid
    shown = kept.shown(torch.arange(WALKS - 2), torch.zeros(WALKS - 2, dtype=torch.int64), torch.full((WALKS - 2,), 2))
    asked = Asked(shown.said, {}, shown.guidance)
    with torch.no_grad():
        begun, learnt = (
            agreement(ended(one.sees(asked), shown.begun, walk_of(student.grid)), shown.reached)
            for one in (denoiser, student.denoiser)
        )
    assert learnt > begun + 1


def test_counts_that_are_no_chain_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="none larger than the one before"):
        plan_walks(teacher(), replace(RECIPE, counts=(12, 2, 4)))


def test_every_student_takes_its_steps_for_edits_too(tmp_path: Path) -> None:
    recipe = replace(RECIPE, strengths=(0.4, 0.8))
    students = teach_walks(teacher(), teacher(), random_walks(kinds=3), recipe, tmp_path, quiet)
    planned = plan_edits(SCHEDULE, 12, make_grid(SCHEDULE, 4), (0.4, 0.8))
    first = {strength: one.student for strength, one in planned.items()}
    second = {strength: thinned(edit, 2) for strength, edit in first.items()}
    assert [student.edits for student in students] == [first, second]


@pytest.mark.parametrize("counts", [(12, 3), (36, 18, 9, 3), (36, 18, 4), (12, 4, 3), (12, 1), (16, 3, 1)])
def test_no_level_is_that_of_two_grids(counts: tuple[int, ...]) -> None:
    """A student is told the level only, and could not tell what it is to do there."""
    for one in plan_walks(teacher(), replace(RECIPE, counts=counts, strengths=STRENGTHS)):
        levels = [timestep for grid in one.every for timestep in grid.timesteps.tolist()]
        assert len(one.every) == 10 and len(levels) == len(set(levels)) == 10 * one.grid.steps


def test_a_student_walks_parts_of_what_the_one_before_it_does() -> None:
    served = plan_walks(teacher(), replace(RECIPE, counts=(36, 18, 9, 3, 1), strengths=STRENGTHS))
    for before, after in pairwise(served):
        for fine, coarse in zip(before.every, after.every, strict=True):
            assert coarse.levels[0] == fine.levels[0] and set(coarse.levels) <= set(fine.levels)


def test_walks_of_other_kinds_are_not_looked_at() -> None:
    denoiser, walks = teacher(), random_walks(kinds=2)
    (served,) = plan_walks(denoiser, replace(RECIPE, counts=(12, 4)))
    told = {"kept": served.every, "served": served.every}
    before = [float(lesson(walks, denoiser, **told).loss(number).detach()) for number in range(3)]
    changed = walks.latents.clone()
    changed[1::2] += 1
    after = lesson(replace(walks, latents=changed), denoiser, **told)
    assert [float(after.loss(number).detach()) for number in range(3)] == before
    assert set(after.judge()) == {"agreement"}


def test_edits_are_judged_by_themselves_and_apart_from_pictures_that_were_learnt() -> None:
    denoiser, walks = teacher(), random_walks(kinds=2)
    served = plan_walks(denoiser, replace(RECIPE, counts=(12, 4), strengths=(0.5,)))[0]
    told = {"kept": served.every, "served": served.every, "judged": 3}
    one = lesson(walks, denoiser, **told)
    assert set(one.judge()) == {"agreement", "edits"}
    changed = walks.latents.clone()
    changed[8:] += 1
    other = lesson(replace(walks, latents=changed), denoiser, **told)
    assert float(one.loss(0).detach()) == float(other.loss(0).detach()), "an edit goes with the walk before it"


def test_a_walk_is_shown_at_the_levels_of_its_kind() -> None:
    """Where the kinds are mixed up, what it sees lands elsewhere."""
    denoiser = teacher()
    served = plan_walks(denoiser, replace(RECIPE, counts=(12, 4), strengths=(0.5,)))[0]
    walks = random_walks(kinds=2)
    told = {"kept": served.every, "served": served.every}
    seen: list[Tensor] = []
    hook = denoiser.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].clone()))
    with torch.no_grad():
        lesson(walks, denoiser, **told).loss(0)
    hook.remove()
    rng = np.random.default_rng((0, 7, 0))
    edits, _, steps = rng.random(4) < trajectory_regression.EDITED, rng.random(4), rng.integers(4, size=4)
    grids = [[*one.timesteps] for one in served.every]
    wanted = [grids[int(edit)][step] for edit, step in zip(edits, steps, strict=True)]
    assert {*edits} == {False, True}
    assert seen[-1].tolist() == wanted
