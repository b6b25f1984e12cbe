import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.diffusion import Prediction, SamplingPlan, Schedule, add_noise, make_grid, predict_denoised
from stillhouse.errors import InvalidRequest
from tests.diffusion.formulas import predicted_noise, training_target

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction", "flow")
ANGLES = st.floats(0.01, np.pi / 2 - 0.01)
VALUES = st.floats(-3, 3)


@given(prediction=st.sampled_from(PREDICTIONS), angle=ANGLES, x0=VALUES, fresh=VALUES, is_flow=st.booleans())
def test_a_perfect_output_gives_picture_and_noise_back(
    prediction: Prediction, angle: float, x0: float, fresh: float, is_flow: bool
) -> None:
    alpha, sigma = float(np.cos(angle)), float(np.sin(angle))
    if is_flow:
        alpha, sigma = alpha / (alpha + sigma), sigma / (alpha + sigma)
    z, output = add_noise(x0, fresh, alpha, sigma), training_target(prediction, x0, fresh, alpha, sigma)
    assert predict_denoised(prediction, output, z, alpha, sigma) == pytest.approx(x0, abs=1e-10 / alpha)
    assert predicted_noise(prediction, output, z, alpha, sigma) == pytest.approx(fresh, abs=1e-10 / sigma)


@given(prediction=st.sampled_from(PREDICTIONS), angle=ANGLES, z=VALUES, output=VALUES)
def test_picture_and_noise_always_make_up_z(prediction: Prediction, angle: float, z: float, output: float) -> None:
    alpha, sigma = float(np.cos(angle)), float(np.sin(angle))
    x0, fresh = (read(prediction, output, z, alpha, sigma) for read in (predict_denoised, predicted_noise))
    assert add_noise(x0, fresh, alpha, sigma) == pytest.approx(z, abs=1e-9)
    assert training_target(prediction, x0, fresh, alpha, sigma) == pytest.approx(output, abs=1e-7)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow"])
def test_pure_noise_is_read_by_all_but_epsilon(prediction: Prediction) -> None:
    output = training_target(prediction, 0.7, -1.2, 0.0, 1.0)
    assert predict_denoised(prediction, output, -1.2, 0.0, 1.0) == pytest.approx(0.7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_float32_stays_float32_and_levels_may_differ_by_picture(prediction: Prediction) -> None:
    z = np.ones((2, 3), np.float32)
    assert predict_denoised(prediction, z, z, 0.6, 0.8).dtype == np.float32
    alphas, sigmas = np.array([[0.6], [0.8]], np.float32), np.array([[0.8], [0.6]], np.float32)
    both = predict_denoised(prediction, z, z, alphas, sigmas)
    np.testing.assert_allclose(both[1], predict_denoised(prediction, z[1], z[1], 0.8, 0.6), rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_torch_tensors_give_what_arrays_give(prediction: Prediction) -> None:
    z, output = np.random.default_rng(0).standard_normal((2, 4, 5))
    tensors = torch.from_numpy(z), torch.from_numpy(output)
    for read in (predict_denoised, predicted_noise):
        theirs = read(prediction, tensors[1], tensors[0], 0.6, 0.8).numpy()
        np.testing.assert_allclose(theirs, read(prediction, output, z, 0.6, 0.8), rtol=1e-13)
    level = torch.tensor(0.6, dtype=torch.float64)
    theirs = training_target(prediction, tensors[0], tensors[1], level, 0.8).numpy()
    np.testing.assert_allclose(theirs, training_target(prediction, z, output, 0.6, 0.8), rtol=1e-13)


def test_unknown_predictions_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'v_prediction'"):
        SamplingPlan(make_grid(Schedule(), 2), prediction="v-prediction")  # type: ignore[arg-type]
