"""Walks: what the teacher itself passes through on its way to a picture, kept at the levels of a student's grid.

The teacher walks each of them once, by the engine that serves it or by torch on a GPU, and by a solver of second order,
and its student looks at them as often as it likes: beside asking a guided teacher for every target, that costs a fifth.
It is knowledge distillation as Luhman and Luhman began it (arXiv 2101.02388), with the levels between, and of data it
needs none.

Edits are walks, too: they begin at a picture with noise over it, whose picture is where the walk before has come, under
the same caption or a new one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.core import Array, ImageRequest
from stillhouse.diffusion import (
    CONDITIONAL,
    NoiseLevel,
    Schedule,
    TimestepGrid,
    add_noise,
    ddim_coefficients,
    grid_from_timesteps,
    noise_levels,
)
from stillhouse.distill.data.latent_dataset import encode_negative_prompt, inputs_to_f16, inputs_to_numpy
from stillhouse.distill.data.shards import wait_for_shards as awaited_parts
from stillhouse.distill.training.networks import UNetInputs
from stillhouse.distill.training.step_grids import refine
from stillhouse.errors import BackendFailed
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline

SOLVER = "dpmpp_2m"
"""By which the teacher walks: second order for the price of one evaluation a step."""
_SAME_CAPTION_SHARE = 0.5
"""Of the edits, those that keep the caption of their picture."""
_OUT_OF_MEMORY = "out of memory"
_MIN_TEACHER_STEPS = 4
"""Steps of the teacher's, however short its walk is."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherTrajectory:
    """One walk.

    Args:
        latents: float32 [levels, C, h, w]: where it was at each level of its grid, the noisiest first, and the clean
            picture last.
        caption: that it followed.
        guidance: by this scale.
        kind: of its grid, see `Plan`.
        said: what the network is told by the caption, float32 by input.
    """

    latents: Array
    caption: str
    guidance: float
    kind: int = 0
    cond: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryBatch:
    """A batch of places on walks.

    Args:
        begun: where each walk begins, float32 [B, C, h, w].
        here: where it is at its place.
        reached: where it is at the next level.
        said: prompts, by input.
        guidance: scales, float32 [B].
    """

    start: Tensor
    current: Tensor
    end: Tensor
    cond: UNetInputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryDataset:
    """Walks that were made before.

    Args:
        latents: float16 [walks, levels, C, h, w].
        captions: int64 [walks]: rows of `texts`.
        guidance: float32 [walks].
        texts: by input, float16 [captions, ...].
        kinds: int64 [walks]: of their grids, see `Plan`; on the processor. Edits are shorter than walks from noise can
            be; behind their clean picture it is repeated.
        unsaid: the negative prompt, by input, float16, one row; on the processor.
    """

    latents: Tensor
    caption_rows: Tensor
    guidance: Tensor
    text_inputs: UNetInputs
    kinds: Tensor
    uncond: UNetInputs

    def __len__(self) -> int:
        """How many."""
        return len(self.latents)

    def to(self, device: torch.device) -> "TrajectoryDataset":
        """The same in a GPU's memory, where it takes half of what is free there at most; else as they are."""
        if device.type != "cuda":
            return self
        torch.cuda.empty_cache()  # what making them took is free again
        held = sum(tensor.numel() * tensor.element_size() for tensor in (self.latents, *self.text_inputs.values()))
        if 2 * held > torch.cuda.mem_get_info(device)[0]:
            return self
        texts = {name: kept.to(device) for name, kept in self.text_inputs.items()}
        moved = {name: getattr(self, name).to(device) for name in ("latents", "captions", "guidance")}
        return replace(self, **moved, text_inputs=texts)

    def gather(self, indices: Tensor, positions: Tensor, end_positions: Tensor) -> TrajectoryBatch:
        """Of these walks, int64 [B], what is at these levels and at those that are reached next, int64 [B] both."""
        indices, positions, end_positions = (
            index.to(self.latents.device) for index in (indices, positions, end_positions)
        )
        rows = self.caption_rows[indices]
        return TrajectoryBatch(
            self.latents[indices, 0].float(),
            self.latents[indices, positions].float(),
            self.latents[indices, end_positions].float(),
            {name: kept[rows].float() for name, kept in self.text_inputs.items()},
            self.guidance[indices],
        )


def wait_for_trajectories(folder: Path) -> TrajectoryDataset:
    """Those of a folder, as soon as the process that makes them is done."""
    parts = awaited_parts(folder)
    begins = np.cumsum([0, *(len(next(iter(part["texts"].values()))) for part in parts)])
    return TrajectoryDataset(
        latents=torch.cat([part["latents"] for part in parts]),
        caption_rows=torch.cat([part["captions"] + int(begin) for part, begin in zip(parts, begins, strict=False)]),
        guidance=torch.cat([part["guidance"] for part in parts]),
        text_inputs={name: torch.cat([part["texts"][name] for part in parts]) for name in parts[0]["texts"]},
        kinds=torch.cat([part["kinds"] for part in parts]),
        uncond=parts[0]["unsaid"],
    )


@dataclass(frozen=True, slots=True)
class TrajectoryPlan:
    """Walks that a teacher is to make.

    Args:
        served: the student's grid from pure noise, of its own schedule: the first kind of walks.
        steps: of the teacher's walk from pure noise. In an edit its steps are as long, and it takes twice as many as
            the student at least.
        count: of the walks.
        guidance: scales, the least and the most, drawn evenly.
        seed: of everything that is drawn.
        edits: grids for pictures that begin from another one, by strength, of no more steps than `served`: the other
            kinds, in this order.
        together: walks that are made at once; fewer where a GPU's memory is too small.
    """

    student_grid: TimestepGrid
    teacher_steps: int
    count: int
    guidance: tuple[float, float]
    seed: int
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)
    batch_size: int = 8

    def routes(self, schedule: Schedule) -> tuple["TrajectoryRoute", ...]:
        """Each kind of walks, as a teacher of this schedule walks it."""
        edits = (
            plan_route(schedule, edit, max(_MIN_TEACHER_STEPS, 2 * edit.steps, round(self.teacher_steps * strength)))
            for strength, edit in self.edit_grids.items()
        )
        return (plan_route(schedule, self.student_grid, self.teacher_steps), *edits)


@dataclass(frozen=True, slots=True)
class TrajectoryRoute:
    """What a teacher walks, and where it is kept.

    Args:
        first: the student's first level, where walks are laid out. A teacher that was not taught it is shown it all the
            same, at its own first one.
        above: the student's levels after that which are as noisy as the teacher's first one, or noisier.
        fine: the teacher's grid.
        places: of the student's other levels in it, CLEAN included.
    """

    start: NoiseLevel
    noisier_levels: tuple[NoiseLevel, ...]
    teacher_grid: TimestepGrid
    stored_positions: tuple[int, ...]


def plan_route(schedule: Schedule, student_grid: TimestepGrid, steps: int) -> TrajectoryRoute:
    """How a teacher of this schedule walks a student's grid: its levels are the nearest, by the angle atan2(sigma,
    alpha), and as many others as make so many steps.

    >>> from stillhouse.diffusion import grid
    >>> route = route_of(Schedule(), grid(Schedule(zero_terminal_snr=True), 9), 12)
    >>> [point.timestep for point in route.above], route.fine.timesteps.tolist()[:3]
    ([888.0], [999.0, 924.0, 848.0])
    """
    first, *others = student_grid.levels
    if schedule.is_flow:
        fine = refine(schedule, student_grid, max(steps, student_grid.steps))
        return TrajectoryRoute(first, (), fine, tuple(fine.levels.index(point) for point in others))
    alphas, sigmas = noise_levels(schedule)
    angles = np.arctan2(sigmas, alphas)

    def nearest(point: NoiseLevel) -> int:
        return int(np.abs(angles - np.arctan2(point.sigma, point.alpha)).argmin())

    levels, above = [nearest(first)], []
    for point in others[:-1]:
        if nearest(point) >= levels[0]:
            above.append(point)
        else:
            levels.append(min(nearest(point), levels[-1] - 1))
    own = grid_from_timesteps(schedule, [float(level) for level in levels])
    fine = refine(schedule, own, max(steps, own.steps))
    return TrajectoryRoute(first, tuple(above), fine, tuple(fine.levels.index(point) for point in own.levels[1:]))


def generate_trajectories(
    pipeline: Pipeline, sample_caption: Callable[[np.random.Generator], str], plan: TrajectoryPlan, start: int = 0
) -> Iterator[TeacherTrajectory]:
    """The teacher's walks, each decided by the seed and its number alone.

    Where there are edits, every second walk is one, of the picture before it.

    Args:
        pipeline: the teacher.
        captions: draws one.
        plan: which walks.
        begin: so many are left out, as if they had been made before.
    """
    routes = plan.routes(pipeline.manifest.schedule)
    each = 2 if plan.edit_grids else 1
    last = -(-plan.count // each)
    engine = _BatchedTeacher(pipeline, plan.batch_size)
    # Cut as they would be from the first one on: engines round differently where rows lie differently.
    for number in range(start // each // plan.batch_size * plan.batch_size, last, plan.batch_size):
        rngs = [
            np.random.default_rng((plan.seed, 6, one)) for one in range(number, min(number + plan.batch_size, last))
        ]
        drafts = [_start_trajectory(pipeline, routes[0], sample_caption(rng), plan.guidance, rng) for rng in rngs]
        made = [_run_trajectories(engine, drafts, [routes[0]] * len(drafts), [0] * len(drafts))]
        if plan.edit_grids:
            kinds = [1 + int(rng.integers(len(plan.edit_grids))) for rng in rngs]
            taken = [routes[kind] for kind in kinds]
            edited = [
                _start_edit(pipeline, sample_caption, route, plan.guidance, rng, draft)
                for route, rng, draft in zip(taken, rngs, drafts, strict=True)
            ]
            made.append(
                [_pad(walk, plan.student_grid.steps) for walk in _run_trajectories(engine, edited, taken, kinds)]
            )
        every = [walk for one in zip(*made, strict=True) for walk in one]
        yield from every[max(0, start - number * each) : plan.count - number * each]


@dataclass(slots=True)
class _BatchedTeacher:
    """A pipeline, and how many pictures it takes at once: half as many from the moment on when memory is too small."""

    pipeline: Pipeline
    max_batch: int

    def advance(self, trajectories: Sequence[ImageTrajectory]) -> None:
        """Move each by one evaluation."""
        done = 0
        while done < len(trajectories):
            some = trajectories[done : done + self.max_batch]
            try:
                self.pipeline.advance(some)
            except BackendFailed as error:
                if _OUT_OF_MEMORY not in str(error) or self.max_batch == 1:
                    raise
                self.max_batch = -(-len(some) // 2)
                torch.cuda.empty_cache()
            else:
                done += len(some)


def _run_trajectories(
    teacher: _BatchedTeacher,
    trajectories: Sequence[ImageTrajectory],
    routes: Sequence[TrajectoryRoute],
    kinds: Sequence[int],
) -> list[TeacherTrajectory]:
    """Each draft from its beginning to its picture."""
    read = teacher.pipeline.arrays.to_numpy
    passed = [[read(draft.latents)] for draft in trajectories]
    while moving := [number for number, draft in enumerate(trajectories) if not draft.is_done]:
        teacher.advance([trajectories[number] for number in moving])
        for number in moving:
            draft, route, latents = trajectories[number], routes[number], passed[number]
            if draft.index == 1:
                assert draft.denoised is not None
                moves = [ddim_coefficients(route.start, point) for point in route.noisier_levels]
                latents += [move.z * latents[0] + move.x0 * read(draft.denoised) for move in moves]
            if draft.index in route.stored_positions:
                latents.append(read(draft.latents))
    made = []
    for draft, latents, kind in zip(trajectories, passed, kinds, strict=True):
        scale = draft.request.guidance
        assert scale is not None
        said = inputs_to_numpy(teacher.pipeline, draft.branches[CONDITIONAL].inputs)
        made.append(TeacherTrajectory(np.stack(latents), draft.request.prompt, scale, kind, said))
    return made


def _pad(trajectory: TeacherTrajectory, steps: int) -> TeacherTrajectory:
    """As long as one of so many steps."""
    missing = steps + 1 - len(trajectory.latents)
    return replace(trajectory, latents=np.concatenate([trajectory.latents, *[trajectory.latents[-1:]] * missing]))


def _start_edit(
    pipeline: Pipeline,
    sample_caption: Callable[[np.random.Generator], str],
    route: TrajectoryRoute,
    guidance: tuple[float, float],
    rng: np.random.Generator,
    source: ImageTrajectory,
) -> ImageTrajectory:
    """A walk from a picture with noise over it."""
    caption = source.request.prompt if rng.random() < _SAME_CAPTION_SHARE else sample_caption(rng)
    draft = _start_trajectory(pipeline, route, caption, guidance, rng)
    draft.latents = add_noise(source.latents, draft.latents, route.start.alpha, route.start.sigma)
    return draft


def _start_trajectory(
    pipeline: Pipeline, route: TrajectoryRoute, caption: str, guidance: tuple[float, float], rng: np.random.Generator
) -> ImageTrajectory:
    """A walk from pure noise."""
    scale, seed = float(rng.uniform(*guidance)), int(rng.integers(2**62))
    draft = pipeline.start(ImageRequest(caption, guidance=scale, seed=seed, sampler=SOLVER))
    return ImageTrajectory(
        draft.plan.with_grid(route.teacher_grid, replace(draft.plan.guidance, interval=(0.0, 1.0))),
        draft.latents,
        draft.branches,
        request=draft.request,
        started=draft.started,
    )


def encode_trajectories(pipeline: Pipeline, trajectories: Sequence[TeacherTrajectory]) -> dict[str, Any]:
    """A part of them, as `parts.keep` writes it."""
    rows: dict[str, int] = {}
    texts: list[UNetInputs] = []
    for walk in trajectories:
        if walk.caption not in rows:
            rows[walk.caption] = len(rows)
            texts.append(inputs_to_f16(walk.cond))
    return {
        "latents": torch.from_numpy(np.stack([walk.latents for walk in trajectories])).half(),
        "captions": torch.tensor([rows[walk.caption] for walk in trajectories]),
        "guidance": torch.tensor([walk.guidance for walk in trajectories], dtype=torch.float32),
        "texts": {name: torch.stack([text[name] for text in texts]) for name in texts[0]},
        "kinds": torch.tensor([walk.kind for walk in trajectories]),
        "unsaid": encode_negative_prompt(pipeline),
    }
