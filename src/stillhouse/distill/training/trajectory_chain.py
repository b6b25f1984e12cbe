"""Train students by regression on one set of teacher trajectories; each starts from the preceding student's weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stillhouse.diffusion import TimestepGrid
from stillhouse.distill.data.teacher_trajectories import TrajectoryDataset
from stillhouse.distill.training.dmd import DistributionMatching
from stillhouse.distill.training.networks import Denoiser, student_parameterization
from stillhouse.distill.training.progressive_chain import (
    ChainRecipe,
    Student,
    TrainingRun,
    build_student_network,
    freeze,
    make_student,
)
from stillhouse.distill.training.step_grids import coarsen, plan_edit_grids, plan_grid_pairs
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage

TRAJECTORIES = "trajectories"
"""Name, in settings and manifests, of the method that trains students on stored trajectories of the teacher."""


@dataclass(frozen=True, slots=True)
class StudentGrids:
    """Timestep grids of one student, which all have the same number of steps.

    Args:
        grid: timesteps for pictures from pure noise.
        edit_grids: timesteps for image-to-image, by strength.
    """

    grid: TimestepGrid
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)

    @property
    def all_grids(self) -> tuple[TimestepGrid, ...]:
        """The grid from pure noise, followed by the grids for image-to-image in the order of their strengths."""
        return (self.grid, *self.edit_grids.values())


def plan_student_grids(initial: Denoiser, recipe: ChainRecipe) -> tuple[StudentGrids, ...]:
    """Plan the timestep grids of each student, in the order of training.

    A student's noise levels are a subset of the preceding student's levels.

    Args:
        initial: denoiser that the first student starts from; it decides the noise schedule.
        recipe: hyper-parameters of all students, with their numbers of steps and strengths of image-to-image.

    Raises:
        InvalidRequest: the step counts increase, or a strength is too small for the first student's number of steps.
    """
    schedule, _ = student_parameterization(initial)
    first, *others = (pair.student for pair in plan_grid_pairs(schedule, recipe.step_counts))
    edit_pairs = plan_edit_grids(schedule, recipe.step_counts[0], first, recipe.edit_strengths)
    planned = [StudentGrids(first, {strength: pair.student for strength, pair in edit_pairs.items()})]
    for grid in others:
        edits = {strength: coarsen(edit, grid.steps) for strength, edit in planned[-1].edit_grids.items()}
        planned.append(StudentGrids(grid, edits))
    return tuple(planned)


def train_on_trajectories(
    teacher: Denoiser,
    initial: Denoiser,
    dataset: TrajectoryDataset,
    recipe: ChainRecipe,
    run: TrainingRun,
    origin: str = "",
) -> Sequence[Student]:
    """Train the students one after the other by regression on the teacher's trajectories, resuming from checkpoints.

    Args:
        teacher: the teacher, which is evaluated only for students that are also trained by distribution matching (DMD,
            see `ChainRecipe.dmd_weights`).
        initial: denoiser whose weights the first student starts from: the teacher, or one of its students.
        dataset: the teacher's trajectories, stored at the first student's noise levels (see `plan_student_grids`).
        recipe: hyper-parameters of all students; the first step count is the teacher's.
        run: folder of checkpoints, receivers of progress, and time limit.
        origin: identifies initial weights and dataset; checkpoints that were trained with another origin are refused.

    Returns:
        the trained students in the order of training; fewer than planned where the deadline passed first.

    Raises:
        InvalidRequest: the step counts increase, or a strength is too small for the first student's number of steps.
        FitFailed: training cannot continue, or a checkpoint cannot be used or written.
    """
    students: list[Student] = []
    planned, fingerprint, before = plan_student_grids(initial, recipe), origin, initial
    dataset = dataset.to(next(initial.network.parameters()).device)
    for grids in planned:
        fingerprint = _fingerprint(fingerprint, grids, recipe)
        regression = _regression_stage(before, dataset, planned[0], grids, recipe, fingerprint)
        weight = recipe.dmd_weights.get(grids.grid.steps, 0.0)
        stage = _distribution_matching(regression, teacher, recipe, weight) if weight else regression
        result = run.fit(stage)
        if not result.is_done:
            break
        before = freeze(stage.student)
        fingerprint = f"{fingerprint} {result.updates}"
        students.append(make_student(stage.name, before, grids.grid, TRAJECTORIES, result, grids.edit_grids))
    return students


def _regression_stage(
    initial: Denoiser,
    dataset: TrajectoryDataset,
    stored: StudentGrids,
    grids: StudentGrids,
    recipe: ChainRecipe,
    fingerprint: str,
) -> TrajectoryRegressionStage:
    schedule, prediction = student_parameterization(initial)
    return TrajectoryRegressionStage(
        name=f"{grids.grid.steps}-steps",
        recipe=recipe.step_recipes[grids.grid.steps],
        network=build_student_network(initial, recipe),
        schedule=schedule,
        prediction=prediction,
        dataset=dataset,
        stored_grids=stored.all_grids,
        student_grids=grids.all_grids,
        end_to_end_fraction=recipe.end_to_end_fraction,
        weighting=recipe.weighting,
        huber=recipe.huber,
        seed=recipe.seed,
        eval_samples=recipe.eval_samples,
        fingerprint=fingerprint,
    )


def _distribution_matching(
    regression: TrajectoryRegressionStage, teacher: Denoiser, recipe: ChainRecipe, weight: float
) -> DistributionMatching:
    fake_score = build_student_network(teacher, recipe)
    uncond = {name: row.float() for name, row in regression.dataset.uncond.items()}
    return DistributionMatching(
        regression=regression, teacher=teacher, fake_score=fake_score, uncond=uncond, weight=weight
    )


def _fingerprint(previous: str, grids: StudentGrids, recipe: ChainRecipe) -> str:
    """Return a hash of everything that decides a student's weights; checkpoints with another hash are refused.

    Args:
        previous: hash of the preceding student, or of initial weights and dataset for the first student.
        grids: timestep grids of the student.
        recipe: hyper-parameters of all students.
    """
    parts = [previous, TRAJECTORIES, *(grid.timesteps.tolist() for grid in grids.all_grids)]
    parts += [recipe.lora_rank, recipe.end_to_end_fraction, recipe.dmd_weights.get(grids.grid.steps, 0.0)]
    parts += [recipe.weighting, recipe.huber, recipe.seed, recipe.eval_samples]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
