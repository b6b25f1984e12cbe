"""One picture in the making, and the one verb that moves a batch of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.course import Course
from stillhouse.diffusion.guidance import guide, rescale
from stillhouse.diffusion.noise import gaussian
from stillhouse.diffusion.points import Point
from stillhouse.diffusion.prediction import denoised_weights, noised
from stillhouse.diffusion.samplers import SAMPLERS, Aimed, Evaluation, Past, crossed
from stillhouse.diffusion.step_cache import Conditioning, CutDenoiser, Denoiser, Features, answer, usable
from stillhouse.diffusion.tensor import Level
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
    output, features = _outputs(trajectories, now, z, denoise, arrays)
    weights = _columns([_weights(*pair) for pair in zip(trajectories, now, strict=True)])
    of_z, of_output, kept, gained = arrays.placed(weights)
    denoised = of_z * z + of_output * output

    aimed = [_aimed(*four) for four in zip(trajectories, now, z, denoised, strict=True)]
    origins, aims, pasts = zip(*aimed, strict=True)
    moved = crossed(arrays.stacked(origins), arrays.stacked(aims), kept, gained)

    arrived = [_arrived(*three, arrays) for three in zip(trajectories, now, moved, strict=True)]
    news = zip(trajectories, arrived, denoised, pasts, features, strict=True)
    for trajectory, latents, clean, past, deep in news:
        trajectory.latents = latents
        trajectory.denoised = clean
        trajectory.past = past
        trajectory.index += 1
        trajectory.features = None if trajectory.is_done else deep


def _check_batch(trajectories: Sequence[Trajectory], denoise: Denoiser | CutDenoiser) -> None:
    if any(trajectory.is_done for trajectory in trajectories):
        raise InvalidRequest("a finished picture in a batch", allowed="pictures that are not done")
    if len({trajectory.latents.shape for trajectory in trajectories}) > 1:
        raise InvalidRequest("pictures of different sizes in one batch", allowed="one size", fix="batch them by size")
    if not isinstance(denoise, CutDenoiser) and any(trajectory.course.refresh > 1 for trajectory in trajectories):
        raise InvalidRequest("refresh above 1 with a network in one piece", allowed="refresh 1, or a CutDenoiser")


def _outputs(
    trajectories: Sequence[Trajectory],
    now: Sequence[Evaluation],
    z: Array,
    denoise: Denoiser | CutDenoiser,
    arrays: Arrays,
) -> tuple[Array, list[Features | None]]:
    """The network's output for each picture, guided where it is guided, [P, C, h, w]; and the features to keep."""

    def placed(places: Sequence[int]) -> Any:
        return arrays.placed(np.array(places))

    rows: list[tuple[int, Conditioning]] = []
    kept: list[NDArray[Any] | None] = []
    conditional, guided = [], []
    for picture, trajectory in enumerate(trajectories):
        usable_features = trajectory.usable_features
        kept += [None] * trajectory.rows if usable_features is None else [*usable_features]
        if trajectory.is_guided:
            guided.append(picture)
            rows.append((picture, trajectory.unconditional))
        conditional.append(len(rows))
        rows.append((picture, trajectory.conditioning))
    timesteps = arrays.placed(np.array([now[picture].at.timestep for picture, _ in rows], np.float32))
    conditioning = {name: arrays.stacked([inputs[name] for _, inputs in rows]) for name in rows[0][1]}
    seen = _network_input(trajectories, z, arrays)[placed([picture for picture, _ in rows])]
    answers, deep = answer(denoise, seen, timesteps, conditioning, kept)

    output: Array = answers[placed(conditional)]
    if guided:
        unconditional = answers[placed([conditional[picture] - 1 for picture in guided])]
        (scales,) = arrays.placed(_columns([(trajectories[picture].course.guidance,) for picture in guided]))
        here = placed(guided)
        output[here] = guide(output[here], unconditional, scales)
    for picture in guided:
        if share := trajectories[picture].course.guidance_rescale:
            output[picture] = rescale(output[picture], answers[conditional[picture]], share)
    return output, [_kept(*pair, deep) for pair in zip(trajectories, conditional, strict=True)]


def _kept(trajectory: Trajectory, last: int, deep: Mapping[int, NDArray[Any]]) -> Features | None:
    """What a picture keeps after this evaluation; `last` is its last row in the batch."""
    if trajectory.course.refresh == 1 or last not in deep:
        return trajectory.features
    rows = range(last + 1 - trajectory.rows, last + 1)
    return Features(np.array([deep[row] for row in rows]), trajectory.index)


def _weights(trajectory: Trajectory, evaluation: Evaluation) -> tuple[Level, Level, float, float]:
    level, move = evaluation.at, evaluation.move
    return *denoised_weights(trajectory.course.prediction, level.alpha, level.sigma), move.kept, move.gained


def _aimed(trajectory: Trajectory, evaluation: Evaluation, z: Array, denoised: Array) -> Aimed[Array]:
    return SAMPLERS[trajectory.course.sampler].aim(z, denoised, evaluation, trajectory.past)


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


def _columns(weights: Sequence[Sequence[Level]]) -> NDArray[np.float32]:
    """Weights of every picture, [P][k], as k columns that broadcast over pictures: [k, P, 1, 1, 1]."""
    return np.array(weights, np.float32).T[..., None, None, None]
