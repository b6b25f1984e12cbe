"""A chain: from a teacher of many guided steps to students of fewer and fewer, each the next one's teacher."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from stillhouse.diffusion import Schedule, TimestepGrid
from stillhouse.distill.data.latent_dataset import LatentDataset
from stillhouse.distill.training.low_rank import add_lora, fused_copy, lora_state_dict
from stillhouse.distill.training.methods import (
    DistillationMethod,
    GuidanceDistillation,
    PhasedConsistency,
    ProgressiveDistillation,
)
from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding, student_parameterization
from stillhouse.distill.training.stage import DistillationStage, Weighting
from stillhouse.distill.training.step_grids import GridPair, plan_edit_grids, plan_grid_pairs, refine
from stillhouse.errors import InvalidRequest
from stillhouse.fit.fit import fit
from stillhouse.fit.learner import check_fingerprint
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import FitResult, Stage, UpdateLog

METHODS: Mapping[str, Callable[[GridPair], DistillationMethod]] = MappingProxyType(
    {"progressive": ProgressiveDistillation, "consistency": PhasedConsistency}
)
"""What a round can be taught by."""
GUIDANCE = "guidance"
"""The name of the first student, which takes as many steps as one likes, in one row each."""
EDITS = "edits"
"""The name of the last student, where edits are taught: it is the one before it, and takes its steps for them, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecipe:
    """How a chain learns.

    Args:
        counts: steps of the first teacher, and of each student after it.
        method: of `METHODS`.
        guidance: scales that the students will be asked for, the least and the most.
        inside: how guidance is distilled into the network.
        rounds: how each halving is, by its count of steps.
        rank: of the factors by which a student may differ from its teacher; 0, it may differ in every weight.
        through: of walks, see `WalkLesson`.
        match: of walks, by a student's steps the weight of its `MatchLesson`.
        weighting, huber: of errors, see `Lesson`.
        checkpointing: compute activations twice instead of keeping them: less memory, a third more time.
        strengths: of edits that the last student takes its own steps for, of walks every one; see `plan_edits`.
        edits: how these are taught; None where there are no strengths.
        judged: pictures in each judgement.
        seed: of everything that is drawn.
    """

    step_counts: tuple[int, ...]
    method: str
    guidance: tuple[float, float]
    guidance_recipe: StageRecipe
    step_recipes: Mapping[int, StageRecipe]
    lora_rank: int = 0
    end_to_end_fraction: float = 0.0
    dmd_weights: Mapping[int, float] = field(default_factory=dict)
    weighting: Weighting = "v"
    huber: float = 0.0
    gradient_checkpointing: bool = False
    edit_strengths: tuple[float, ...] = ()
    edit_recipe: StageRecipe | None = None
    eval_samples: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """One of a chain.

    Args:
        name: GUIDANCE, its count of steps, or EDITS.
        denoiser: its network; low-rank factors are part of the weights.
        factors: the same once more, on their own; none where it may differ in every weight.
        grid: that it is served with; None, any.
        method: that taught it.
        fitted: what it took.
        edits: grids by strength, for pictures that begin from another one; where there are none, parts of `grid`.
    """

    name: str
    denoiser: Denoiser
    lora_weights: Mapping[str, Tensor]
    grid: TimestepGrid | None
    method: str
    fitted: FitResult
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A student to come.

    Args:
        name: see `Student`.
        method, recipe: what it learns, and how long.
        called: the method's name.
        by_walker: whether the first student teaches it, which walks any grid, and not the one before it.
    """

    name: str
    method: DistillationMethod
    recipe: StageRecipe
    method_name: str
    taught_by_first: bool = False


def train_chain(
    teacher: Denoiser,
    dataset: LatentDataset,
    recipe: ChainRecipe,
    folder: Path,
    report: Callable[[UpdateLog], None],
    deadline: float | None = None,
    observer: Callable[[Stage, UpdateLog], None] = lambda stage, tick: None,
    teacher_grid: TimestepGrid | None = None,
    origin: str = "",
    save_every: float = 120.0,
) -> Sequence[Student]:
    """Teach a whole chain; what was learnt in an earlier run is not learnt again.

    Args:
        teacher: the first one.
        pairs: what all of them look at.
        recipe: how.
        folder: of the checkpoints.
        report: hears of every few updates.
        deadline: seconds of `time.monotonic` after which no update is begun.
        watch: hears of the same, together with what is learning.
        begin: the only grid that the first teacher walks, if it was distilled to one.
        origin: tells this teacher and these pairs from all others; checkpoints of others are refused.
        save_every: as in `fit`.

    Returns:
        those that have learnt; fewer than planned where time was up.

    Raises:
        InvalidRequest: counts that are no chain.
        FitFailed: see `fit`.
    """
    students: list[Student] = []
    identity, before, walker = origin, teacher, teacher
    chain = plan_stages(teacher, recipe, teacher_grid)
    _check_checkpoints(chain, recipe, origin, folder)
    for planned in chain:
        method = planned.method
        identity = _fingerprint(identity, planned.name, method, recipe)
        lesson = _build_stage(planned, before, walker if planned.taught_by_first else before, dataset, recipe)
        lesson = replace(lesson, fingerprint=identity)
        fitted = fit(lesson, folder, _notify(report, observer, lesson), deadline, save_every)
        if not fitted.is_done:
            break
        # The next student goes on with the same factors, so that they alone tell the last one from the first teacher.
        before = freeze(lesson.student)
        if planned.name == GUIDANCE:
            walker = before
        identity = f"{identity} {fitted.updates}"
        grids = {strength: one.student for strength, one in method.edit_pairs.items()}
        walked = method.grid_pair.student if method.grid_pair else None
        students.append(make_student(planned.name, before, walked, planned.method_name, fitted, grids))
    return students


def make_student(
    name: str,
    denoiser: Denoiser,
    grid: TimestepGrid | None,
    method: str,
    fitted: FitResult,
    edit_grids: Mapping[float, TimestepGrid] = MappingProxyType({}),
) -> Student:
    """What has learnt, on its own: a copy in the processor's memory, its factors part of the weights."""
    served = Denoiser(deepcopy(fused_copy(denoiser.unet)).cpu(), denoiser.schedule, denoiser.prediction)
    return Student(name, served, lora_state_dict(denoiser.unet), grid, method, fitted, edit_grids)


def build_student_unet(denoiser: Denoiser, recipe: ChainRecipe) -> Any:
    """The U-Net that is to learn: a copy of that one, with a place for the guidance scale."""
    unet = add_guidance_embedding(denoiser.unet)
    unet = add_lora(unet, recipe.lora_rank, recipe.seed) if recipe.lora_rank else unet.requires_grad_(True)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train().to(memory_format=torch.channels_last)


def freeze(denoiser: Denoiser) -> Denoiser:
    """The same, for others to learn from."""
    denoiser.unet.zero_grad(set_to_none=True)
    denoiser.unet.eval().requires_grad_(False)
    return denoiser


def plan_stages(
    teacher: Denoiser, recipe: ChainRecipe, teacher_grid: TimestepGrid | None = None
) -> Sequence[StagePlan]:
    """Every student in turn. One that takes the guidance scale already is not taught it again.

    Raises:
        InvalidRequest: counts that are no chain, or edits of a teacher that walks one grid only.
    """
    schedule, _ = student_parameterization(teacher)
    rounds = plan_grid_pairs(schedule, recipe.step_counts, teacher_grid)
    planned = []
    for one in rounds:
        steps = one.student.steps
        planned.append(
            StagePlan(f"{steps}-steps", METHODS[recipe.method](one), recipe.step_recipes[steps], recipe.method)
        )
    if not teacher.is_conditioned:
        planned.insert(0, StagePlan(GUIDANCE, GuidanceDistillation(schedule), recipe.guidance_recipe, GUIDANCE))
    if recipe.edit_strengths:
        planned.append(_plan_edits(schedule, rounds[-1].student, recipe, teacher_grid))
    return planned


def _fingerprint(previous: str, name: str, method: DistillationMethod, recipe: ChainRecipe) -> str:
    """Of everything that decides what this student learns, its teachers included."""
    served = method.grid_pair.student.timesteps.tolist() if method.grid_pair else None
    told = [previous, name, type(method).__name__, method.level_table.timesteps.tolist(), served, recipe.guidance]
    told += [recipe.lora_rank, recipe.weighting, recipe.huber, recipe.seed]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _check_checkpoints(stages: Sequence[StagePlan], recipe: ChainRecipe, origin: str, folder: Path) -> None:
    """Refuse at once what would be refused after hours: a later student that learnt from another one than is planned.

    As far as can be told beforehand: one that may end early decides by that who the next one's teacher is.
    """
    identity = origin
    for planned in stages:
        identity = _fingerprint(identity, planned.name, planned.method, recipe)
        check_fingerprint(folder, planned.name, identity)
        if planned.recipe.patience:
            return
        identity = f"{identity} {planned.recipe.updates}"


def _plan_edits(
    schedule: Schedule, student_grid: TimestepGrid, recipe: ChainRecipe, teacher_grid: TimestepGrid | None
) -> StagePlan:
    """Pictures from noise once more, so that they are not forgotten, and edits, all from a teacher at every level.

    Each strength has levels of its own, which only a network that walks any grid has been at. Its steps are taught in
    one go, because a student between would have to know all those levels, too.
    """
    if teacher_grid is not None:
        raise InvalidRequest(
            f"edits taught by a student of {teacher_grid.steps} steps",
            allowed="a teacher that walks any number of steps",
        )
    fine, count = recipe.step_counts[0], student_grid.steps
    from_noise = GridPair(refine(schedule, student_grid, max(fine, count)), student_grid)
    method = ProgressiveDistillation(from_noise, plan_edit_grids(schedule, fine, student_grid, recipe.edit_strengths))
    assert recipe.edit_recipe is not None
    return StagePlan(EDITS, method, recipe.edit_recipe, ProgressiveDistillation.__name__.lower(), taught_by_first=True)


def _notify(
    report: Callable[[UpdateLog], None], observer: Callable[[Stage, UpdateLog], None], stage: Stage
) -> Callable[[UpdateLog], None]:
    def told(tick: UpdateLog) -> None:
        report(tick)
        observer(stage, tick)

    return told


def _build_stage(
    plan: StagePlan, initial: Denoiser, teacher: Denoiser, dataset: LatentDataset, recipe: ChainRecipe
) -> DistillationStage:
    """`before` is what the student begins as; `teacher` is asked."""
    schedule, prediction = student_parameterization(initial)
    return DistillationStage(
        name=plan.name,
        recipe=plan.recipe,
        method=plan.method,
        teacher=teacher,
        unet=build_student_unet(initial, recipe),
        schedule=schedule,
        prediction=prediction,
        dataset=dataset,
        guidance=recipe.guidance,
        weighting=recipe.weighting,
        huber=recipe.huber,
        eval_samples=recipe.eval_samples,
        seed=recipe.seed,
    )
