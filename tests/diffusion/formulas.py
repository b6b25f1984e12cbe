"""Formulas that tests compare with and that no part of the package needs."""

import numpy as np
from numpy.typing import NDArray

from stillhouse.diffusion import Evaluation, Prediction, Sampler, SamplerState, Schedule, noise_levels
from stillhouse.diffusion.prediction import Weights
from stillhouse.diffusion.step import combine
from stillhouse.diffusion.tensor import Coefficient, Tensor


def alphas_cumprod(schedule: Schedule) -> NDArray[np.float64]:
    """Return the cumulative product of 1 - beta, float64 [train_steps]: the square of alpha, as diffusers stores it."""
    assert not schedule.is_flow, "a flow schedule has no betas"
    return np.square(noise_levels(schedule)[0])


def noise_weights(prediction: Prediction, alpha: Coefficient, sigma: Coefficient) -> Weights:
    """Return the weights of z and of the output whose sum is the noise; sample needs sigma > 0."""
    if prediction == "epsilon":
        return 0.0, 1.0
    if prediction == "sample":
        return 1 / sigma, -alpha / sigma
    if prediction == "v_prediction":
        norm = alpha * alpha + sigma * sigma
        return sigma / norm, alpha / norm
    norm = alpha + sigma
    return 1 / norm, alpha / norm


def predicted_noise(
    prediction: Prediction, output: Tensor, z: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """Return the noise that the network predicts in z; arguments as in `predict_denoised`."""
    of_z, of_output = noise_weights(prediction, alpha, sigma)
    return z * of_z + output * of_output


def training_target(
    prediction: Prediction, x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """Return the output of a perfect network for alpha * x0 + sigma * noise."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "v_prediction":
        return noise * alpha - x0 * sigma
    return noise - x0


def sampler_step(
    sampler: Sampler,
    z: Tensor,
    denoised: Tensor,
    evaluation: Evaluation,
    state: SamplerState[Tensor] | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, SamplerState[Tensor] | None]:
    """Return the picture after one evaluation, and the sampler's state for the next one.

    Args:
        sampler: of the plan.
        z: latents at `evaluation.level`, any array or tensor.
        denoised: the denoised picture that the network predicts there.
        evaluation: of the sampler's plan.
        state: as returned for the evaluation before; None at the start.
        noise: standard normal, shaped as z; needed where `evaluation.coefficients.noise` is above 0.
    """
    origin, x0, state = sampler.estimate(z, denoised, evaluation, state)
    stepped = combine(origin, x0, evaluation.coefficients.z, evaluation.coefficients.x0)
    if evaluation.coefficients.noise == 0:
        return stepped, state
    assert noise is not None, "a stochastic step without noise"
    return stepped + evaluation.coefficients.noise * noise, state
