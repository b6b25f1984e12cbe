"""A step of a batch is the step of each of its pictures, on NumPy and by a kernel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core import Array
from stillhouse.diffusion import (
    INITIAL_STEP,
    NUMPY,
    SAMPLERS,
    Schedule,
    gaussian,
    make_grid,
    predict_denoised,
)
from stillhouse.diffusion.prediction import denoised_weights
from stillhouse.diffusion.samplers import SamplerState
from stillhouse.diffusion.step import STEP_WEIGHTS, PictureStep, combine, step_batch

SHAPE = (2, 3, 5)
KNOWN = sorted(name for name, sampler in SAMPLERS.items() if sampler.order != "custom")
PLAN = {name: SAMPLERS[name].plan(make_grid(Schedule(zero_terminal_snr=True), 5)) for name in KNOWN}


@dataclass
class Kernel:
    """Arrays with a kernel that notes its arguments."""

    calls: list[tuple[Any, ...]]

    @property
    def fused_step(self) -> Any:
        def kernel(*arguments: Any) -> tuple[Array, Array]:
            self.calls.append(arguments)
            return arguments[0] + 1, arguments[0] + 2

        return kernel

    to_device = NUMPY.to_device
    stack, concatenate = NUMPY.stack, NUMPY.concatenate
    to_numpy, synchronize = NUMPY.to_numpy, NUMPY.synchronize


def picture_step(name: str, index: int, rows: tuple[int, ...], guidance: tuple[float, ...]) -> PictureStep:
    evaluation = PLAN[name][index]
    of_z, of_output = denoised_weights("v_prediction", evaluation.level.alpha, evaluation.level.sigma)
    extrapolation = evaluation.extrapolation if SAMPLERS[name].order == "second" else 0.0
    coefficients = evaluation.coefficients
    return PictureStep(rows, guidance, (of_z, of_output, extrapolation, coefficients.z, coefficients.x0))


Picture = tuple[str, int, list[float]]
PICTURES = st.lists(
    st.tuples(st.sampled_from(KNOWN), st.integers(0, 4), st.lists(st.floats(-3, 9), max_size=3)),
    min_size=1,
    max_size=5,
)


def batch(pictures: list[Picture]) -> tuple[Array, Array, Array, list[PictureStep]]:
    """Latents, outputs, previous pictures and steps; a picture without weights is not guided and has one row."""
    z = np.stack([gaussian(place, INITIAL_STEP, SHAPE) for place in range(len(pictures))])
    previous = np.stack([gaussian(place, 8, SHAPE) for place in range(len(pictures))])
    steps, first = [], 0
    for name, index, weights in pictures:
        rows = tuple(range(first, first + 1 + len(weights)))
        steps.append(picture_step(name, index, rows if weights else rows * 2, tuple(weights) or (0.0,)))
        first += len(rows)
    outputs = np.stack([gaussian(place, 9, SHAPE) for place in range(first)])
    return z, outputs, previous, steps


@given(PICTURES)
@settings(max_examples=60)
def test_it_is_each_samplers_own_step(pictures: list[Picture]) -> None:
    """Of every sampler that `step_batch` knows, without its noise; against the estimate of each in float64."""
    z, outputs, previous, steps = batch(pictures)
    stepped, denoised = step_batch(z, outputs, steps, previous, NUMPY)
    for place, ((name, index, _), step) in enumerate(zip(pictures, steps, strict=True)):
        evaluation, before = PLAN[name][index], z[place].astype(np.float64)
        base, *branches = (outputs[row].astype(np.float64) for row in step.rows)
        guided = base + sum(weight * (branch - base) for weight, branch in zip(step.guidance, branches, strict=True))
        seen = predict_denoised("v_prediction", guided, before, evaluation.level.alpha, evaluation.level.sigma)
        state = SamplerState(evaluation.level, before, previous[place].astype(np.float64))
        origin, x0, _ = SAMPLERS[name].estimate(before, seen, evaluation, state)
        expected = combine(origin, x0, evaluation.coefficients.z, evaluation.coefficients.x0)
        np.testing.assert_allclose(denoised[place], seen, atol=1e-4)
        np.testing.assert_allclose(stepped[place], expected, atol=1e-4)


@given(PICTURES)
@settings(max_examples=60)
def test_a_picture_is_the_same_beside_pictures_with_more_branches(pictures: list[Picture]) -> None:
    """Bit for bit, with one to four rows a picture."""
    z, outputs, previous, steps = batch(pictures)
    together = step_batch(z, outputs, steps, previous, NUMPY)
    for place, step in enumerate(steps):
        alone = step_batch(z[place : place + 1], outputs, [step], previous[place : place + 1], NUMPY)
        for ours, theirs in zip(alone, together, strict=True):
            assert ours[0].tobytes() == theirs[place].tobytes()


def test_without_previous_pictures_nothing_is_extrapolated() -> None:
    z, outputs = gaussian(0, INITIAL_STEP, (1, *SHAPE)), gaussian(1, INITIAL_STEP, (2, *SHAPE))
    step = PictureStep((0, 1), (3.0,), (0.5, -0.5, 0.0, 0.25, 0.75))
    without = step_batch(z, outputs, [step], None, NUMPY)
    beside = step_batch(z, outputs, [step], gaussian(2, INITIAL_STEP, (1, *SHAPE)), NUMPY)
    for ours, theirs in zip(without, beside, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_kernel_takes_rows_and_weights_of_all_pictures() -> None:
    z, outputs = gaussian(0, INITIAL_STEP, (2, *SHAPE)), gaussian(1, INITIAL_STEP, (4, *SHAPE))
    previous = gaussian(2, INITIAL_STEP, (2, *SHAPE))
    arrays = Kernel([])
    steps = [
        PictureStep((0, 1, 2), (7.5, -2.0), (1.0, -0.5, 0.1, 0.2, 0.3)),
        PictureStep((3, 3), (0.0,), (2.0, -1.5, 0.0, 0.4, 0.5)),
    ]
    stepped, denoised = step_batch(z, outputs, steps, previous, arrays)
    ((first, second, rows, weights, last),) = arrays.calls
    assert first is z and second is outputs and last is previous
    assert rows.tolist() == [[0, 1, 2], [3, 3, 3]] and rows.dtype == np.int32
    assert weights.shape == (2, len(STEP_WEIGHTS) + 2) and weights.dtype == np.float32
    np.testing.assert_allclose(weights, [[1.0, -0.5, 0.1, 0.2, 0.3, 7.5, -2.0], [2.0, -1.5, 0.0, 0.4, 0.5, 0.0, 0.0]])
    np.testing.assert_array_equal(stepped, z + 1)
    np.testing.assert_array_equal(denoised, z + 2)


def test_a_kernel_takes_no_rows_where_they_are_pairs_in_order() -> None:
    """It needs none, and reads them no later than all else."""
    z, outputs = gaussian(0, INITIAL_STEP, (2, *SHAPE)), gaussian(1, INITIAL_STEP, (4, *SHAPE))
    arrays = Kernel([])
    for rows in ([(0, 1), (2, 3)], [(2, 3), (0, 1)]):
        step_batch(z, outputs, [PictureStep(pair, (7.5,), (1.0, -0.5, 0.1, 0.2, 0.3)) for pair in rows], None, arrays)
    assert arrays.calls[0][2] is None
    assert arrays.calls[1][2].tolist() == [[2, 3], [0, 1]]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_samplers_order_is_what_its_estimate_does(name: str) -> None:
    """x0 itself for the first order, x0 half an interval beyond it for the second, from where the picture is."""
    sampler = SAMPLERS[name]
    if sampler.order == "custom":
        return
    z, seen, before = (gaussian(seed, INITIAL_STEP, SHAPE).astype(np.float64) for seed in range(3))
    for evaluation in sampler.plan(make_grid(Schedule(), 4)):
        origin, aim, _ = sampler.estimate(z, seen, evaluation, SamplerState(evaluation.level, z, before))
        reach = evaluation.extrapolation if sampler.order == "second" else 0.0
        np.testing.assert_array_equal(origin, z)
        np.testing.assert_allclose(aim, seen + reach * (seen - before))
