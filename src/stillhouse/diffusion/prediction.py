"""What a network says, read as the clean picture or as the noise. Names are diffusers'.

    epsilon        the noise                       (arXiv 2006.11239)
    sample         the clean picture x0
    v_prediction   alpha * noise - sigma * x0      (arXiv 2202.00512, appendix D)
    flow           noise - x0, the path's velocity (arXiv 2210.02747)

All four are linear in z and in the network's output, so each reading is a pair of weights. They hold for
variance-preserving and flow schedules alike: the norms below are 1 where they are not needed.
"""

from typing import Literal, TypeAlias, get_args

from stillhouse.check import check_choice
from stillhouse.diffusion.tensor import Coefficient, Tensor

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]

Weights: TypeAlias = tuple[Coefficient, Coefficient]
"""(a, b) of a * z + b * output."""


def denoised_weights(prediction: Prediction, alpha: Coefficient, sigma: Coefficient) -> Weights:
    """Weights of z and of the output that make the clean picture; epsilon needs alpha > 0.

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


def noise_weights(prediction: Prediction, alpha: Coefficient, sigma: Coefficient) -> Weights:
    """Weights of z and of the output that make the noise; sample needs sigma > 0.

    >>> noise_weights("v_prediction", 0.6, 0.8)
    (0.8, 0.6)
    """
    if prediction == "epsilon":
        return 0.0, 1.0
    if prediction == "sample":
        return 1 / sigma, -alpha / sigma
    if prediction == "v_prediction":
        norm = alpha * alpha + sigma * sigma
        return sigma / norm, alpha / norm
    norm = alpha + sigma
    return 1 / norm, alpha / norm


def predict_denoised(
    prediction: Prediction, output: Tensor, z: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """The clean picture that the network sees in z; shapes and dtype as z.

    Args:
        prediction: what the output means.
        output: the network's, shaped as z.
        z: the noisy picture, alpha * x0 + sigma * noise.
        alpha, sigma: the level of z, floats or arrays that broadcast.

    >>> denoised("flow", 0.5, 2.0, 0.75, 0.25)
    1.875
    """
    of_z, of_output = denoised_weights(prediction, alpha, sigma)
    return z * of_z + output * of_output


def predicted_noise(
    prediction: Prediction, output: Tensor, z: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """The noise that the network sees in z; arguments as in `denoised`."""
    of_z, of_output = noise_weights(prediction, alpha, sigma)
    return z * of_z + output * of_output


def training_target(
    prediction: Prediction, x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient
) -> Tensor:
    """What a perfect network would say about alpha * x0 + sigma * noise: the target that it is trained on.

    >>> target("v_prediction", 1.0, 0.0, 0.6, 0.8)
    -0.8
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "v_prediction":
        return noise * alpha - x0 * sigma
    return noise - x0


def add_noise(x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """The picture at a level: alpha * x0 + sigma * noise."""
    return x0 * alpha + noise * sigma


def check_prediction(prediction: str) -> None:
    """Refuse a prediction that does not exist."""
    check_choice("prediction", prediction, get_args(Prediction))
