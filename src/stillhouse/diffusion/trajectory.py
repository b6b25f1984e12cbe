"""The trajectory of one picture, and `advance`, which moves a batch of trajectories by one evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion.arrays import NUMPY, Arrays
from stillhouse.diffusion.denoiser import Conditioning, Denoiser, SplitDenoiser, run_denoiser
from stillhouse.diffusion.effects import Effect, FeatureCache
from stillhouse.diffusion.guidance import guide, rescale_factor
from stillhouse.diffusion.noise import gaussian
from stillhouse.diffusion.prediction import denoised_weights
from stillhouse.diffusion.samplers import SAMPLERS, Evaluation, SamplerState
from stillhouse.diffusion.sampling_plan import SamplingPlan
from stillhouse.diffusion.step import PictureStep, combine, step_batch
from stillhouse.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One set of conditioning inputs of a picture, for example with or without its prompt.

    The network evaluates each branch in a row of its batch; guidance combines the outputs.

    Args:
        inputs: the network's inputs besides latents and timestep, by name, without a batch axis.
        channels: float32 [c, h, w], appended to the latents as further input channels (inpainting, InstructPix2Pix);
            None: no further channels.
    """

    inputs: Conditioning
    channels: Array | None = None


@dataclass(slots=True)
class Trajectory:
    """One picture while it is generated. Only `advance` changes it.

    All its arrays are of the same kind: NumPy arrays, or arrays on the device of the denoiser.

    Args:
        plan: noise levels, sampler and guidance; does not change after the start.
        latents: the noisy latents z, float32 [C, h, w]; at the start, z at the grid's first level.
        branches: each branch that the plan's guidance evaluates, by name. All branches have inputs of the same names.
        effects: what acts besides the sampler's steps, such as inpainting. Where the plan caches features, a
            `FeatureCache` is added.
        index: number of evaluations that are done.
        sampler_state: state of a multistep sampler; None before the first evaluation, and for single-step samplers.
        denoised: the denoised picture of the last evaluation, float32 [C, h, w]; None before the first one.

    Raises:
        InvalidRequest: a branch is missing, or its inputs have other names than the main branch's.
    """

    plan: SamplingPlan
    latents: Array
    branches: Mapping[str, Branch]
    effects: tuple[Effect, ...] = ()
    index: int = 0
    sampler_state: SamplerState[Array] | None = None
    denoised: Array | None = None

    def __post_init__(self) -> None:
        guidance = self.plan.guidance
        names = self.branches[guidance.main].inputs.keys()
        for branch in [guidance.base, *(branch for branch, _ in guidance.terms)] if guidance.base else []:
            if branch not in self.branches or self.branches[branch].inputs.keys() != names:
                raise InvalidRequest(
                    f"guidance needs a branch {branch!r} that has the inputs {', '.join(names)}",
                    allowed=f"a branch with the same inputs as branch {guidance.main!r}, or no guidance",
                )
        if self.plan.cache_interval > 1:
            self.effects = (*self.effects, FeatureCache(self.plan.cache_interval))

    @property
    def evaluation_count(self) -> int:
        """Number of network evaluations from start to end."""
        return len(self.plan.evaluations)

    @property
    def is_done(self) -> bool:
        """Whether all evaluations are done, so that the latents are clean."""
        return self.index == len(self.plan.evaluations)

    @property
    def progress(self) -> float:
        """Share of the evaluations that are done, 0 to 1."""
        return self.index / len(self.plan.evaluations)

    @property
    def next_evaluation(self) -> Evaluation:
        """The evaluation that `advance` makes next; the trajectory must not be done."""
        return self.plan.evaluations[self.index]

    @property
    def active_branches(self) -> tuple[str, ...]:
        """Names of the branches that the next evaluation takes, in the order of their rows; empty when done."""
        return () if self.is_done else self.plan.guidance.active_branches(self.next_evaluation.progress)

    @property
    def rows(self) -> int:
        """Number of rows that the next evaluation takes in a batch; 0 when done."""
        return len(self.active_branches)

    def estimate_features(self) -> Sequence[NDArray[Any]] | None:
        """Return estimated deep features of each branch of the next evaluation, in the order of `active_branches`.

        None means that the whole network must run.
        """
        for effect in self.effects:
            if (features := effect.estimate_features(self.active_branches, self.index)) is not None:
                return features
        return None


class _Row(NamedTuple):
    """One row of the network's batch: index of its picture, guidance branch, and cached deep features or None."""

    picture: int
    branch: Branch
    features: NDArray[Any] | None


def advance(trajectories: Sequence[Trajectory], denoise: Denoiser | SplitDenoiser, arrays: Arrays = NUMPY) -> None:
    """Move each picture of a batch by one evaluation, in place. The network is called once for the whole batch.

    A `SplitDenoiser` is called a second time where some pictures have cached features and others do not. Samplers,
    steps, progress and guidance may differ between pictures. Sizes, and the names and shapes of inputs, must be equal.
    If the network computes its rows independently, a picture is bit for bit the same as in a batch of its own. The rows
    of a picture follow each other, the base branch first. If the network fails, no trajectory is changed.

    Args:
        trajectories: trajectories that are not done.
        denoise: the network; its next call may overwrite the output. Pictures with cache_interval above 1 need a
            `SplitDenoiser`.
        arrays: kind of all arrays of the trajectories. A `SplitDenoiser` takes NumPy arrays only.

    Raises:
        InvalidRequest: a picture is done, sizes or inputs of the pictures differ, or a cache_interval is above 1 and
            `denoise` is no `SplitDenoiser`.
    """
    if not trajectories:
        return
    _check_batch(trajectories, denoise)
    z = arrays.stack([trajectory.latents for trajectory in trajectories])
    rows = [row for picture, trajectory in enumerate(trajectories) for row in _rows(picture, trajectory)]
    outputs, deep = _run_network(trajectories, rows, z, denoise, arrays)
    steps = _picture_steps(trajectories, outputs)
    stepped, denoised = step_batch(z, outputs, steps, _previous_denoised(trajectories, z, arrays), arrays)
    # Everything that can fail runs before the first trajectory is changed, so that an error leaves all of them as they
    # were.
    states = [_sampler_step(*arguments) for arguments in zip(trajectories, z, denoised, stepped, strict=True)]
    latents = [
        _add_noise(trajectory, moved, arrays) for trajectory, (moved, _) in zip(trajectories, states, strict=True)
    ]
    first = 0
    for trajectory, moved, clean, (_, state) in zip(trajectories, latents, denoised, states, strict=True):
        branches = trajectory.active_branches
        _finish_step(trajectory, {name: np.array(deep[row]) for row, name in enumerate(branches, first) if row in deep})
        first += len(branches)
        trajectory.latents, trajectory.denoised, trajectory.sampler_state = moved, clean, state
        trajectory.index += 1


def _check_batch(trajectories: Sequence[Trajectory], denoise: Denoiser | SplitDenoiser) -> None:
    if any(trajectory.is_done for trajectory in trajectories):
        raise InvalidRequest("the batch contains a picture that is already done", allowed="pictures that are not done")
    if len({trajectory.latents.shape for trajectory in trajectories}) > 1:
        raise InvalidRequest(
            "the batch contains pictures of different sizes", allowed="one size in a batch", fix="batch them by size"
        )
    if isinstance(denoise, SplitDenoiser):
        return
    if any(trajectory.plan.cache_interval > 1 for trajectory in trajectories):
        raise InvalidRequest(
            "a picture has cache_interval above 1, but the network is not split in two depths",
            allowed="cache_interval 1, or a SplitDenoiser",
        )


def _rows(picture: int, trajectory: Trajectory) -> list[_Row]:
    branches = trajectory.active_branches
    cached = trajectory.estimate_features()
    return [
        _Row(picture, trajectory.branches[name], None if cached is None else cached[row])
        for row, name in enumerate(branches)
    ]


def _run_network(
    trajectories: Sequence[Trajectory],
    rows: Sequence[_Row],
    z: Array,
    denoise: Denoiser | SplitDenoiser,
    arrays: Arrays,
) -> tuple[Array, Mapping[int, NDArray[Any]]]:
    """Run the network on the rows of a batch.

    Args:
        trajectories: the pictures of the batch.
        rows: rows of the batch; each has a picture, a guidance branch and, where the deep layers are skipped, cached
            features.
        z: latents of the pictures, [P, C, h, w].
        denoise: the network.
        arrays: kind of the arrays.

    Returns:
        the outputs [R, C, h, w], and the deep features of each row that ran the whole network, by index of the row.
    """
    levels = [trajectories[row.picture].next_evaluation.level for row in rows]
    timesteps = arrays.to_device(np.array([level.timestep for level in levels], np.float32))
    conditioning = {name: _stack_input(name, rows, arrays) for name in rows[0].branch.inputs}
    latents = z[arrays.to_device(np.array([row.picture for row in rows]))]
    inputs = _append_channels(latents, [row.branch.channels for row in rows], arrays)
    return run_denoiser(denoise, inputs, timesteps, conditioning, [row.features for row in rows])


def _stack_input(name: str, rows: Sequence[_Row], arrays: Arrays) -> Any:
    inputs = [row.branch.inputs[name] for row in rows]
    if len(shapes := {tuple(array.shape) for array in inputs}) > 1:
        raise InvalidRequest(
            f"in the batch, input {name} has the shapes {', '.join(str(list(shape)) for shape in sorted(shapes))}",
            allowed="inputs of one shape in a batch",
            fix="batch pictures by `Resolved.batch_key`",
        )
    return arrays.stack(inputs)


def _append_channels(latents: Array, channels: Sequence[Array | None], arrays: Arrays) -> Array:
    present = [extra for extra in channels if extra is not None]
    if not present:
        return latents
    if len(present) < len(channels):
        raise InvalidRequest(
            "only some pictures of the batch have extra input channels",
            allowed="extra channels for all pictures, or for none",
        )
    joined: Array = arrays.concatenate([latents, arrays.stack(present)], 1)
    return joined


def _picture_steps(trajectories: Sequence[Trajectory], outputs: Array) -> list[PictureStep]:
    steps, first = [], 0
    for trajectory in trajectories:
        rows = tuple(range(first, first + trajectory.rows))
        steps.append(_picture_step(trajectory, rows if len(rows) > 1 else rows * 2, outputs))
        first += len(rows)
    return steps


def _picture_step(trajectory: Trajectory, rows: tuple[int, ...], outputs: Array) -> PictureStep:
    """Return the numbers for the step of a picture: its rows, guidance weights and sampler weights.

    Args:
        trajectory: the picture.
        rows: index in `outputs` of each of the picture's branches, the base branch first.
        outputs: outputs of the network for the batch.
    """
    plan, evaluation = trajectory.plan, trajectory.next_evaluation
    of_z, of_output = denoised_weights(plan.prediction, evaluation.level.alpha, evaluation.level.sigma)
    weights = plan.guidance.weights(evaluation.progress)
    if plan.guidance.rescale and plan.guidance.acts(evaluation.progress):
        base, *branches = (outputs[row] for row in rows)
        guided = guide(base, branches, weights)
        of_output *= rescale_factor(guided, branches[-1], plan.guidance.rescale)
    extrapolation = evaluation.extrapolation if _extrapolates(trajectory) else 0.0
    coefficients = evaluation.coefficients
    return PictureStep(rows, weights, (of_z, of_output, extrapolation, coefficients.z, coefficients.x0))


def _extrapolates(trajectory: Trajectory) -> bool:
    """Return whether the picture's next step needs the denoised picture of its previous evaluation."""
    return SAMPLERS[trajectory.plan.sampler].order == "second" and trajectory.sampler_state is not None


def _previous_denoised(trajectories: Sequence[Trajectory], z: Array, arrays: Arrays) -> Array | None:
    """Return the denoised pictures of the previous evaluations, [P, C, h, w], or None if no picture needs them.

    For a picture without a previous evaluation, z takes the place of its denoised picture.
    """
    if not any(_extrapolates(trajectory) and trajectory.next_evaluation.extrapolation for trajectory in trajectories):
        return None
    previous: Array = arrays.stack(
        [
            trajectory.sampler_state.denoised if trajectory.sampler_state else latents
            for trajectory, latents in zip(trajectories, z, strict=True)
        ]
    )
    return previous


def _sampler_step(
    trajectory: Trajectory, z: Array, denoised: Array, stepped: Array
) -> tuple[Array, SamplerState[Array] | None]:
    """Return the latents after the step, before fresh noise is added, and the sampler's state after the step.

    Args:
        trajectory: the picture.
        z: latents before the step, [C, h, w].
        denoised: the denoised picture, [C, h, w].
        stepped: latents after the step, as `step_batch` returns them. Samplers of order "custom" do not use them.
    """
    sampler, evaluation = SAMPLERS[trajectory.plan.sampler], trajectory.next_evaluation
    if sampler.order == "custom":
        origin, x0, state = sampler.estimate(z, denoised, evaluation, trajectory.sampler_state)
        return combine(origin, x0, evaluation.coefficients.z, evaluation.coefficients.x0), state
    return stepped, SamplerState(evaluation.level, z, denoised) if sampler.order == "second" else None


def _add_noise(trajectory: Trajectory, latents: Array, arrays: Arrays) -> Array:
    """Return the latents with the step's fresh noise added and the effects applied."""
    evaluation = trajectory.next_evaluation
    if evaluation.coefficients.noise:
        noise = arrays.to_device(gaussian(trajectory.plan.seed, trajectory.index, latents.shape))
        latents = latents + evaluation.coefficients.noise * noise
    for effect in trajectory.effects:
        latents = effect.after_step(latents, evaluation.end)
    return latents


def _finish_step(trajectory: Trajectory, features: Mapping[str, NDArray[Any]]) -> None:
    """Give the deep features that this evaluation computed, by branch, to the trajectory's effects, which cache them.

    After the last evaluation, the effects get no features, so that they free their caches.
    """
    is_last = trajectory.index + 1 == trajectory.evaluation_count
    if features or is_last:
        for effect in trajectory.effects:
            effect.cache_features({} if is_last else features, trajectory.index)
