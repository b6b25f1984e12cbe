"""One picture in the making, and the one verb that moves a batch of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.check import check_number
from stillhouse.core import Array
from stillhouse.diffusion.guidance import guide, is_guided, rescale
from stillhouse.diffusion.noise import check_seed, gaussian
from stillhouse.diffusion.points import Grid, Point
from stillhouse.diffusion.prediction import Prediction, check_prediction, denoised_weights, noised
from stillhouse.diffusion.samplers import SAMPLERS, Aimed, Evaluation, Past, crossed, find_sampler
from stillhouse.diffusion.tensor import Level
from stillhouse.errors import InvalidRequest

Conditioning: TypeAlias = Mapping[str, NDArray[Any]]
"""A network's other inputs by name: one row each, without a batch axis."""

Denoiser: TypeAlias = Callable[[Array, Array, Conditioning], Array]
"""(rows [R, C, h, w], timesteps [R], conditioning [R, ...] by name) -> the network's output [R, c, h, w]."""


@dataclass(frozen=True, slots=True)
class Course:
    """The immutable plan of one picture.

    Args:
        grid: the levels to visit.
        sampler: a name out of SAMPLERS.
        prediction: what the network's output means.
        guidance: scale as in diffusers; up to 1 means none, and one row instead of two.
        guidance_rescale: 0 to 1, see `guidance.rescale`.
        guidance_interval: shares of the walk between which guidance acts, see `guidance.is_guided`.
        eta: share of fresh noise in each step of ddim, 0 to 1.
        seed: 0 to 2**63 - 1; with the step's number it decides all fresh noise.

    Raises:
        InvalidRequest: a name that does not exist, a number outside its range, or a combination without meaning.
    """

    grid: Grid
    sampler: str = "ddim"
    prediction: Prediction = "epsilon"
    guidance: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    eta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        sampler = find_sampler(self.sampler)
        check_prediction(self.prediction)
        check_number("guidance", self.guidance, 0, 1000)
        check_number("guidance_rescale", self.guidance_rescale, 0, 1)
        begin, end = self.guidance_interval
        check_number("the end of guidance_interval", end, 0, 1)
        check_number("the beginning of guidance_interval", begin, 0, end)
        check_number("eta", self.eta, 0, 1)
        check_seed(self.seed)
        if self.eta and sampler.eta is not None:
            raise InvalidRequest(f"eta is {self.eta} with sampler {self.sampler}", allowed="eta with sampler ddim")
        if self.prediction == "epsilon" and self.grid.points[0].alpha == 0:
            raise InvalidRequest(
                "an epsilon network at pure noise, where the noise tells nothing about the picture",
                allowed="sample, v_prediction and flow networks at zero terminal SNR",
                fix="use a schedule without zero_terminal_snr, or leading spacing",
            )


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

    Args:
        course: its plan.
        latents: z at the grid's first level, float32 [C, h, w].
        conditioning: the network's other inputs, one row each.
        unconditional: the same for the negative prompt; needed where guidance is above 1.
        extra_channels: float32 [c, h, w], appended to z for the network's eyes only (inpainting networks).
        keep: what must stay, see `Keep`.
    """

    course: Course
    latents: Array
    conditioning: Conditioning
    unconditional: Conditioning = field(default_factory=dict)
    extra_channels: Array | None = None
    keep: Keep | None = None
    index: int = 0
    past: Past[Array] | None = None
    plan: tuple[Evaluation, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.plan = SAMPLERS[self.course.sampler].plan(self.course.grid, self.course.eta)
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
        return is_guided(self.course.guidance, self.course.guidance_interval, self.plan[self.index].share)


def advance(trajectories: Sequence[Trajectory], denoise: Denoiser) -> None:
    """Move each picture of a mixed batch by one evaluation, with one call of the network.

    Samplers, steps, ages and guidance may differ; sizes and the names of the inputs may not. A picture comes out as
    it would alone, bit for bit, if the network treats its rows independently. Guided pictures take two neighbouring
    rows, unconditional first. If the network fails, no picture has moved.

    Args:
        trajectories: none of them done.
        denoise: the network; it may reuse its output buffer in the next call.

    Raises:
        InvalidRequest: a picture that is done, or pictures of different sizes.
    """
    if not trajectories:
        return
    _check_batch(trajectories)
    now = [trajectory.plan[trajectory.index] for trajectory in trajectories]
    z = np.array([trajectory.latents for trajectory in trajectories])
    output = _outputs(trajectories, now, z, denoise)
    of_z, of_output, kept, gained = _columns([_weights(*pair) for pair in zip(trajectories, now, strict=True)])
    denoised = of_z * z + of_output * output

    aimed = [_aimed(*four) for four in zip(trajectories, now, z, denoised, strict=True)]
    origins, aims, pasts = zip(*aimed, strict=True)
    moved = crossed(np.array(origins), np.array(aims), kept, gained)

    for trajectory, evaluation, latents, past in zip(trajectories, now, moved, pasts, strict=True):
        trajectory.latents = _arrived(trajectory, evaluation, latents)
        trajectory.past = past
        trajectory.index += 1


def _check_batch(trajectories: Sequence[Trajectory]) -> None:
    if any(trajectory.is_done for trajectory in trajectories):
        raise InvalidRequest("a finished picture in a batch", allowed="pictures that are not done")
    if len({trajectory.latents.shape for trajectory in trajectories}) > 1:
        raise InvalidRequest("pictures of different sizes in one batch", allowed="one size", fix="batch them by size")


def _outputs(trajectories: Sequence[Trajectory], now: Sequence[Evaluation], z: Array, denoise: Denoiser) -> Array:
    """The network's output for each picture, guided where it is guided: [P, C, h, w]."""
    rows: list[tuple[int, Conditioning]] = []
    conditional, guided = [], []
    for picture, trajectory in enumerate(trajectories):
        if trajectory.is_guided:
            guided.append(picture)
            rows.append((picture, trajectory.unconditional))
        conditional.append(len(rows))
        rows.append((picture, trajectory.conditioning))
    timesteps = np.array([now[picture].at.timestep for picture, _ in rows], np.float32)
    conditioning = {name: np.array([inputs[name] for _, inputs in rows]) for name in rows[0][1]}
    answers = denoise(_network_input(trajectories, z)[[picture for picture, _ in rows]], timesteps, conditioning)

    output: Array = answers[conditional].astype(np.float32, copy=False)
    if guided:
        unconditional = answers[[conditional[picture] - 1 for picture in guided]]
        (scales,) = _columns([(trajectories[picture].course.guidance,) for picture in guided])
        output[guided] = guide(output[guided], unconditional, scales)
    for picture in guided:
        if share := trajectories[picture].course.guidance_rescale:
            output[picture] = rescale(output[picture], answers[conditional[picture]], share)
    return output


def _weights(trajectory: Trajectory, evaluation: Evaluation) -> tuple[Level, Level, float, float]:
    level, move = evaluation.at, evaluation.move
    return *denoised_weights(trajectory.course.prediction, level.alpha, level.sigma), move.kept, move.gained


def _aimed(trajectory: Trajectory, evaluation: Evaluation, z: Array, denoised: Array) -> Aimed[Array]:
    return SAMPLERS[trajectory.course.sampler].aim(z, denoised, evaluation, trajectory.past)


def _network_input(trajectories: Sequence[Trajectory], z: Array) -> Array:
    extras = [trajectory.extra_channels for trajectory in trajectories if trajectory.extra_channels is not None]
    if not extras:
        return z
    if len(extras) < len(trajectories):
        raise InvalidRequest("extra channels for some pictures of a batch", allowed="for all of them, or for none")
    return np.concatenate([z, np.array(extras)], axis=1)


def _arrived(trajectory: Trajectory, evaluation: Evaluation, latents: Array) -> Array:
    if evaluation.move.fresh:
        fresh = gaussian(trajectory.course.seed, trajectory.index, latents.shape)
        latents = latents + evaluation.move.fresh * fresh
    return latents if trajectory.keep is None else trajectory.keep.blend(latents, evaluation.end)


def _columns(weights: Sequence[Sequence[Level]]) -> NDArray[np.float32]:
    """Weights of every picture, [P][k], as k columns that broadcast over pictures: [k, P, 1, 1, 1]."""
    return np.array(weights, np.float32).T[..., None, None, None]
