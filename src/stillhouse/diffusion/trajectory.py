"""One picture in the making, and the one verb that moves a batch of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.guidance import guide, rescaling
from stillhouse.diffusion.noise import gaussian
from stillhouse.diffusion.prediction import denoised_weights, noised
from stillhouse.diffusion.samplers import SAMPLERS, Evaluation, Past, crossed
from stillhouse.diffusion.sampling_plan import Course
from stillhouse.diffusion.step import step
from stillhouse.diffusion.step_cache import Conditioning, CutDenoiser, Denoiser, Features, answer, usable
from stillhouse.diffusion.tensor import Level
from stillhouse.diffusion.timestep_grid import Point
from stillhouse.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Keep:
    """What must stay where nothing is repainted, for networks without inpainting channels.

    Args:
        known: the clean latents to keep, float32 [C, h, w].
        mask: float32 [1, h, w] or [C, h, w], 1 where the picture is repainted.
        noise: the noise that the walk began with, float32 [C, h, w].
    """

    known: Array
    mask: Array
    noise: Array

    def blend(self, z: Array, level: Point) -> Array:
        """z where it is repainted; elsewhere the known latents, noised to the level that z has reached."""
        known = noised(self.known, self.noise, level.alpha, level.sigma)
        return known * (1 - self.mask) + z * self.mask


@dataclass(slots=True)
class Trajectory:
    """One picture in the making; `advance` moves it, and nothing else does.

    Its arrays are NumPy's, or all of another kind of `arrays`.

    Args:
        course: its plan.
        latents: z at the grid's first level, float32 [C, h, w].
        conditioning: the network's other inputs, one row each.
        unconditional: the same for the negative prompt; needed where guidance is above 1.
        extra_channels: float32 [c, h, w], appended to z for the network's eyes only (inpainting networks).
        keep: what must stay, see `Keep`.
        denoised: the clean picture as the network saw it last, float32 [C, h, w]; None before the first evaluation.
    """

    course: Course
    latents: Array
    conditioning: Conditioning
    unconditional: Conditioning = field(default_factory=dict)
    extra_channels: Array | None = None
    keep: Keep | None = None
    index: int = 0
    past: Past[Array] | None = None
    denoised: Array | None = None
    features: Features | None = None
    plan: tuple[Evaluation, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.plan = self.course.plan()
        if self.course.guidance > 1 and self.unconditional.keys() != self.conditioning.keys():
            raise InvalidRequest(
                f"guidance is {self.course.guidance:g} without an unconditional row for every conditional one",
                allowed="the same inputs for both, or guidance 1",
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations of the whole walk."""
        return len(self.plan)

    @property
    def is_done(self) -> bool:
        """Whether the latents are clean."""
        return self.index == len(self.plan)

    @property
    def progress(self) -> float:
        """Share of the evaluations that is done, 0 to 1."""
        return self.index / len(self.plan)

    @property
    def rows(self) -> int:
        """Rows that the next evaluation takes in a batch: 2 where it is guided, 1 where not, 0 when done."""
        return 0 if self.is_done else 1 + self.is_guided

    @property
    def is_guided(self) -> bool:
        """Whether guidance acts in the next evaluation."""
        return self.course.is_guided(self.plan[self.index])

    @property
    def usable_features(self) -> NDArray[Any] | None:
        """Kept deep features for each row of the next evaluation; None where it takes the whole network."""
        return usable(self.features, self.course.refresh, self.index, self.rows)


def advance(trajectories: Sequence[Trajectory], denoise: Denoiser | CutDenoiser, arrays: Arrays = NUMPY) -> None:
    """Move each picture of a mixed batch by one evaluation, with one call of the network for each depth in use.

    Samplers, steps, ages and guidance may differ; sizes and the names of the inputs may not. A picture comes out as
    it would alone, bit for bit, if the network treats its rows independently. Guided pictures take two neighbouring
    rows, unconditional first. If the network fails, no picture has moved.

    Args:
        trajectories: none of them done.
        denoise: the network; it may reuse its output buffer in the next call. Pictures with refresh above 1 need a
            `CutDenoiser`, whose shallow part serves those that have features to go on with.
        arrays: where the pictures lie, with everything that they hold. A `CutDenoiser` takes NumPy's only.

    Raises:
        InvalidRequest: a picture that is done, pictures of different sizes, or refresh without a `CutDenoiser`.
    """
    if not trajectories:
        return
    _check_batch(trajectories, denoise)
    now = [trajectory.plan[trajectory.index] for trajectory in trajectories]
    z = arrays.stacked([trajectory.latents for trajectory in trajectories])
    answers, rows, features = _answered(trajectories, now, z, denoise, arrays)
    weights = [_weights(*three, answers) for three in zip(trajectories, now, rows, strict=True)]
    past = _last_seen(trajectories, now, z, arrays)
    moved, denoised = step(z, answers, rows, weights, past, arrays)

    news = [_moved(*five) for five in zip(trajectories, now, z, denoised, moved, strict=True)]
    arrived = [_arrived(*three, arrays) for three in zip(trajectories, now, (one for one, _ in news), strict=True)]
    for trajectory, latents, clean, (_, remembered), deep in zip(
        trajectories, arrived, denoised, news, features, strict=True
    ):
        trajectory.latents = latents
        trajectory.denoised = clean
        trajectory.past = remembered
        trajectory.index += 1
        trajectory.features = None if trajectory.is_done else deep


def _check_batch(trajectories: Sequence[Trajectory], denoise: Denoiser | CutDenoiser) -> None:
    if any(trajectory.is_done for trajectory in trajectories):
        raise InvalidRequest("a finished picture in a batch", allowed="pictures that are not done")
    if len({trajectory.latents.shape for trajectory in trajectories}) > 1:
        raise InvalidRequest("pictures of different sizes in one batch", allowed="one size", fix="batch them by size")
    if not isinstance(denoise, CutDenoiser) and any(trajectory.course.refresh > 1 for trajectory in trajectories):
        raise InvalidRequest("refresh above 1 with a network in one piece", allowed="refresh 1, or a CutDenoiser")


def _answered(
    trajectories: Sequence[Trajectory],
    now: Sequence[Evaluation],
    z: Array,
    denoise: Denoiser | CutDenoiser,
    arrays: Arrays,
) -> tuple[Array, list[tuple[int, int]], list[Features | None]]:
    """The network's answers [R, C, h, w]; for each picture its rows, see `step`; and the features to keep."""
    seen: list[tuple[int, Conditioning]] = []
    kept: list[NDArray[Any] | None] = []
    rows = []
    for picture, trajectory in enumerate(trajectories):
        usable_features = trajectory.usable_features
        kept += [None] * trajectory.rows if usable_features is None else [*usable_features]
        first = len(seen)
        if trajectory.is_guided:
            seen.append((picture, trajectory.unconditional))
        rows.append((first, len(seen)))
        seen.append((picture, trajectory.conditioning))
    timesteps = arrays.placed(np.array([now[picture].at.timestep for picture, _ in seen], np.float32))
    conditioning = {name: arrays.stacked([inputs[name] for _, inputs in seen]) for name in seen[0][1]}
    pictures = arrays.placed(np.array([picture for picture, _ in seen]))
    answers, deep = answer(denoise, _network_input(trajectories, z, arrays)[pictures], timesteps, conditioning, kept)
    return (
        answers,
        rows,
        [_kept(trajectory, last, deep) for trajectory, (_, last) in zip(trajectories, rows, strict=True)],
    )


def _kept(trajectory: Trajectory, last: int, deep: Mapping[int, NDArray[Any]]) -> Features | None:
    """What a picture keeps after this evaluation; `last` is its last row in the batch."""
    if trajectory.course.refresh == 1 or last not in deep:
        return trajectory.features
    rows = range(last + 1 - trajectory.rows, last + 1)
    return Features(np.array([deep[row] for row in rows]), trajectory.index)


def _weights(
    trajectory: Trajectory, evaluation: Evaluation, rows: tuple[int, int], answers: Array
) -> tuple[Level, ...]:
    """See `step.WEIGHTS`."""
    course, level, move = trajectory.course, evaluation.at, evaluation.move
    of_z, of_output = denoised_weights(course.prediction, level.alpha, level.sigma)
    if trajectory.is_guided and course.guidance_rescale:
        without, prompted = (answers[row] for row in rows)
        guided = guide(prompted, without, course.guidance)
        of_output *= rescaling(guided, prompted, course.guidance_rescale)
    reach = evaluation.reach if _reaches(trajectory) else 0.0
    return course.guidance, of_z, of_output, reach, move.kept, move.gained


def _reaches(trajectory: Trajectory) -> bool:
    """Whether the clean picture of the evaluation before counts in `step`."""
    return SAMPLERS[trajectory.course.sampler].aims_at == "beyond" and trajectory.past is not None


def _last_seen(trajectories: Sequence[Trajectory], now: Sequence[Evaluation], z: Array, arrays: Arrays) -> Array | None:
    """The clean pictures of the evaluation before, where one counts; anything for pictures where none does."""
    if not any(_reaches(one) and evaluation.reach for one, evaluation in zip(trajectories, now, strict=True)):
        return None
    seen = [one.past.denoised if one.past else here for one, here in zip(trajectories, z, strict=True)]
    stacked: Array = arrays.stacked(seen)
    return stacked


def _moved(
    trajectory: Trajectory, evaluation: Evaluation, z: Array, denoised: Array, moved: Array
) -> tuple[Array, Past[Array] | None]:
    """The picture after its move, before fresh noise; and what its sampler remembers. `moved` is what `step` says."""
    sampler = SAMPLERS[trajectory.course.sampler]
    if sampler.aims_at == "elsewhere":
        origin, aim, past = sampler.aim(z, denoised, evaluation, trajectory.past)
        return crossed(origin, aim, evaluation.move.kept, evaluation.move.gained), past
    return moved, Past(evaluation.at, z, denoised) if sampler.aims_at == "beyond" else None


def _network_input(trajectories: Sequence[Trajectory], z: Array, arrays: Arrays) -> Array:
    extras = [trajectory.extra_channels for trajectory in trajectories if trajectory.extra_channels is not None]
    if not extras:
        return z
    if len(extras) < len(trajectories):
        raise InvalidRequest("extra channels for some pictures of a batch", allowed="for all of them, or for none")
    joined: Array = arrays.joined([z, arrays.stacked(extras)], 1)
    return joined


def _arrived(trajectory: Trajectory, evaluation: Evaluation, latents: Array, arrays: Arrays) -> Array:
    if evaluation.move.fresh:
        fresh = arrays.placed(gaussian(trajectory.course.seed, trajectory.index, latents.shape))
        latents = latents + evaluation.move.fresh * fresh
    return latents if trajectory.keep is None else trajectory.keep.blend(latents, evaluation.end)
