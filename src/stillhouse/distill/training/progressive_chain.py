"""Train a chain of students: first guidance is distilled, then each student learns from one with more steps."""

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
from stillhouse.distill.training.distillation_stage import DistillationStage
from stillhouse.distill.training.low_rank import add_lora, fused_copy, lora_state_dict
from stillhouse.distill.training.methods import (
    DistillationMethod,
    GuidanceDistillation,
    PhasedConsistency,
    ProgressiveDistillation,
)
from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding, student_parameterization
from stillhouse.distill.training.step_grids import GridPair, plan_edit_grids, plan_grid_pairs, refine
from stillhouse.distill.training.student_stage import Weighting
from stillhouse.errors import InvalidRequest
from stillhouse.fit.fit import fit
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import FitResult, Stage, UpdateLog
from stillhouse.fit.trainer import check_fingerprint

METHODS: Mapping[str, Callable[[GridPair], DistillationMethod]] = MappingProxyType(
    {"progressive": ProgressiveDistillation, "consistency": PhasedConsistency}
)
"""Distillation methods that reduce the number of steps, by their names in `distill.toml`."""
GUIDANCE = "guidance"
"""Name of the first student of a chain, in which each student is the teacher of the next.

The network of the first student takes the guidance scale as an input. This student needs one denoiser row a step
instead of two, and may be sampled at any timesteps.
"""
EDITS = "edits"
"""Name of the last student of a chain for the task img2img, which is also trained at the noise levels of
image-to-image.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRecipe:
    """Hyper-parameters for training all students of a teacher, by a chain of students or by trajectory regression.

    In a chain each student is the teacher of the next. In trajectory regression all students learn from stored
    trajectories of the teacher.

    Args:
        step_counts: number of sampling steps of the teacher, then of each student in the order of training.
        method: "progressive" or "consistency" (chains), or "trajectories" (trajectory regression).
        guidance: smallest and largest guidance scale that the students are trained for.
        guidance_recipe: training of the first student of a chain, which distils guidance.
        step_recipes: training of the other students, by their number of steps.
        lora_rank: rank of LoRA weights; 0: all weights are trained.
        end_to_end_fraction: share of the examples, 0 to 1, in which a student takes all of its steps; only for
            trajectory regression.
        dmd_weights: weight of the distribution matching loss (DMD), by a student's number of steps; only for trajectory
            regression. A student without an entry is trained without DMD.
        weighting: weight of the error by noise level: v (SNR + 1) or snr_trunc (max(SNR, 1)).
        huber: width of the pseudo-Huber loss; 0: squared error.
        gradient_checkpointing: whether activations are recomputed in the backward pass, which saves memory and takes a
            third more time.
        edit_strengths: strengths of image-to-image that the last student of a chain is trained for, or all students of
            trajectory regression; empty: no image-to-image.
        edit_recipe: training of the last student of a chain for image-to-image; None without `edit_strengths`.
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
    """A trained student: a distilled denoiser with the timesteps at which it may be sampled.

    Args:
        name: "guidance", "N-steps" such as "9-steps", or "edits".
        denoiser: the student's network on the CPU; LoRA weights are fused into the other weights.
        lora_weights: the separate LoRA weights and the projection of the guidance scale, by name; empty where all
            weights were trained.
        grid: timesteps from pure noise; None: the student may be sampled at any timesteps.
        method: name of the method that trained the student.
        fitted: number of updates, duration and scores of the training.
        edit_grids: timesteps for image-to-image by strength; where empty, an edit uses the last timesteps of `grid`.
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
    """Files, progress reports and time limit that the training of all students of a teacher shares.

    Args:
        folder: folder of checkpoints and logs.
        report: receives the progress of each student's training.
        observer: receives the same progress after `report`, together with the network in training, to render previews.
        deadline: time of `time.monotonic` in seconds after which no update starts; None: no limit.
        save_every: seconds between two checkpoints.
    """

    folder: Path
    report: Callable[[UpdateLog], None]
    observer: Callable[[Stage, UpdateLog], None] = lambda stage, update_log: None
    deadline: float | None = None
    save_every: float = 120.0

    def fit(self, stage: Stage) -> FitResult:
        """Train one student's network until its last update or the deadline, and return the result.

        Args:
            stage: the training task: network, loss and evaluation.

        Raises:
            FitFailed: training cannot continue, or a checkpoint cannot be used or written.
        """

        def report(update_log: UpdateLog) -> None:
            self.report(update_log)
            self.observer(stage, update_log)

        return fit(stage, self.folder, report, self.deadline, self.save_every)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Plan for the training of one student in a chain.

    Args:
        name: name of the student: "guidance", "N-steps" or "edits".
        method: how noise levels and targets of the training examples are made.
        recipe: hyper-parameters of the training.
        method_name: name of the method in the student's manifest.
        taught_by_first: True: the student's teacher is the first student of the chain ("guidance"), which may be
            evaluated at any noise level. False: the teacher is the preceding student.
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
    """Train the students of a chain one after the other, resuming from checkpoints.

    Each student starts from the weights of the preceding student.

    Args:
        teacher: teacher of the first student.
        dataset: clean latents and text inputs for all students.
        recipe: hyper-parameters of all students.
        run: folder of checkpoints, receivers of progress, and time limit.
        teacher_grid: the only timesteps at which a distilled teacher may be sampled; None: any timesteps.
        origin: identifies teacher and dataset; checkpoints that were trained with another origin are refused.

    Returns:
        the trained students in the order of training; fewer than planned where the deadline passed first.

    Raises:
        InvalidRequest: the step counts increase, or do not start with the teacher's number of steps.
        FitFailed: training cannot continue, or a checkpoint cannot be used or written.
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
        # `before` is the network that the next student starts from: this student with its LoRA weights. One set of LoRA
        # weights therefore holds the whole difference between the last student and the first teacher.
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
    """Return a `Student` that holds a copy of the denoiser on the CPU, with the LoRA weights fused into the others.

    Args:
        name: name of the student, such as "9-steps".
        denoiser: the trained denoiser; it stays unchanged.
        grid: timesteps from pure noise; None: the student may be sampled at any timesteps.
        method: name of the method that trained the student.
        fitted: result of the training.
        edit_grids: timesteps for image-to-image, by strength.
    """
    copy = Denoiser(deepcopy(fused_copy(denoiser.network)).cpu(), denoiser.schedule, denoiser.prediction)
    return Student(name, copy, lora_state_dict(denoiser.network), grid, method, fitted, edit_grids)


def build_student_network(denoiser: Denoiser, recipe: ChainRecipe) -> Any:
    """Return a trainable copy of a denoiser's network that takes the guidance scale as an input.

    Where the recipe has a LoRA rank, only LoRA weights and the projection of the guidance scale are trained.
    """
    network = add_guidance_embedding(denoiser.network)
    network = add_lora(network, recipe.lora_rank, recipe.seed) if recipe.lora_rank else network.requires_grad_(True)
    if recipe.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network.train().to(memory_format=torch.channels_last)


def freeze(denoiser: Denoiser) -> Denoiser:
    """Prepare a denoiser in place for use without training, and return it.

    Gradients are deleted and disabled, and the network is set to evaluation mode.
    """
    denoiser.network.zero_grad(set_to_none=True)
    denoiser.network.eval().requires_grad_(False)
    return denoiser


def plan_stages(
    teacher: Denoiser, recipe: ChainRecipe, teacher_grid: TimestepGrid | None = None
) -> Sequence[StagePlan]:
    """Plan the training of each student in a chain, in the order of training.

    The first student distils guidance, unless the teacher already takes the guidance scale as an input.

    Args:
        teacher: teacher of the first student.
        recipe: hyper-parameters of all students.
        teacher_grid: the only timesteps at which a distilled teacher may be sampled; None: any timesteps.

    Raises:
        InvalidRequest: the step counts increase, or do not start with the teacher's number of steps; or image-to-image
            is to be trained, but the teacher may only be sampled at `teacher_grid`.
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
    """Return a hash of everything that decides a student's weights; checkpoints with another hash are refused.

    Args:
        previous: hash of the preceding student, or of teacher and dataset for the first student.
        name: name of the student.
        method: distillation method, with the timestep grids of the training.
        recipe: hyper-parameters of all students.
    """
    timesteps = method.grid_pair.student.timesteps.tolist() if method.grid_pair else None
    parts = [previous, name, type(method).__name__, method.level_table.timesteps.tolist(), timesteps, recipe.guidance]
    parts += [recipe.lora_rank, recipe.weighting, recipe.huber, recipe.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _check_checkpoints(stages: Sequence[StagePlan], recipe: ChainRecipe, origin: str, folder: Path) -> None:
    """Raise FitFailed if a checkpoint in `folder` was trained with another teacher, with other data or other settings.

    The students are checked in the order of training, up to the first one whose training may stop early (`patience`).
    The fingerprints (hashes of teacher, data and settings) of later students depend on the number of updates of this
    student, which is not known before the training.

    Args:
        stages: plans of all students.
        recipe: hyper-parameters of all students.
        origin: identifies teacher and dataset.
        folder: folder of the checkpoints.
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
    """Plan the training of the last student for image-to-image; some of its examples still start from pure noise.

    Each strength has noise levels of its own, so the teacher must be usable at every level. The training reduces the
    number of steps at once, because an intermediate student would also have to be trained at all of these levels.

    Args:
        schedule: noise schedule of the students.
        student_grid: timesteps of the preceding student from pure noise, which the last student keeps.
        recipe: hyper-parameters of all students.
        teacher_grid: the only timesteps at which a distilled teacher may be sampled; None: any timesteps.

    Raises:
        InvalidRequest: `teacher_grid` is given.
    """
    if teacher_grid is not None:
        raise InvalidRequest(
            f"task img2img cannot use a teacher that was distilled to {teacher_grid.steps} steps",
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
