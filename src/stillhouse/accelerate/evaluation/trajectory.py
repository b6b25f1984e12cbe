"""Recorded trajectories: the latents and predictions of a pipeline at each evaluation of one picture.

From a recorded trajectory of the original pipeline, the error of other sampling options is estimated without any
further evaluation of the network; see `local_error`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array, ImageRequest
from stillhouse.diffusion import SAMPLERS, Conditioning, Evaluation, SamplerState, SamplingPlan, Trajectory, advance
from stillhouse.diffusion.prediction import denoised_weights
from stillhouse.diffusion.step import combine
from stillhouse.diffusion.timestep_grid import NoiseLevel
from stillhouse.pipelines.pipeline import Pipeline


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTrajectory:
    """Latents and predictions of one picture at each of its E evaluations, in order. All arrays are NumPy arrays.

    Args:
        alphas, sigmas, timesteps: noise level of each evaluation, float64 [E].
        latents: the noisy latents, float32 [E, C, h, w].
        guided: the denoised picture with guidance, float32 [E, C, h, w].
        unguided: the denoised picture of the prompt alone, without guidance, float32 [E, C, h, w].
        final: the latents after the last step, float32 [C, h, w].
    """

    alphas: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    timesteps: NDArray[np.float64]
    latents: Array
    guided: Array
    unguided: Array
    final: Array


def record_trajectory(pipeline: Pipeline, request: ImageRequest) -> RecordedTrajectory:
    """Generate the latents of a picture, and return them at each evaluation. The picture is not decoded.

    The pipeline must not cache features.
    """
    trajectory = pipeline.start(request)
    outputs: list[Array] = []

    def denoise(latents: Array, timesteps: Array, conditioning: Conditioning) -> Array:
        output = pipeline.denoise(latents, timesteps, conditioning)
        outputs.append(pipeline.arrays.to_numpy(output).copy())
        return output

    read = pipeline.arrays.to_numpy
    rows = []
    while not trajectory.is_done:
        level, latents = trajectory.next_evaluation.level, read(trajectory.latents).copy()
        row = _main_row(trajectory)
        advance([trajectory], denoise, pipeline.arrays)
        of_z, of_output = denoised_weights(trajectory.plan.prediction, level.alpha, level.sigma)
        assert trajectory.denoised is not None
        unguided = of_z * latents + of_output * outputs[-1][row]
        rows.append((level.alpha, level.sigma, level.timestep, latents, read(trajectory.denoised).copy(), unguided))
    alphas, sigmas, timesteps, noisy, guided, unguided_rows = (np.array(column) for column in zip(*rows, strict=True))
    final = read(trajectory.latents).copy()
    return RecordedTrajectory(alphas, sigmas, timesteps, noisy, guided, unguided_rows, final)


def write_trajectory(path: Path, trajectory: RecordedTrajectory) -> None:
    """Write a trajectory to an .npz file: to a temporary file first, which then replaces an old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **{field.name: getattr(trajectory, field.name) for field in fields(trajectory)})
    temporary.replace(path)


def read_trajectory(path: Path) -> RecordedTrajectory:
    """Return the trajectory of an .npz file that `write_trajectory` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return RecordedTrajectory(**{field.name: stored[field.name] for field in fields(RecordedTrajectory)})


def local_error(recorded: Sequence[RecordedTrajectory], plan: SamplingPlan) -> float:
    """Return the estimated error of a sampling plan: the sum of its steps' local errors, mean over the trajectories.

    Each step of the plan begins on the recorded trajectory and uses the predictions that were recorded there. Its local
    error is the distance between the step's end and the recorded trajectory, relative to the norm of the final latents.
    The sum bounds the error of the whole picture if the network amplifies no error (Hairer, Norsett and Wanner,
    "Solving ordinary differential equations I", II.3). Between recorded levels, predictions and noise are interpolated
    linearly over timesteps. An evaluation with cached features is assumed to repeat the prediction of the last full
    evaluation, which overestimates its error. Only the order of the estimates of one model means something.

    Args:
        recorded: one or more trajectories of the original sampling options.
        plan: the plan of other sampling options, without fresh noise and with one evaluation in each step.
    """
    return float(np.mean([_sum_local_errors(trajectory, plan) for trajectory in recorded]))


def _sum_local_errors(recorded: RecordedTrajectory, plan: SamplingPlan) -> float:
    sampler, total = SAMPLERS[plan.sampler], 0.0
    state: SamplerState[Array] | None = None
    clean = _wide(recorded.alphas) * recorded.guided
    noise = np.asarray((recorded.latents - clean) / _wide(recorded.sigmas), np.float32)
    for index, evaluation in enumerate(plan.evaluations):
        source = plan.evaluations[index - index % plan.cache_interval]
        predictions = recorded.guided if _is_guided(plan, evaluation) else recorded.unguided
        denoised = _interpolate(recorded, predictions, source.level.timestep)
        latents = _latents_at(recorded, noise, evaluation.level)
        origin, estimate, state = sampler.estimate(latents, denoised, evaluation, state)
        end = combine(origin, estimate, evaluation.coefficients.z, evaluation.coefficients.x0)
        total += float(np.linalg.norm(np.subtract(end, _latents_at(recorded, noise, evaluation.end))))
    return total / max(float(np.linalg.norm(recorded.final)), 1e-12)


def _is_guided(plan: SamplingPlan, evaluation: Evaluation) -> bool:
    return len(plan.guidance.active_branches(evaluation.progress)) > 1


def _latents_at(recorded: RecordedTrajectory, noise: Array, level: NoiseLevel) -> Array:
    """Return the latents of a trajectory at a noise level, [C, h, w]; `noise` is its noise at each evaluation."""
    if level.sigma == 0:
        return recorded.final
    clean = _interpolate(recorded, recorded.guided, level.timestep)
    latents: Array = level.alpha * clean + level.sigma * _interpolate(recorded, noise, level.timestep)
    return latents


def _interpolate(recorded: RecordedTrajectory, values: Array, timestep: float) -> Array:
    """Return values [E, C, h, w] of a trajectory at a timestep, linearly between evaluations, [C, h, w]."""
    times, count = recorded.timesteps[::-1], len(recorded.timesteps)
    if count == 1:
        only: Array = values[0]
        return only
    above = int(np.clip(np.searchsorted(times, timestep), 1, count - 1))
    share = float(np.clip((timestep - times[above - 1]) / (times[above] - times[above - 1]), 0.0, 1.0))
    rising = values[::-1]
    between: Array = (1 - share) * rising[above - 1] + share * rising[above]
    return between


def _wide(values: NDArray[np.float64]) -> Array:
    column: Array = values.astype(np.float32).reshape(-1, 1, 1, 1)
    return column


def _main_row(trajectory: Trajectory) -> int:
    """Return the row of the branch with the prompt in the next evaluation's batch of one picture."""
    return trajectory.active_branches.index(trajectory.plan.guidance.main)
