"""One picture in the making, and the one verb that moves a batch of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.guidance import guide, rescale_factor
from stillhouse.diffusion.noise import gaussian
from stillhouse.diffusion.prediction import add_noise, denoised_weights
from stillhouse.diffusion.samplers import SAMPLERS, Evaluation, SamplerState, combine
from stillhouse.diffusion.sampling_plan import SamplingPlan
from stillhouse.diffusion.step import step_batch
from stillhouse.diffusion.step_cache import (
    CachedFeatures,
    Conditioning,
    Denoiser,
    SplitDenoiser,
    run_denoiser,
    usable_features,
)
from stillhouse.diffusion.tensor import Coefficient
from stillhouse.diffusion.timestep_grid import NoiseLevel
from stillhouse.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class InpaintBlend:
    """What must stay where nothing is repainted, for networks without inpainting channels.

    Args:
        known: the clean latents to keep, float32 [C, h, w].
        mask: float32 [1, h, w] or [C, h, w], 1 where the picture is repainted.
        noise: the noise that the walk began with, float32 [C, h, w].
    """

    clean: Array
    mask: Array
    noise: Array

    def apply(self, z: Array, level: NoiseLevel) -> Array:
        """z where it is repainted; elsewhere the known latents, noised to the level that z has reached."""
        known = add_noise(self.clean, self.noise, level.alpha, level.sigma)
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

    plan: SamplingPlan
    latents: Array
    conditioning: Conditioning
    unconditional: Conditioning = field(default_factory=dict)
    extra_channels: Array | None = None
    blend: InpaintBlend | None = None
    index: int = 0
    sampler_state: SamplerState[Array] | None = None
    denoised: Array | None = None
    features: CachedFeatures | None = None
    evaluations: tuple[Evaluation, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.evaluations = self.plan.evaluations()
        if self.plan.guidance > 1 and self.unconditional.keys() != self.conditioning.keys():
            raise InvalidRequest(
                f"guidance is {self.plan.guidance:g} without an unconditional row for every conditional one",
                allowed="the same inputs for both, or guidance 1",
            )

    @property
    def evaluation_count(self) -> int:
        """Network evaluations of the whole walk."""
        return len(self.evaluations)

    @property
    def is_done(self) -> bool:
        """Whether the latents are clean."""
        return self.index == len(self.evaluations)

    @property
    def progress(self) -> float:
        """Share of the evaluations that is done, 0 to 1."""
        return self.index / len(self.evaluations)

    @property
    def rows(self) -> int:
        """Rows that the next evaluation takes in a batch: 2 where it is guided, 1 where not, 0 when done."""
        return 0 if self.is_done else 1 + self.is_guided

    @property
    def is_guided(self) -> bool:
        """Whether guidance acts in the next evaluation."""
        return self.plan.is_guided(self.evaluations[self.index])

    @property
    def usable_features(self) -> NDArray[Any] | None:
        """Kept deep features for each row of the next evaluation; None where it takes the whole network."""
        return usable_features(self.features, self.plan.cache_interval, self.index, self.rows)


def advance(trajectories: Sequence[Trajectory], denoise: Denoiser | SplitDenoiser, arrays: Arrays = NUMPY) -> None:
    """Move each picture of a mixed batch by one evaluation, with one call of the network for each depth in use.

    Samplers, steps, ages and guidance may differ; sizes and the names of the inputs may not. A picture comes out as
    it would alone, bit for bit, if the network treats its rows independently. Guided pictures take two neighbouring
    rows, unconditional first. If the network fails, no picture has moved.

    Args:
        trajectories: none of them done.
        denoise: the network; it may reuse its output buffer in the next call. Pictures with cache_interval above 1
            need a `SplitDenoiser`, whose shallow part serves those that have features to go on with.
        arrays: where the pictures lie, with everything that they hold. A `SplitDenoiser` takes NumPy's only.

    Raises:
        InvalidRequest: a picture that is done, pictures of different sizes, or a cache_interval above 1 without a
            `SplitDenoiser`.
    """
    if not trajectories:
        return
    _check_batch(trajectories, denoise)
    now = [trajectory.evaluations[trajectory.index] for trajectory in trajectories]
    z = arrays.stacked([trajectory.latents for trajectory in trajectories])
    answers, rows, features = _run_network(trajectories, now, z, denoise, arrays)
    weights = [_step_weights(*three, answers) for three in zip(trajectories, now, rows, strict=True)]
    past = _previous_denoised(trajectories, now, z, arrays)
    moved, denoised = step_batch(z, answers, rows, weights, past, arrays)

    news = [_sampler_step(*five) for five in zip(trajectories, now, z, denoised, moved, strict=True)]
    arrived = [
        _add_noise_and_blend(*three, arrays) for three in zip(trajectories, now, (one for one, _ in news), strict=True)
    ]
    for trajectory, latents, clean, (_, remembered), deep in zip(
        trajectories, arrived, denoised, news, features, strict=True
    ):
        trajectory.latents = latents
        trajectory.denoised = clean
        trajectory.sampler_state = remembered
        trajectory.index += 1
        trajectory.features = None if trajectory.is_done else deep


def _check_batch(trajectories: Sequence[Trajectory], denoise: Denoiser | SplitDenoiser) -> None:
    if any(trajectory.is_done for trajectory in trajectories):
        raise InvalidRequest("a finished picture in a batch", allowed="pictures that are not done")
    if len({trajectory.latents.shape for trajectory in trajectories}) > 1:
        raise InvalidRequest("pictures of different sizes in one batch", allowed="one size", fix="batch them by size")
    if not isinstance(denoise, SplitDenoiser) and any(
        trajectory.plan.cache_interval > 1 for trajectory in trajectories
    ):
        raise InvalidRequest(
            "cache_interval above 1 with a network in one piece", allowed="cache_interval 1, or a SplitDenoiser"
        )


def _run_network(
    trajectories: Sequence[Trajectory],
    now: Sequence[Evaluation],
    z: Array,
    denoise: Denoiser | SplitDenoiser,
    arrays: Arrays,
) -> tuple[Array, list[tuple[int, int]], list[CachedFeatures | None]]:
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
    timesteps = arrays.placed(np.array([now[picture].level.timestep for picture, _ in seen], np.float32))
    conditioning = {name: arrays.stacked([inputs[name] for _, inputs in seen]) for name in seen[0][1]}
    pictures = arrays.placed(np.array([picture for picture, _ in seen]))
    answers, deep = run_denoiser(
        denoise, _network_input(trajectories, z, arrays)[pictures], timesteps, conditioning, kept
    )
    return (
        answers,
        rows,
        [_features_to_cache(trajectory, last, deep) for trajectory, (_, last) in zip(trajectories, rows, strict=True)],
    )


def _features_to_cache(trajectory: Trajectory, last: int, deep: Mapping[int, NDArray[Any]]) -> CachedFeatures | None:
    """What a picture keeps after this evaluation; `last` is its last row in the batch."""
    if trajectory.plan.cache_interval == 1 or last not in deep:
        return trajectory.features
    rows = range(last + 1 - trajectory.rows, last + 1)
    return CachedFeatures(np.array([deep[row] for row in rows]), trajectory.index)


def _step_weights(
    trajectory: Trajectory, evaluation: Evaluation, rows: tuple[int, int], answers: Array
) -> tuple[Coefficient, ...]:
    """See `step.WEIGHTS`."""
    course, level, move = trajectory.plan, evaluation.level, evaluation.coefficients
    of_z, of_output = denoised_weights(course.prediction, level.alpha, level.sigma)
    if trajectory.is_guided and course.guidance_rescale:
        without, prompted = (answers[row] for row in rows)
        guided = guide(prompted, without, course.guidance)
        of_output *= rescale_factor(guided, prompted, course.guidance_rescale)
    reach = evaluation.extrapolation if _extrapolates(trajectory) else 0.0
    return course.guidance, of_z, of_output, reach, move.z, move.x0


def _extrapolates(trajectory: Trajectory) -> bool:
    """Whether the clean picture of the evaluation before counts in `step`."""
    return SAMPLERS[trajectory.plan.sampler].order == "beyond" and trajectory.sampler_state is not None


def _previous_denoised(
    trajectories: Sequence[Trajectory], now: Sequence[Evaluation], z: Array, arrays: Arrays
) -> Array | None:
    """The clean pictures of the evaluation before, where one counts; anything for pictures where none does."""
    if not any(
        _extrapolates(one) and evaluation.extrapolation for one, evaluation in zip(trajectories, now, strict=True)
    ):
        return None
    seen = [
        one.sampler_state.denoised if one.sampler_state else here for one, here in zip(trajectories, z, strict=True)
    ]
    stacked: Array = arrays.stacked(seen)
    return stacked


def _sampler_step(
    trajectory: Trajectory, evaluation: Evaluation, z: Array, denoised: Array, moved: Array
) -> tuple[Array, SamplerState[Array] | None]:
    """The picture after its move, before fresh noise; and what its sampler remembers. `moved` is what `step` says."""
    sampler = SAMPLERS[trajectory.plan.sampler]
    if sampler.order == "elsewhere":
        origin, aim, past = sampler.estimate(z, denoised, evaluation, trajectory.sampler_state)
        return combine(origin, aim, evaluation.coefficients.z, evaluation.coefficients.x0), past
    return moved, SamplerState(evaluation.level, z, denoised) if sampler.order == "beyond" else None


def _network_input(trajectories: Sequence[Trajectory], z: Array, arrays: Arrays) -> Array:
    extras = [trajectory.extra_channels for trajectory in trajectories if trajectory.extra_channels is not None]
    if not extras:
        return z
    if len(extras) < len(trajectories):
        raise InvalidRequest("extra channels for some pictures of a batch", allowed="for all of them, or for none")
    joined: Array = arrays.joined([z, arrays.stacked(extras)], 1)
    return joined


def _add_noise_and_blend(trajectory: Trajectory, evaluation: Evaluation, latents: Array, arrays: Arrays) -> Array:
    if evaluation.coefficients.noise:
        fresh = arrays.placed(gaussian(trajectory.plan.seed, trajectory.index, latents.shape))
        latents = latents + evaluation.coefficients.noise * fresh
    return latents if trajectory.blend is None else trajectory.blend.apply(latents, evaluation.end)
