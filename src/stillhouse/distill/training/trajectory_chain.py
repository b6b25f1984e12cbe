"""Students of kept walks: each begins as the one before it, and all look at the same walks."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.diffusion import TimestepGrid
from stillhouse.distill.data.teacher_trajectories import KeptWalks
from stillhouse.distill.training.dmd import MatchLesson
from stillhouse.distill.training.networks import Denoiser, taught_as
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, frozen, learner, taught
from stillhouse.distill.training.step_grids import plan_edits, plan_rounds, thinned
from stillhouse.distill.training.trajectory_regression import WalkLesson
from stillhouse.fit.fit import fit
from stillhouse.fit.stage import Stage, Tick

WALKS = "walks"
"""The method's name."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a student of walks is to walk: from pure noise, and by strength from another picture; of as many steps."""

    grid: TimestepGrid
    edits: Mapping[float, TimestepGrid] = field(default_factory=dict)

    @property
    def every(self) -> tuple[TimestepGrid, ...]:
        """By the kinds of `walks.Plan`."""
        return (self.grid, *self.edits.values())


def plan_walks(begin: Denoiser, recipe: ChainRecipe) -> tuple[Served, ...]:
    """What each student walks: parts of what the one before it does, from noise and from other pictures.

    Raises:
        InvalidRequest: counts that are no chain.
    """
    schedule, _ = taught_as(begin)
    first, *others = (one.student for one in plan_rounds(schedule, recipe.counts))
    rounds = plan_edits(schedule, recipe.counts[0], first, recipe.strengths)
    served = [Served(first, {strength: one.student for strength, one in rounds.items()})]
    for grid in others:
        edits = {strength: thinned(edit, grid.steps) for strength, edit in served[-1].edits.items()}
        served.append(Served(grid, edits))
    return tuple(served)


def teach_walks(
    teacher: Denoiser,
    begin: Denoiser,
    walks: KeptWalks,
    recipe: ChainRecipe,
    folder: Path,
    report: Callable[[Tick], None],
    deadline: float | None = None,
    watch: Callable[[Stage, Tick], None] = lambda stage, tick: None,
    origin: str = "",
    save_every: float = 120.0,
) -> Sequence[Student]:
    """Teach each student in turn; what was learnt in an earlier run is not learnt again.

    Args:
        teacher: who walked; it is asked where pictures are matched.
        begin: what the first student begins as: the teacher, or a student of its.
        walks: the teacher's, at the levels of the first of `plan_walks`.
        recipe: how; its counts are of the teacher's walk and of each student.
        folder, report, deadline, watch, save_every: as in `chain.teach`.
        origin: tells this beginning and these walks from all others.

    Returns:
        those that have learnt; fewer than planned where time was up.

    Raises:
        InvalidRequest: counts that are no chain.
        FitFailed: see `fit`.
    """
    students: list[Student] = []
    served, identity, before = plan_walks(begin, recipe), origin, begin
    kept, walks = served[0].every, walks.on(next(begin.unet.parameters()).device)
    for one in served:
        identity = _identity(identity, one, recipe)
        schedule, prediction = taught_as(before)
        walked = WalkLesson(
            name=f"{one.grid.steps}-steps",
            recipe=recipe.rounds[one.grid.steps],
            unet=learner(before, recipe),
            schedule=schedule,
            prediction=prediction,
            walks=walks,
            kept=kept,
            served=one.every,
            through=recipe.through,
            weighting=recipe.weighting,
            huber=recipe.huber,
            seed=recipe.seed,
            judged=recipe.judged,
            identity=identity,
        )

        weight = recipe.match.get(one.grid.steps, 0.0)
        lesson = _matching(walked, teacher, recipe, weight) if weight else walked

        def told(tick: Tick, lesson: WalkLesson | MatchLesson = lesson) -> None:
            report(tick)
            watch(lesson, tick)

        fitted = fit(lesson, folder, told, deadline, save_every)
        if not fitted.is_done:
            break
        before = frozen(lesson.student)
        identity = f"{identity} {fitted.updates}"
        students.append(taught(lesson.name, before, one.grid, WALKS, fitted, one.edits))
    return students


def _matching(walked: WalkLesson, teacher: Denoiser, recipe: ChainRecipe, weight: float) -> MatchLesson:
    fake = learner(teacher, recipe)
    unsaid = {name: row.float() for name, row in walked.walks.unsaid.items()}
    return MatchLesson(walks=walked, teacher=teacher, fake=fake, unsaid=unsaid, weight=weight)


def _identity(before: str, served: Served, recipe: ChainRecipe) -> str:
    told = [before, WALKS, *(one.timesteps.tolist() for one in served.every)]
    told += [recipe.rank, recipe.through, recipe.match.get(served.grid.steps, 0.0)]
    told += [recipe.weighting, recipe.huber, recipe.seed, recipe.judged]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
