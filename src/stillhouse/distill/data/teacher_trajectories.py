"""Sample trajectories of a teacher and store the latents at the noise levels that a student's steps start and end at.

The teacher samples each trajectory once, with a second-order sampler. A training example from a stored trajectory costs
a fifth of an example for which a guided teacher is evaluated. The method is knowledge distillation (Luhman and Luhman,
arXiv 2101.02388) with intermediate noise levels. It needs captions, but no pictures.

A trajectory starts from pure noise or, for image-to-image, from the noised final picture of the preceding trajectory.
Trajectories for image-to-image are called edits. An edit has the caption of the preceding trajectory or a new caption.
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
from stillhouse.distill.data.shards import wait_for_shards
from stillhouse.distill.training.networks import DenoiserInputs
from stillhouse.distill.training.step_grids import refine
from stillhouse.errors import BackendFailed
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline

SOLVER = "dpmpp_2m"
"""Name of the sampler that the teacher uses: DPM-Solver++ 2M, of second order with one network evaluation a step."""
_SAME_CAPTION_SHARE = 0.5
"""Share of the image-to-image trajectories that keep the caption of the edited picture; others get a new caption."""
_OUT_OF_MEMORY = "out of memory"
_MIN_TEACHER_STEPS = 4
"""Minimum number of teacher steps in an image-to-image trajectory."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherTrajectory:
    """Latents of one picture at several noise levels while the teacher samples the picture.

    Args:
        latents: float32 [levels, C, h, w]: one entry for each noise level of the student's timestep grid, from the
            noisiest level to the clean latents.
        caption: prompt of the picture.
        guidance: guidance scale of the picture.
        kind: 0 for a trajectory from pure noise; n for an edit (image-to-image) at the n-th strength of
            `TrajectoryPlan.edit_grids`.
        cond: denoiser inputs of the caption, float32, by name.
    """

    latents: Array
    caption: str
    guidance: float
    kind: int = 0
    cond: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryBatch:
    """Latents of a batch of teacher trajectories at three noise levels.

    Args:
        start: latents at the first (noisiest) level, float32 [B, C, h, w].
        current: latents at the level where the trained step of the student starts, float32 [B, C, h, w].
        end: latents at the level where this step ends, float32 [B, C, h, w].
        cond: denoiser inputs of the captions, float32, by name, B rows each.
        guidance: guidance scales, float32 [B].
    """

    start: Tensor
    current: Tensor
    end: Tensor
    cond: DenoiserInputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryDataset:
    """Teacher trajectories in memory, with their captions and guidance scales.

    Args:
        latents: float16 [trajectories, levels, C, h, w], from the noisiest level to the clean latents. Trajectories
            with fewer levels are padded with their clean latents.
        caption_rows: row of each trajectory's caption in `text_inputs`, int64 [trajectories].
        guidance: guidance scales, float32 [trajectories].
        text_inputs: denoiser inputs of the distinct captions, by name, float16 [captions, ...].
        kinds: 0 for a trajectory from pure noise, n for an edit (image-to-image) at the n-th strength; int64
            [trajectories], on the CPU.
        uncond: denoiser inputs of the negative prompt, by name, float16, one row, on the CPU.
    """

    latents: Tensor
    caption_rows: Tensor
    guidance: Tensor
    text_inputs: DenoiserInputs
    kinds: Tensor
    uncond: DenoiserInputs

    def __len__(self) -> int:
        """Return the number of trajectories."""
        return len(self.latents)

    def to(self, device: torch.device) -> "TrajectoryDataset":
        """Return a copy on `device`, or the dataset itself where the copy does not fit or `device` is no GPU.

        The copy is made where it takes at most half of the GPU's free memory.
        """
        if device.type != "cuda":
            return self
        # The teacher's sampling has left memory in torch's cache. The cache is emptied, because `mem_get_info` would
        # count this memory as used.
        torch.cuda.empty_cache()
        size = sum(tensor.numel() * tensor.element_size() for tensor in (self.latents, *self.text_inputs.values()))
        if 2 * size > torch.cuda.mem_get_info(device)[0]:
            return self
        inputs = {name: tensor.to(device) for name, tensor in self.text_inputs.items()}
        moved = {name: getattr(self, name).to(device) for name in ("latents", "caption_rows", "guidance")}
        return replace(self, **moved, text_inputs=inputs)

    def gather(self, indices: Tensor, positions: Tensor, end_positions: Tensor) -> TrajectoryBatch:
        """Return the latents of trajectories at their first noise level and at two chosen levels, float32.

        Args:
            indices: indices of trajectories, int64 [B].
            positions: index of the noise level of the result's `current`, for each trajectory, int64 [B].
            end_positions: index of the noise level of the result's `end`, for each trajectory, int64 [B].
        """
        indices, positions, end_positions = (
            index.to(self.latents.device) for index in (indices, positions, end_positions)
        )
        rows = self.caption_rows[indices]
        return TrajectoryBatch(
            self.latents[indices, 0].float(),
            self.latents[indices, positions].float(),
            self.latents[indices, end_positions].float(),
            {name: tensor[rows].float() for name, tensor in self.text_inputs.items()},
            self.guidance[indices],
        )


def wait_for_trajectories(folder: Path) -> TrajectoryDataset:
    """Wait until a folder contains all trajectories that `write_shards` writes, then load them into memory."""
    shards = wait_for_shards(folder)
    offsets = np.cumsum([0, *(len(next(iter(shard["text_inputs"].values()))) for shard in shards)])
    return TrajectoryDataset(
        latents=torch.cat([shard["latents"] for shard in shards]),
        caption_rows=torch.cat(
            [shard["caption_rows"] + int(offset) for shard, offset in zip(shards, offsets, strict=False)]
        ),
        guidance=torch.cat([shard["guidance"] for shard in shards]),
        text_inputs={
            name: torch.cat([shard["text_inputs"][name] for shard in shards]) for name in shards[0]["text_inputs"]
        },
        kinds=torch.cat([shard["kinds"] for shard in shards]),
        uncond=shards[0]["uncond"],
    )


@dataclass(frozen=True, slots=True)
class TrajectoryPlan:
    """Number, timestep grids and guidance of the trajectories that the teacher is to sample.

    Each trajectory has a kind: 0 starts from pure noise, and n is an edit (image-to-image) at the n-th strength of
    `edit_grids`.

    Args:
        student_grid: the student's timestep grid from pure noise, on the student's noise schedule.
        teacher_steps: number of teacher steps from pure noise. An edit of strength s has round(s * teacher_steps)
            steps, but at least 4, and at least twice as many as the student.
        count: number of trajectories, edits included.
        guidance: smallest and largest guidance scale; scales are drawn uniformly between the two.
        seed: decides captions, scales and noise.
        edit_grids: the student's timestep grids for edits, by strength; none has more steps than `student_grid`.
        batch_size: number of trajectories that are sampled in one batch; halved when the memory of a GPU runs out.
    """

    student_grid: TimestepGrid
    teacher_steps: int
    count: int
    guidance: tuple[float, float]
    seed: int
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)
    batch_size: int = 8

    def routes(self, schedule: Schedule) -> tuple["TrajectoryRoute", ...]:
        """Return the teacher's timesteps and the stored noise levels for each kind of trajectory.

        Args:
            schedule: the teacher's noise schedule.

        Returns:
            a route for trajectories from pure noise, then one for each strength of `edit_grids`.
        """
        edits = (
            plan_route(schedule, edit, max(_MIN_TEACHER_STEPS, 2 * edit.steps, round(self.teacher_steps * strength)))
            for strength, edit in self.edit_grids.items()
        )
        return (plan_route(schedule, self.student_grid, self.teacher_steps), *edits)


@dataclass(frozen=True, slots=True)
class TrajectoryRoute:
    """Timestep grid of the teacher for one kind of trajectory, and the noise levels at which latents are stored.

    The stored levels are the levels of the student's grid.

    Args:
        start: the student's first level, at which trajectories start. The teacher is evaluated at its own nearest
            level, because its noise schedule may not contain `start`.
        noisier_levels: levels of the student after `start` that are at least as noisy as the teacher's first level.
            The latents at these levels are computed from the teacher's first prediction.
        teacher_grid: the teacher's timestep grid.
        stored_positions: indices in the teacher's grid of the student's other levels, the clean picture's included.
    """

    start: NoiseLevel
    noisier_levels: tuple[NoiseLevel, ...]
    teacher_grid: TimestepGrid
    stored_positions: tuple[int, ...]


def plan_route(schedule: Schedule, student_grid: TimestepGrid, steps: int) -> TrajectoryRoute:
    """Plan the teacher's timestep grid for trajectories that are stored at the student's noise levels.

    The teacher's grid contains for each student level the teacher's nearest level, by the angle atan2(sigma, alpha).
    Levels are then added between these levels until the grid has `steps` steps.

    Args:
        schedule: the teacher's noise schedule.
        student_grid: the student's timestep grid, which may be on another noise schedule.
        steps: number of teacher steps; the result has more steps where the student's levels need more.

    >>> from stillhouse.diffusion import make_grid
    >>> route = plan_route(Schedule(), make_grid(Schedule(zero_terminal_snr=True), 9), 12)
    >>> [level.timestep for level in route.noisier_levels], route.teacher_grid.timesteps.tolist()[:3]
    ([888.0], [999.0, 924.0, 848.0])
    """
    first, *others = student_grid.levels
    if schedule.is_flow:
        grid = refine(schedule, student_grid, max(steps, student_grid.steps))
        return TrajectoryRoute(first, (), grid, tuple(grid.levels.index(level) for level in others))
    alphas, sigmas = noise_levels(schedule)
    angles = np.arctan2(sigmas, alphas)

    def nearest(level: NoiseLevel) -> int:
        return int(np.abs(angles - np.arctan2(level.sigma, level.alpha)).argmin())

    timesteps, noisier = [nearest(first)], []
    for level in others[:-1]:
        if nearest(level) >= timesteps[0]:
            noisier.append(level)
        else:
            timesteps.append(min(nearest(level), timesteps[-1] - 1))
    coarse = grid_from_timesteps(schedule, [float(timestep) for timestep in timesteps])
    grid = refine(schedule, coarse, max(steps, coarse.steps))
    return TrajectoryRoute(first, tuple(noisier), grid, tuple(grid.levels.index(level) for level in coarse.levels[1:]))


def generate_trajectories(
    pipeline: Pipeline, sample_caption: Callable[[np.random.Generator], str], plan: TrajectoryPlan, start: int = 0
) -> Iterator[TeacherTrajectory]:
    """Sample and yield the teacher's trajectories in a fixed order, so that an interrupted run can be continued.

    The plan's seed and the number of a trajectory decide its caption, guidance scale and noise. Where the plan has
    edits (image-to-image), every second trajectory edits the picture of the preceding trajectory.

    Args:
        pipeline: the teacher.
        sample_caption: draws a caption with a random generator.
        plan: number and timestep grids of the trajectories, seed and range of guidance scales.
        start: number of trajectories to skip, because an earlier run has already sampled them.
    """
    routes = plan.routes(pipeline.manifest.sampling.schedule)
    each = 2 if plan.edit_grids else 1
    last = -(-plan.count // each)
    teacher = _BatchedTeacher(pipeline, plan.batch_size)
    # Inference backends round differently for different batch sizes. Batches therefore start at multiples of the batch
    # size, so that a resumed run computes each trajectory in the same batch as an uninterrupted run.
    for number in range(start // each // plan.batch_size * plan.batch_size, last, plan.batch_size):
        rngs = [
            np.random.default_rng((plan.seed, 6, index)) for index in range(number, min(number + plan.batch_size, last))
        ]
        sources = [_start_trajectory(pipeline, routes[0], sample_caption(rng), plan.guidance, rng) for rng in rngs]
        groups = [_run_trajectories(teacher, sources, [routes[0]] * len(sources), [0] * len(sources))]
        if plan.edit_grids:
            kinds = [1 + int(rng.integers(len(plan.edit_grids))) for rng in rngs]
            edit_routes = [routes[kind] for kind in kinds]
            edits = [
                _start_edit(pipeline, sample_caption, route, plan.guidance, rng, source)
                for route, rng, source in zip(edit_routes, rngs, sources, strict=True)
            ]
            finished = _run_trajectories(teacher, edits, edit_routes, kinds)
            groups.append([_pad(trajectory, plan.student_grid.steps) for trajectory in finished])
        ordered = [trajectory for group in zip(*groups, strict=True) for trajectory in group]
        yield from ordered[max(0, start - number * each) : plan.count - number * each]


@dataclass(slots=True)
class _BatchedTeacher:
    """A teacher that splits batches of trajectories into parts that fit into the memory of the GPU.

    Args:
        pipeline: the teacher.
        max_batch: largest number of trajectories in a part; `advance` halves it in place when memory runs out.
    """

    pipeline: Pipeline
    max_batch: int

    def advance(self, trajectories: Sequence[ImageTrajectory]) -> None:
        """Advance each trajectory in place by one evaluation of the teacher's denoiser."""
        done = 0
        while done < len(trajectories):
            batch = trajectories[done : done + self.max_batch]
            try:
                self.pipeline.advance(batch)
            except BackendFailed as error:
                if _OUT_OF_MEMORY not in str(error) or self.max_batch == 1:
                    raise
                self.max_batch = -(-len(batch) // 2)
                torch.cuda.empty_cache()
            else:
                done += len(batch)


def _run_trajectories(
    teacher: _BatchedTeacher,
    trajectories: Sequence[ImageTrajectory],
    routes: Sequence[TrajectoryRoute],
    kinds: Sequence[int],
) -> list[TeacherTrajectory]:
    """Sample started trajectories to their end, in place, and return their latents at the levels of the student's grid.

    Args:
        teacher: the teacher.
        trajectories: trajectories at their first noise level.
        routes: for each trajectory the levels at which latents are stored.
        kinds: for each trajectory 0 for pure noise, n for an edit at the n-th strength.
    """
    to_numpy = teacher.pipeline.arrays.to_numpy
    stored = [[to_numpy(trajectory.latents)] for trajectory in trajectories]
    while pending := [number for number, trajectory in enumerate(trajectories) if not trajectory.is_done]:
        teacher.advance([trajectories[number] for number in pending])
        for number in pending:
            trajectory, route, latents = trajectories[number], routes[number], stored[number]
            if trajectory.index == 1:
                assert trajectory.denoised is not None
                steps = [ddim_coefficients(route.start, level) for level in route.noisier_levels]
                latents += [step.z * latents[0] + step.x0 * to_numpy(trajectory.denoised) for step in steps]
            if trajectory.index in route.stored_positions:
                latents.append(to_numpy(trajectory.latents))
    finished = []
    for trajectory, latents, kind in zip(trajectories, stored, kinds, strict=True):
        scale = trajectory.request.guidance
        assert scale is not None
        cond = inputs_to_numpy(teacher.pipeline, trajectory.branches[CONDITIONAL].inputs)
        finished.append(TeacherTrajectory(np.stack(latents), trajectory.request.prompt, scale, kind, cond))
    return finished


def _pad(trajectory: TeacherTrajectory, steps: int) -> TeacherTrajectory:
    """Return a copy of a trajectory whose clean latents are repeated until it has latents at `steps` + 1 levels."""
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
    """Start an image-to-image trajectory from the latents of `source`, noised to the route's first level.

    Args:
        pipeline, source: the teacher, and a finished trajectory whose picture is edited.
        sample_caption: draws a new caption with `rng`; half of the edits keep the caption of `source` instead.
        route: the teacher's timestep grid, and the noise level at which the edit starts.
        guidance, rng: smallest and largest guidance scale; `rng` decides caption, guidance scale and noise.
    """
    caption = source.request.prompt if rng.random() < _SAME_CAPTION_SHARE else sample_caption(rng)
    trajectory = _start_trajectory(pipeline, route, caption, guidance, rng)
    trajectory.latents = add_noise(source.latents, trajectory.latents, route.start.alpha, route.start.sigma)
    return trajectory


def _start_trajectory(
    pipeline: Pipeline, route: TrajectoryRoute, caption: str, guidance: tuple[float, float], rng: np.random.Generator
) -> ImageTrajectory:
    """Start a trajectory of the teacher from pure noise on the timestep grid of a route.

    The guidance scale is drawn by `rng` from the range `guidance`, and guidance acts in all steps.
    """
    scale, seed = float(rng.uniform(*guidance)), int(rng.integers(2**62))
    started = pipeline.start(ImageRequest(caption, guidance=scale, seed=seed, sampler=SOLVER))
    return ImageTrajectory(
        started.plan.with_grid(route.teacher_grid, replace(started.plan.guidance, interval=(0.0, 1.0))),
        started.latents,
        started.branches,
        request=started.request,
        started=started.started,
    )


def encode_trajectories(pipeline: Pipeline, trajectories: Sequence[TeacherTrajectory]) -> dict[str, Any]:
    """Convert trajectories into the content of one cache file (shard) for `write_shards`.

    Returns:
        the fields of `TrajectoryDataset` by name, for these trajectories only.
    """
    row_of: dict[str, int] = {}
    inputs: list[DenoiserInputs] = []
    for trajectory in trajectories:
        if trajectory.caption not in row_of:
            row_of[trajectory.caption] = len(row_of)
            inputs.append(inputs_to_f16(trajectory.cond))
    return {
        "latents": torch.from_numpy(np.stack([trajectory.latents for trajectory in trajectories])).half(),
        "caption_rows": torch.tensor([row_of[trajectory.caption] for trajectory in trajectories]),
        "guidance": torch.tensor([trajectory.guidance for trajectory in trajectories], dtype=torch.float32),
        "text_inputs": {name: torch.stack([row[name] for row in inputs]) for name in inputs[0]},
        "kinds": torch.tensor([trajectory.kind for trajectory in trajectories]),
        "uncond": encode_negative_prompt(pipeline),
    }
