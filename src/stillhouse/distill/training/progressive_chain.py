"""Training of a progressive chain: guidance distillation first, then students with fewer and fewer steps."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from stillhouse.diffusion import Schedule, TimestepGrid
from stillhouse.distill.data.latent_dataset import LatentDataset
from stillhouse.distill.training.distillation_stage import DistillationStage, Weighting
from stillhouse.distill.training.low_rank import add_lora, fused_copy, lora_state_dict
from stillhouse.distill.training.methods import (
    DistillationMethod,
    GuidanceDistillation,
    PhasedConsistency,
    ProgressiveDistillation,
)
from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding, student_parameterization
from stillhouse.distill.training.step_grids import GridPair, plan_edit_grids, plan_grid_pairs, refine
from stillhouse.errors import InvalidRequest
from stillhouse.fit.fit import fit
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import FitResult, Stage, UpdateLog
from stillhouse.fit.trainer import check_fingerprint

METHODS: Mapping[str, Callable[[GridPair], DistillationMethod]] = MappingProxyType(
    {"progressive": ProgressiveDistillation, "consistency": PhasedConsistency}
)
"""Methods that reduce the number of steps, by their names in settings."""
GUIDANCE = "guidance"
"""Name of the first student, which is guidance-distilled: any timestep grid, one denoiser row for each step."""
EDITS = "edits"
"""Name of the last student where edits are trained: it is also trained at the levels of image-to-image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecipe:
    """Hyper-parameters of a chain of students.

    Args:
        step_counts: steps of the first teacher, then of each student.
        method: a key of `METHODS`, or the name of trajectory regression.
        guidance: smallest and largest guidance scale of the students.
        guidance_recipe: recipe of guidance distillation.
        step_recipes: recipes of the students by their number of steps.
        lora_rank: rank of LoRA weights; 0: all weights are trained.
        end_to_end_fraction: see `TrajectoryRegressionStage`; a chain does not use this value.
        dmd_weights: weight of `DistributionMatching` in trajectory regression, by a student's number of steps.
        weighting, huber: form of the loss, see `DistillationStage`.
        gradient_checkpointing: recompute activations in the backward pass, which saves memory and takes a third more
            time.
        edit_strengths: strengths of image-to-image, see `plan_edit_grids`. A chain trains its last student for them;
            trajectory regression trains all students for them.
        edit_recipe: recipe of the last student of a chain; None without `edit_strengths`.
        eval_samples: number of pictures in each evaluation.
        seed: decides all random numbers.
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
    """A trained student.

    Args:
        name: GUIDANCE, `N-steps`, or EDITS.
        denoiser: the student's network on the CPU; LoRA weights are fused into the other weights.
        lora_weights: see `lora_state_dict`; empty where all weights were trained.
        grid: the student's timestep grid from pure noise; None: the student may be sampled on any grid.
        method: name of the method that trained the student.
        fitted: result of the training.
        edit_grids: grids of image-to-image by strength; where empty, an edit uses the last part of `grid`.
    """

    name: str
    denoiser: Denoiser
    lora_weights: Mapping[str, Tensor]
    grid: TimestepGrid | None
    method: str
    fitted: FitResult
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Files, progress reports and time limit of the stages of a chain.

    Args:
        folder: folder of checkpoints and logs.
        report: receives the progress of each stage.
        observer: receives each stage together with its progress, to render previews.
        deadline: time of `time.monotonic` in seconds after which no update starts; None: no limit.
        save_every: seconds between two checkpoints.
    """

    folder: Path
    report: Callable[[UpdateLog], None]
    observer: Callable[[Stage, UpdateLog], None] = lambda stage, update_log: None
    deadline: float | None = None
    save_every: float = 120.0

    def fit(self, stage: Stage) -> FitResult:
        """Train a stage; see `fit.fit.fit`."""

        def report(update_log: UpdateLog) -> None:
            self.report(update_log)
            self.observer(stage, update_log)

        return fit(stage, self.folder, report, self.deadline, self.save_every)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Plan for the training of one student.

    Args:
        name: see `Student`.
        method: levels and targets of the training examples.
        recipe: hyper-parameters.
        method_name: name of the method in manifests.
        taught_by_first: True: the student's teacher is the guidance-distilled student, which is defined at every level.
            False: the teacher is the preceding student.
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
    run: TrainingRun,
    teacher_grid: TimestepGrid | None = None,
    origin: str = "",
) -> Sequence[Student]:
    """Train each student of a chain in turn, resuming from checkpoints.

    Args:
        teacher: teacher of the first student.
        dataset: clean latents and text inputs for all students.
        recipe: hyper-parameters.
        run: folder, progress and time limit.
        teacher_grid: the only timestep grid of a distilled teacher; None: the teacher may be sampled on any grid.
        origin: fingerprint of the teacher and the dataset; checkpoints of another teacher or dataset are refused.

    Returns:
        the trained students; fewer than planned where the deadline passed.

    Raises:
        InvalidRequest: the step counts are not a chain; see `plan_grid_pairs`.
        FitFailed: see `fit`.
    """
    students: list[Student] = []
    fingerprint, before, first = origin, teacher, teacher
    plans = plan_stages(teacher, recipe, teacher_grid)
    _check_checkpoints(plans, recipe, origin, run.folder)
    for plan in plans:
        fingerprint = _fingerprint(fingerprint, plan.name, plan.method, recipe)
        stage = _build_stage(plan, before, first if plan.taught_by_first else before, dataset, recipe, fingerprint)
        result = run.fit(stage)
        if not result.is_done:
            break
        # The next student continues with the same LoRA weights. These weights alone are then the difference between the
        # last student and the first teacher.
        before = freeze(stage.student)
        if plan.name == GUIDANCE:
            first = before
        fingerprint = f"{fingerprint} {result.updates}"
        edit_grids = {strength: pair.student for strength, pair in plan.method.edit_pairs.items()}
        grid = plan.method.grid_pair.student if plan.method.grid_pair else None
        students.append(make_student(plan.name, before, grid, plan.method_name, result, edit_grids))
    return students


def make_student(
    name: str,
    denoiser: Denoiser,
    grid: TimestepGrid | None,
    method: str,
    fitted: FitResult,
    edit_grids: Mapping[float, TimestepGrid] = MappingProxyType({}),
) -> Student:
    """Return a student with a copy of the denoiser on the CPU, LoRA weights fused."""
    copy = Denoiser(deepcopy(fused_copy(denoiser.network)).cpu(), denoiser.schedule, denoiser.prediction)
    return Student(name, copy, lora_state_dict(denoiser.network), grid, method, fitted, edit_grids)


def build_student_network(denoiser: Denoiser, recipe: ChainRecipe) -> Any:
    """Return a trainable copy of a denoiser with a guidance embedding, and LoRA weights where the recipe has a rank."""
    network = add_guidance_embedding(denoiser.network)
    network = add_lora(network, recipe.lora_rank, recipe.seed) if recipe.lora_rank else network.requires_grad_(True)
    if recipe.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network.train().to(memory_format=torch.channels_last)


def freeze(denoiser: Denoiser) -> Denoiser:
    """Drop a denoiser's gradients, disable new ones, set evaluation mode, and return the denoiser."""
    denoiser.network.zero_grad(set_to_none=True)
    denoiser.network.eval().requires_grad_(False)
    return denoiser


def plan_stages(
    teacher: Denoiser, recipe: ChainRecipe, teacher_grid: TimestepGrid | None = None
) -> Sequence[StagePlan]:
    """Plan the stages of a chain; a guidance-distilled teacher needs no stage of guidance distillation.

    Raises:
        InvalidRequest: the step counts are not a chain, or edits are asked of a teacher that has a single grid.
    """
    schedule, _ = student_parameterization(teacher)
    pairs = plan_grid_pairs(schedule, recipe.step_counts, teacher_grid)
    plans = []
    for pair in pairs:
        steps = pair.student.steps
        method = METHODS[recipe.method](pair)
        plans.append(StagePlan(f"{steps}-steps", method, recipe.step_recipes[steps], recipe.method))
    if not teacher.is_conditioned:
        plans.insert(0, StagePlan(GUIDANCE, GuidanceDistillation(schedule), recipe.guidance_recipe, GUIDANCE))
    if recipe.edit_strengths:
        plans.append(_plan_edits(schedule, pairs[-1].student, recipe, teacher_grid))
    return plans


def _fingerprint(previous: str, name: str, method: DistillationMethod, recipe: ChainRecipe) -> str:
    """Return a hash of everything that decides this student's weights; `previous` is the preceding fingerprint."""
    timesteps = method.grid_pair.student.timesteps.tolist() if method.grid_pair else None
    parts = [previous, name, type(method).__name__, method.level_table.timesteps.tolist(), timesteps, recipe.guidance]
    parts += [recipe.lora_rank, recipe.weighting, recipe.huber, recipe.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _check_checkpoints(stages: Sequence[StagePlan], recipe: ChainRecipe, origin: str, folder: Path) -> None:
    """Raise FitFailed before training starts if the checkpoint of any stage has another fingerprint.

    After a stage with a patience the check stops: later fingerprints contain that stage's number of updates, which is
    not known yet.
    """
    fingerprint = origin
    for plan in stages:
        fingerprint = _fingerprint(fingerprint, plan.name, plan.method, recipe)
        check_fingerprint(folder, plan.name, fingerprint)
        if plan.recipe.patience:
            return
        fingerprint = f"{fingerprint} {plan.recipe.updates}"


def _plan_edits(
    schedule: Schedule, student_grid: TimestepGrid, recipe: ChainRecipe, teacher_grid: TimestepGrid | None
) -> StagePlan:
    """Plan the stage of edits, which also repeats the examples from pure noise.

    Each strength has levels of its own, so the teacher must be defined at every level. One stage reduces the number of
    steps at once, because an intermediate student would also have to be trained at all of these levels.
    """
    if teacher_grid is not None:
        raise InvalidRequest(
            f"task img2img with a teacher that was distilled to {teacher_grid.steps} steps",
            allowed="a teacher that takes any number of steps",
        )
    teacher_steps = recipe.step_counts[0]
    from_noise = GridPair(refine(schedule, student_grid, max(teacher_steps, student_grid.steps)), student_grid)
    edits = plan_edit_grids(schedule, teacher_steps, student_grid, recipe.edit_strengths)
    assert recipe.edit_recipe is not None
    method = ProgressiveDistillation(from_noise, edits)
    return StagePlan(EDITS, method, recipe.edit_recipe, "progressive", taught_by_first=True)


def _build_stage(
    plan: StagePlan, initial: Denoiser, teacher: Denoiser, dataset: LatentDataset, recipe: ChainRecipe, fingerprint: str
) -> DistillationStage:
    schedule, prediction = student_parameterization(initial)
    return DistillationStage(
        name=plan.name,
        recipe=plan.recipe,
        method=plan.method,
        teacher=teacher,
        network=build_student_network(initial, recipe),
        schedule=schedule,
        prediction=prediction,
        dataset=dataset,
        guidance=recipe.guidance,
        weighting=recipe.weighting,
        huber=recipe.huber,
        eval_samples=recipe.eval_samples,
        seed=recipe.seed,
        fingerprint=fingerprint,
    )
