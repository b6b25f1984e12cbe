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
from stillhouse.distill.data.latent_dataset import Pairs
from stillhouse.distill.training.low_rank import factors, fused, with_low_rank
from stillhouse.distill.training.methods import Consistency, Guidance, Method, Progressive
from stillhouse.distill.training.networks import Denoiser, conditioned_on_guidance, taught_as
from stillhouse.distill.training.stage import Lesson, Weighting
from stillhouse.distill.training.step_grids import Round, plan_edits, plan_rounds, refined
from stillhouse.errors import InvalidRequest
from stillhouse.fit.fit import fit
from stillhouse.fit.learner import check_identity
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Fitted, Stage, Tick

METHODS: Mapping[str, Callable[[Round], Method]] = MappingProxyType(
    {"progressive": Progressive, "consistency": Consistency}
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

    counts: tuple[int, ...]
    method: str
    guidance: tuple[float, float]
    inside: StageRecipe
    rounds: Mapping[int, StageRecipe]
    rank: int = 0
    through: float = 0.0
    match: Mapping[int, float] = field(default_factory=dict)
    weighting: Weighting = "v"
    huber: float = 0.0
    checkpointing: bool = False
    strengths: tuple[float, ...] = ()
    edits: StageRecipe | None = None
    judged: int = 16
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
    factors: Mapping[str, Tensor]
    grid: TimestepGrid | None
    method: str
    fitted: Fitted
    edits: Mapping[float, TimestepGrid] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planned:
    """A student to come.

    Args:
        name: see `Student`.
        method, recipe: what it learns, and how long.
        called: the method's name.
        by_walker: whether the first student teaches it, which walks any grid, and not the one before it.
    """

    name: str
    method: Method
    recipe: StageRecipe
    called: str
    by_walker: bool = False


def teach(
    teacher: Denoiser,
    pairs: Pairs,
    recipe: ChainRecipe,
    folder: Path,
    report: Callable[[Tick], None],
    deadline: float | None = None,
    watch: Callable[[Stage, Tick], None] = lambda stage, tick: None,
    begin: TimestepGrid | None = None,
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
    chain = lessons(teacher, recipe, begin)
    _check_kept(chain, recipe, origin, folder)
    for planned in chain:
        method = planned.method
        identity = _identity(identity, planned.name, method, recipe)
        lesson = _lesson(planned, before, walker if planned.by_walker else before, pairs, recipe)
        lesson = replace(lesson, identity=identity)
        fitted = fit(lesson, folder, _both(report, watch, lesson), deadline, save_every)
        if not fitted.is_done:
            break
        # The next student goes on with the same factors, so that they alone tell the last one from the first teacher.
        before = frozen(lesson.student)
        if planned.name == GUIDANCE:
            walker = before
        identity = f"{identity} {fitted.updates}"
        grids = {strength: one.student for strength, one in method.edits.items()}
        walked = method.round.student if method.round else None
        students.append(taught(planned.name, before, walked, planned.called, fitted, grids))
    return students


def taught(
    name: str,
    denoiser: Denoiser,
    grid: TimestepGrid | None,
    method: str,
    fitted: Fitted,
    edits: Mapping[float, TimestepGrid] = MappingProxyType({}),
) -> Student:
    """What has learnt, on its own: a copy in the processor's memory, its factors part of the weights."""
    served = Denoiser(deepcopy(fused(denoiser.unet)).cpu(), denoiser.schedule, denoiser.prediction)
    return Student(name, served, factors(denoiser.unet), grid, method, fitted, edits)


def learner(before: Denoiser, recipe: ChainRecipe) -> Any:
    """The U-Net that is to learn: a copy of that one, with a place for the guidance scale."""
    unet = conditioned_on_guidance(before.unet)
    unet = with_low_rank(unet, recipe.rank, recipe.seed) if recipe.rank else unet.requires_grad_(True)
    if recipe.checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train().to(memory_format=torch.channels_last)


def frozen(denoiser: Denoiser) -> Denoiser:
    """The same, for others to learn from."""
    denoiser.unet.zero_grad(set_to_none=True)
    denoiser.unet.eval().requires_grad_(False)
    return denoiser


def lessons(teacher: Denoiser, recipe: ChainRecipe, begin: TimestepGrid | None = None) -> Sequence[Planned]:
    """Every student in turn. One that takes the guidance scale already is not taught it again.

    Raises:
        InvalidRequest: counts that are no chain, or edits of a teacher that walks one grid only.
    """
    schedule, _ = taught_as(teacher)
    rounds = plan_rounds(schedule, recipe.counts, begin)
    planned = []
    for one in rounds:
        steps = one.student.steps
        planned.append(Planned(f"{steps}-steps", METHODS[recipe.method](one), recipe.rounds[steps], recipe.method))
    if not teacher.is_conditioned:
        planned.insert(0, Planned(GUIDANCE, Guidance(schedule), recipe.inside, GUIDANCE))
    if recipe.strengths:
        planned.append(_edits(schedule, rounds[-1].student, recipe, begin))
    return planned


def _identity(before: str, name: str, method: Method, recipe: ChainRecipe) -> str:
    """Of everything that decides what this student learns, its teachers included."""
    served = method.round.student.timesteps.tolist() if method.round else None
    told = [before, name, type(method).__name__, method.walk.timesteps.tolist(), served, recipe.guidance]
    told += [recipe.rank, recipe.weighting, recipe.huber, recipe.seed]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _check_kept(chain: Sequence[Planned], recipe: ChainRecipe, origin: str, folder: Path) -> None:
    """Refuse at once what would be refused after hours: a later student that learnt from another one than is planned.

    As far as can be told beforehand: one that may end early decides by that who the next one's teacher is.
    """
    identity = origin
    for planned in chain:
        identity = _identity(identity, planned.name, planned.method, recipe)
        check_identity(folder, planned.name, identity)
        if planned.recipe.patience:
            return
        identity = f"{identity} {planned.recipe.updates}"


def _edits(schedule: Schedule, served: TimestepGrid, recipe: ChainRecipe, begin: TimestepGrid | None) -> Planned:
    """Pictures from noise once more, so that they are not forgotten, and edits, all from a teacher at every level.

    Each strength has levels of its own, which only a network that walks any grid has been at. Its steps are taught in
    one go, because a student between would have to know all those levels, too.
    """
    if begin is not None:
        raise InvalidRequest(
            f"edits taught by a student of {begin.steps} steps", allowed="a teacher that walks any number of steps"
        )
    fine, count = recipe.counts[0], served.steps
    from_noise = Round(refined(schedule, served, max(fine, count)), served)
    method = Progressive(from_noise, plan_edits(schedule, fine, served, recipe.strengths))
    assert recipe.edits is not None
    return Planned(EDITS, method, recipe.edits, Progressive.__name__.lower(), by_walker=True)


def _both(report: Callable[[Tick], None], watch: Callable[[Stage, Tick], None], stage: Stage) -> Callable[[Tick], None]:
    def told(tick: Tick) -> None:
        report(tick)
        watch(stage, tick)

    return told


def _lesson(planned: Planned, before: Denoiser, teacher: Denoiser, pairs: Pairs, recipe: ChainRecipe) -> Lesson:
    """`before` is what the student begins as; `teacher` is asked."""
    schedule, prediction = taught_as(before)
    return Lesson(
        name=planned.name,
        recipe=planned.recipe,
        method=planned.method,
        teacher=teacher,
        unet=learner(before, recipe),
        schedule=schedule,
        prediction=prediction,
        pairs=pairs,
        guidance=recipe.guidance,
        weighting=recipe.weighting,
        huber=recipe.huber,
        judged=recipe.judged,
        seed=recipe.seed,
    )
