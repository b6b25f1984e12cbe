"""Students of kept walks: each begins as the one before it, and all look at the same walks."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.diffusion import TimestepGrid
from stillhouse.distill.data.teacher_trajectories import TrajectoryDataset
from stillhouse.distill.training.dmd import DistributionMatching
from stillhouse.distill.training.networks import Denoiser, student_parameterization
from stillhouse.distill.training.progressive_chain import ChainRecipe, Student, build_student_unet, freeze, make_student
from stillhouse.distill.training.step_grids import coarsen, plan_edit_grids, plan_grid_pairs
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.fit.fit import fit
from stillhouse.fit.stage import Stage, UpdateLog

TRAJECTORY = "walks"
"""The method's name."""


@dataclass(frozen=True, slots=True)
class StudentGrids:
    """What a student of walks is to walk: from pure noise, and by strength from another picture; of as many steps."""

    grid: TimestepGrid
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)

    @property
    def all_grids(self) -> tuple[TimestepGrid, ...]:
        """By the kinds of `walks.Plan`."""
        return (self.grid, *self.edit_grids.values())


def plan_student_grids(initial: Denoiser, recipe: ChainRecipe) -> tuple[StudentGrids, ...]:
    """What each student walks: parts of what the one before it does, from noise and from other pictures.

    Raises:
        InvalidRequest: counts that are no chain.
    """
    schedule, _ = student_parameterization(initial)
    first, *others = (one.student for one in plan_grid_pairs(schedule, recipe.step_counts))
    rounds = plan_edit_grids(schedule, recipe.step_counts[0], first, recipe.edit_strengths)
    served = [StudentGrids(first, {strength: one.student for strength, one in rounds.items()})]
    for grid in others:
        edits = {strength: coarsen(edit, grid.steps) for strength, edit in served[-1].edit_grids.items()}
        served.append(StudentGrids(grid, edits))
    return tuple(served)


def train_on_trajectories(
    teacher: Denoiser,
    initial: Denoiser,
    dataset: TrajectoryDataset,
    recipe: ChainRecipe,
    folder: Path,
    report: Callable[[UpdateLog], None],
    deadline: float | None = None,
    observer: Callable[[Stage, UpdateLog], None] = lambda stage, tick: None,
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
    served, identity, before = plan_student_grids(initial, recipe), origin, initial
    kept, dataset = served[0].all_grids, dataset.to(next(initial.unet.parameters()).device)
    for one in served:
        identity = _fingerprint(identity, one, recipe)
        schedule, prediction = student_parameterization(before)
        walked = TrajectoryRegressionStage(
            name=f"{one.grid.steps}-steps",
            recipe=recipe.step_recipes[one.grid.steps],
            unet=build_student_unet(before, recipe),
            schedule=schedule,
            prediction=prediction,
            dataset=dataset,
            stored_grids=kept,
            student_grids=one.all_grids,
            end_to_end_fraction=recipe.end_to_end_fraction,
            weighting=recipe.weighting,
            huber=recipe.huber,
            seed=recipe.seed,
            eval_samples=recipe.eval_samples,
            fingerprint=identity,
        )

        weight = recipe.dmd_weights.get(one.grid.steps, 0.0)
        lesson = _distribution_matching(walked, teacher, recipe, weight) if weight else walked

        def told(tick: UpdateLog, lesson: TrajectoryRegressionStage | DistributionMatching = lesson) -> None:
            report(tick)
            observer(lesson, tick)

        fitted = fit(lesson, folder, told, deadline, save_every)
        if not fitted.is_done:
            break
        before = freeze(lesson.student)
        identity = f"{identity} {fitted.updates}"
        students.append(make_student(lesson.name, before, one.grid, TRAJECTORY, fitted, one.edit_grids))
    return students


def _distribution_matching(
    regression: TrajectoryRegressionStage, teacher: Denoiser, recipe: ChainRecipe, weight: float
) -> DistributionMatching:
    fake = build_student_unet(teacher, recipe)
    unsaid = {name: row.float() for name, row in regression.dataset.uncond.items()}
    return DistributionMatching(regression=regression, teacher=teacher, fake_score=fake, uncond=unsaid, weight=weight)


def _fingerprint(previous: str, student_grids: StudentGrids, recipe: ChainRecipe) -> str:
    told = [previous, TRAJECTORY, *(one.timesteps.tolist() for one in student_grids.all_grids)]
    told += [recipe.lora_rank, recipe.end_to_end_fraction, recipe.dmd_weights.get(student_grids.grid.steps, 0.0)]
    told += [recipe.weighting, recipe.huber, recipe.seed, recipe.eval_samples]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
