"""Students of kept walks: each begins as the one before it, and all look at the same walks."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from stillhouse.diffusion import Grid
from stillhouse.distill.chain import ChainRecipe, Student, frozen, learner, taught
from stillhouse.distill.networks import Denoiser, taught_as
from stillhouse.distill.rounds import plan_rounds
from stillhouse.distill.walk_lesson import WalkLesson
from stillhouse.distill.walks import KeptWalks
from stillhouse.fit.fit import fit
from stillhouse.fit.stage import Stage, Tick

WALKS = "walks"
"""The method's name."""


def grids(begin: Denoiser, counts: Sequence[int]) -> tuple[Grid, ...]:
    """The grid of each student, each a part of the one before; walks are kept at the first one's levels.

    Raises:
        InvalidRequest: counts that are no chain.
    """
    schedule, _ = taught_as(begin)
    return tuple(one.student for one in plan_rounds(schedule, counts))


def teach_walks(
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
        begin: what the first student begins as: the teacher, or a student of its.
        walks: the teacher's, at the levels of the first of `grids`.
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
    served, identity, before = grids(begin, recipe.counts), origin, begin
    for one in served:
        identity = _identity(identity, one, recipe)
        schedule, prediction = taught_as(before)
        lesson = WalkLesson(
            name=f"{one.steps}-steps",
            recipe=recipe.rounds[one.steps],
            unet=learner(before, recipe),
            schedule=schedule,
            prediction=prediction,
            walks=walks,
            kept=served[0],
            served=one,
            weighting=recipe.weighting,
            huber=recipe.huber,
            seed=recipe.seed,
            judged=recipe.judged,
            identity=identity,
        )

        def told(tick: Tick, lesson: WalkLesson = lesson) -> None:
            report(tick)
            watch(lesson, tick)

        fitted = fit(lesson, folder, told, deadline, save_every)
        if not fitted.is_done:
            break
        before = frozen(lesson.student)
        identity = f"{identity} {fitted.updates}"
        students.append(taught(lesson.name, before, one, WALKS, fitted))
    return students


def _identity(before: str, served: Grid, recipe: ChainRecipe) -> str:
    told = [before, WALKS, served.timesteps.tolist(), recipe.rank, recipe.weighting, recipe.huber, recipe.seed]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
