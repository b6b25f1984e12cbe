"""A chain: from a teacher of many guided steps to students of fewer and fewer, each the next one's teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.diffusion import Grid, Schedule
from stillhouse.distill.lesson import Lesson, Weighting
from stillhouse.distill.methods import Guidance, Method, Progressive
from stillhouse.distill.networks import Denoiser, conditioned_on_guidance
from stillhouse.distill.pairs import Pairs
from stillhouse.distill.rounds import plan_rounds
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Tick, fit


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecipe:
    """How a chain learns.

    Args:
        counts: steps of the first teacher, and of each student after it.
        guidance: scales that the students will be asked for, the least and the most.
        inside: how guidance is distilled into the network.
        round: how each halving is, unless `rounds` says something else for that count of steps.
        rounds: by count of steps.
        weighting: of errors by their levels.
        seed: of everything that is drawn.
    """

    counts: tuple[int, ...]
    guidance: tuple[float, float]
    inside: StageRecipe
    round: StageRecipe
    rounds: dict[int, StageRecipe]
    weighting: Weighting = "v"
    seed: int = 0

    def of(self, steps: int) -> StageRecipe:
        """The recipe of the student that takes so many steps."""
        return self.rounds.get(steps, self.round)


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """One of a chain: its network, and the grid that it is served with; None, any."""

    name: str
    denoiser: Denoiser
    grid: Grid | None


def distil(
    teacher: Denoiser,
    pairs: Pairs,
    recipe: ChainRecipe,
    folder: Path,
    report: Callable[[Tick], None],
    deadline: float | None = None,
    done: Callable[[Student], None] = lambda student: None,
) -> Sequence[Student]:
    """Teach a whole chain; what was learnt in an earlier run is not learnt again.

    Args:
        teacher: the first one.
        pairs: what all of them look at.
        recipe: how.
        folder: of the checkpoints.
        report: hears of every few updates.
        deadline: seconds of `time.monotonic` after which no update is begun.
        done: hears of each student that has learnt.

    Returns:
        those that have learnt; fewer than planned where time was up.
    """
    schedule = teacher.schedule
    students: list[Student] = []
    for name, method, how in _lessons(schedule, recipe):
        lesson = _lesson(name, method, how, teacher, pairs, recipe)
        if not fit(lesson, folder, report, deadline):
            break
        teacher = frozen(lesson.student)
        students.append(Student(name, teacher, method.grid))
        done(students[-1])
    return students


def frozen(denoiser: Denoiser) -> Denoiser:
    """The same, for others to learn from."""
    denoiser.unet.eval().requires_grad_(False)
    return denoiser


def _lessons(schedule: Schedule, recipe: ChainRecipe) -> Sequence[tuple[str, Method, StageRecipe]]:
    counts = ((one, one.student.steps) for one in plan_rounds(schedule, recipe.counts))
    rounds = [(f"{steps}-steps", Progressive(one), recipe.of(steps)) for one, steps in counts]
    return [("guidance", Guidance(schedule), recipe.inside), *rounds]


def _lesson(
    name: str, method: Method, how: StageRecipe, teacher: Denoiser, pairs: Pairs, recipe: ChainRecipe
) -> Lesson:
    unet: Any = conditioned_on_guidance(teacher.unet)
    return Lesson(
        name=name,
        recipe=how,
        method=method,
        teacher=teacher,
        unet=unet.train().requires_grad_(True).to(memory_format=torch.channels_last),
        schedule=teacher.schedule,
        prediction=teacher.prediction,
        pairs=pairs,
        guidance=recipe.guidance,
        weighting=recipe.weighting,
        seed=recipe.seed,
    )
