"""Teacher trajectories: latents of the teacher's sampling, stored at the levels of a student's grid.

The teacher samples each trajectory once, with a second-order solver. A training example from a stored trajectory costs
a fifth of an example for which a guided teacher is evaluated. This is knowledge distillation (Luhman and Luhman, arXiv
2101.02388) with intermediate levels. No pictures are needed.

Edits are trajectories that start from a noised picture: the final picture of the preceding trajectory. An edit has the
caption of that picture or a new caption.
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
"""Sampler of the teacher: second order with one evaluation a step."""
_SAME_CAPTION_SHARE = 0.5
"""Share of edits that keep the caption of the edited picture."""
_OUT_OF_MEMORY = "out of memory"
_MIN_TEACHER_STEPS = 4
"""Minimum number of teacher steps in the trajectory of an edit."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherTrajectory:
    """Latents of one picture while the teacher samples it.

    Args:
        latents: float32 [levels, C, h, w]: one row for each level of the student's grid, from the noisiest level to the
            clean latents.
        caption: the prompt.
        guidance: the guidance scale.
        kind: index of the trajectory's grid, see `TrajectoryPlan`.
        cond: denoiser inputs of the caption, float32, by name.
    """

    latents: Array
    caption: str
    guidance: float
    kind: int = 0
    cond: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryBatch:
    """Latents of a batch of trajectories at three levels.

    Args:
        start: latents at the first level, float32 [B, C, h, w].
        current: latents at the level where the student's step starts, in the same shape.
        end: latents at the level where the student's step ends, in the same shape.
        cond: denoiser inputs of the captions, by name.
        guidance: guidance scales, float32 [B].
    """

    start: Tensor
    current: Tensor
    end: Tensor
    cond: DenoiserInputs
    guidance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryDataset:
    """Trajectories in memory.

    Args:
        latents: float16 [trajectories, levels, C, h, w]; edits with fewer levels are padded with their clean latents.
        caption_rows: rows of `text_inputs`, int64 [trajectories].
        guidance: guidance scales, float32 [trajectories].
        text_inputs: denoiser inputs of the distinct captions, by name, float16 [captions, ...].
        kinds: indices of the trajectories' grids, see `TrajectoryPlan`; int64 [trajectories], on the CPU.
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
        """Return a copy on a GPU if the copy fits into half of the free memory; else return the dataset unchanged."""
        if device.type != "cuda":
            return self
        torch.cuda.empty_cache()  # the teacher's sampling has left cached memory, which would count as used
        size = sum(tensor.numel() * tensor.element_size() for tensor in (self.latents, *self.text_inputs.values()))
        if 2 * size > torch.cuda.mem_get_info(device)[0]:
            return self
        inputs = {name: tensor.to(device) for name, tensor in self.text_inputs.items()}
        moved = {name: getattr(self, name).to(device) for name in ("latents", "caption_rows", "guidance")}
        return replace(self, **moved, text_inputs=inputs)

    def gather(self, indices: Tensor, positions: Tensor, end_positions: Tensor) -> TrajectoryBatch:
        """Return the latents of trajectories at the first level and at two others.

        Args:
            indices: indices of trajectories, int64 [B].
            positions, end_positions: indices of the levels of `current` and `end`, int64 [B].
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
    """Wait until another process has written the trajectories of a folder, and load them."""
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
    """Number, grids and guidance of the trajectories that the teacher is to sample.

    The grids are numbered: kind 0 starts from pure noise, and kinds 1 and above are the edits in the order of
    `edit_grids`.

    Args:
        student_grid: the student's timestep grid from pure noise, on the student's schedule.
        teacher_steps: number of teacher steps from pure noise. In an edit the teacher's steps are as long as these, and
            their number is at least twice the student's.
        count: number of trajectories.
        guidance: smallest and largest guidance scale; scales are drawn uniformly between them.
        seed: decides captions, scales and noise.
        edit_grids: the student's timestep grids for image-to-image, by strength; none has more steps than
            `student_grid`.
        batch_size: number of trajectories sampled at once; halved when the memory of a GPU runs out.
    """

    student_grid: TimestepGrid
    teacher_steps: int
    count: int
    guidance: tuple[float, float]
    seed: int
    edit_grids: Mapping[float, TimestepGrid] = field(default_factory=dict)
    batch_size: int = 8

    def routes(self, schedule: Schedule) -> tuple["TrajectoryRoute", ...]:
        """Return the route of each kind for a teacher with the noise schedule `schedule`."""
        edits = (
            plan_route(schedule, edit, max(_MIN_TEACHER_STEPS, 2 * edit.steps, round(self.teacher_steps * strength)))
            for strength, edit in self.edit_grids.items()
        )
        return (plan_route(schedule, self.student_grid, self.teacher_steps), *edits)


@dataclass(frozen=True, slots=True)
class TrajectoryRoute:
    """Timestep grid of the teacher, and the levels at which the teacher's latents are stored.

    Args:
        start: the student's first level, at which trajectories start. A teacher that is not defined at this level is
            evaluated at its own first level instead.
        noisier_levels: the student's levels after `start` that are at least as noisy as the teacher's first level.
        teacher_grid: the teacher's timestep grid.
        stored_positions: indices of the student's other levels in the teacher's grid, CLEAN included.
    """

    start: NoiseLevel
    noisier_levels: tuple[NoiseLevel, ...]
    teacher_grid: TimestepGrid
    stored_positions: tuple[int, ...]


def plan_route(schedule: Schedule, student_grid: TimestepGrid, steps: int) -> TrajectoryRoute:
    """Plan the teacher's grid for trajectories that are stored at the student's levels.

    The grid has the teacher's levels that are nearest to the student's by the angle atan2(sigma, alpha). It is then
    refined to the number of steps.

    Args:
        schedule: the teacher's noise schedule.
        student_grid: the student's timestep grid, which may be of another schedule.
        steps: number of teacher steps.

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
    """Yield the teacher's trajectories; the seed and a trajectory's number alone decide its result.

    Where the plan has edits, every second trajectory is an edit of the picture that the preceding trajectory gave.

    Args:
        pipeline: the teacher.
        sample_caption: draws a caption.
        plan: number and grids of the trajectories.
        start: number of trajectories to skip, because an earlier run has sampled them.
    """
    routes = plan.routes(pipeline.manifest.sampling.schedule)
    each = 2 if plan.edit_grids else 1
    last = -(-plan.count // each)
    teacher = _BatchedTeacher(pipeline, plan.batch_size)
    # A trajectory must be in the same batch in every run, because backends round differently in other batches. Batches
    # therefore start at multiples of the batch size.
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
    """The teacher, and the largest batch size, which is halved when the memory of a GPU runs out."""

    pipeline: Pipeline
    max_batch: int

    def advance(self, trajectories: Sequence[ImageTrajectory]) -> None:
        """Advance each trajectory by one evaluation."""
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
    """Sample trajectories to their end and return their latents at the stored levels."""
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
    """Return a trajectory whose clean latents are repeated until it has `steps` + 1 levels."""
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
    """Start an edit: noise the picture of a finished trajectory to the first level of a route."""
    caption = source.request.prompt if rng.random() < _SAME_CAPTION_SHARE else sample_caption(rng)
    trajectory = _start_trajectory(pipeline, route, caption, guidance, rng)
    trajectory.latents = add_noise(source.latents, trajectory.latents, route.start.alpha, route.start.sigma)
    return trajectory


def _start_trajectory(
    pipeline: Pipeline, route: TrajectoryRoute, caption: str, guidance: tuple[float, float], rng: np.random.Generator
) -> ImageTrajectory:
    """Start a trajectory from pure noise on the grid of a route."""
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
    """Convert trajectories into one shard for `write_shards`."""
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
