"""What a network predicts, and the denoised picture that follows from it. Names are diffusers'.

    epsilon        the noise                       (arXiv 2006.11239)
    sample         the clean picture x0
    v_prediction   alpha * noise - sigma * x0      (arXiv 2202.00512, appendix D)
    flow           noise - x0, the path's velocity (arXiv 2210.02747)

All four are linear in the noisy picture z and in the network's output, so the denoised picture is a weighted sum of
both. The weights hold for variance-preserving and for flow schedules: each formula divides by a norm, which is 1 for
the kind of schedule that the formula was published for.
"""

from typing import Literal, TypeAlias

from stillhouse.diffusion.tensor import Coefficient, Tensor

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]

Weights: TypeAlias = tuple[Coefficient, Coefficient]
"""Weights (a, b) of the denoised picture a * z + b * output, where z is the noisy picture."""


def denoised_weights(prediction: Prediction, alpha: Coefficient, sigma: Coefficient) -> Weights:
    """Return (a, b) such that the denoised picture is a * z + b * output, for z = alpha * x0 + sigma * noise.

    Prediction epsilon needs alpha > 0.

    >>> denoised_weights("v_prediction", 0.6, 0.8)
    (0.6, -0.8)
    """
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "sample":
        return 0.0, 1.0
    if prediction == "v_prediction":
        norm = alpha * alpha + sigma * sigma
        return alpha / norm, -sigma / norm
    norm = alpha + sigma
    return 1 / norm, -sigma / norm


def predict_denoised(
    prediction: Prediction, output: Tensor, z: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """Return the denoised picture that follows from the network's output for z, with the shape and dtype of z.

    Args:
        prediction: what the output means.
        output: the network's output, of the shape of z.
        z: the noisy picture, alpha * x0 + sigma * noise.
        alpha, sigma: noise level of z, floats or arrays that broadcast.

    >>> predict_denoised("flow", 0.5, 2.0, 0.75, 0.25)
    1.875
    """
    of_z, of_output = denoised_weights(prediction, alpha, sigma)
    return z * of_z + output * of_output


def add_noise(x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """Return the picture at a noise level: alpha * x0 + sigma * noise."""
    return x0 * alpha + noise * sigma
