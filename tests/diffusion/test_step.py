"""A batch moves by one step as each of its pictures does by itself, whoever computes it."""

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
    Arrays,
    Schedule,
    gaussian,
    guide,
    make_grid,
    predict_denoised,
)
from stillhouse.diffusion.prediction import denoised_weights
from stillhouse.diffusion.samplers import Evaluation, SamplerState
from stillhouse.diffusion.step import WEIGHTS, step_batch

SHAPE = (2, 3, 5)
KNOWN = sorted(name for name, sampler in SAMPLERS.items() if sampler.order != "elsewhere")
PLAN = {name: SAMPLERS[name].plan(make_grid(Schedule(zero_terminal_snr=True), 5)) for name in KNOWN}


@dataclass
class Told:
    """Arrays with a kernel, which notes what it is told."""

    calls: list[tuple[Any, ...]]

    @property
    def fused_step(self) -> Any:
        def kernel(*given: Any) -> tuple[Array, Array]:
            self.calls.append(given)
            return given[0] + 1, given[0] + 2

        return kernel

    to_device = NUMPY.to_device
    stack, concatenate = NUMPY.stack, NUMPY.concatenate
    to_numpy, synchronize = NUMPY.to_numpy, NUMPY.synchronize


def weights(scale: float, evaluation: Evaluation, *, has_past: bool) -> tuple[Any, ...]:
    of_z, of_output = denoised_weights("v_prediction", evaluation.level.alpha, evaluation.level.sigma)
    reach = evaluation.extrapolation if has_past else 0.0
    return scale, of_z, of_output, reach, evaluation.coefficients.z, evaluation.coefficients.x0


@given(st.lists(st.tuples(st.sampled_from(KNOWN), st.integers(0, 4), st.floats(1, 9)), min_size=1, max_size=4))
@settings(max_examples=60)
def test_it_is_each_samplers_own_step(pictures: list[tuple[str, int, float]]) -> None:
    """Of every sampler of which it is known where it aims, without its noise; against `Sampler.step` in float64."""
    z = np.stack([gaussian(place, INITIAL_STEP, SHAPE) for place in range(len(pictures))])
    answers = np.stack([gaussian(place, 9, SHAPE) for place in range(2 * len(pictures))])
    past = np.stack([gaussian(place, 8, SHAPE) for place in range(len(pictures))])
    told, rows = [], []
    for place, (name, index, scale) in enumerate(pictures):
        told.append(weights(scale, PLAN[name][index], has_past=SAMPLERS[name].order == "beyond"))
        rows.append((2 * place, 2 * place + 1) if place % 2 else (2 * place, 2 * place))
    moved, clean = step_batch(z, answers, rows, told, past, NUMPY)
    for place, (name, index, scale) in enumerate(pictures):
        one, before = PLAN[name][index], z[place].astype(np.float64)
        without, prompted = (answers[row].astype(np.float64) for row in rows[place])
        seen = predict_denoised(
            "v_prediction", guide(prompted, without, scale), before, one.level.alpha, one.level.sigma
        )
        last = SamplerState(one.level, before, past[place].astype(np.float64))
        theirs, _ = SAMPLERS[name].step(before, seen, one, last, np.zeros(SHAPE))
        np.testing.assert_allclose(clean[place], seen, atol=1e-4)
        np.testing.assert_allclose(moved[place], theirs, atol=1e-4)


def test_where_nothing_came_before_nothing_is_reached_for() -> None:
    z, answers = gaussian(0, INITIAL_STEP, (1, *SHAPE)), gaussian(1, INITIAL_STEP, (2, *SHAPE))
    one = (3.0, 0.5, -0.5, 0.0, 0.25, 0.75)
    alone = step_batch(z, answers, [(0, 1)], [one], None, NUMPY)
    beside = step_batch(z, answers, [(0, 1)], [one], gaussian(2, INITIAL_STEP, (1, *SHAPE)), NUMPY)
    for ours, theirs in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_kernel_is_told_all_of_it() -> None:
    z, answers = gaussian(0, INITIAL_STEP, (2, *SHAPE)), gaussian(1, INITIAL_STEP, (3, *SHAPE))
    past = gaussian(2, INITIAL_STEP, (2, *SHAPE))
    kernel = Told([])
    arrays: Arrays = kernel
    told = [(7.5, 1.0, -0.5, 0.1, 0.2, 0.3), (1.0, 2.0, -1.5, 0.0, 0.4, 0.5)]
    moved, clean = step_batch(z, answers, [(0, 1), (2, 2)], told, past, arrays)
    ((first, second, rows, numbers, last),) = kernel.calls
    assert first is z and second is answers and last is past
    assert rows.tolist() == [[0, 1], [2, 2]] and rows.dtype == np.int32
    assert numbers.shape == (2, len(WEIGHTS)) and numbers.dtype == np.float32
    np.testing.assert_allclose(numbers, told)
    np.testing.assert_array_equal(moved, z + 1)
    np.testing.assert_array_equal(clean, z + 2)


def test_of_guided_pictures_in_their_order_a_kernel_is_told_no_rows() -> None:
    """It needs none, and reads them no later than all else."""
    z, answers = gaussian(0, INITIAL_STEP, (2, *SHAPE)), gaussian(1, INITIAL_STEP, (4, *SHAPE))
    kernel = Told([])
    one = (7.5, 1.0, -0.5, 0.1, 0.2, 0.3)
    for rows in ([(0, 1), (2, 3)], [(2, 3), (0, 1)]):
        step_batch(z, answers, rows, [one, one], None, kernel)
    assert kernel.calls[0][2] is None
    assert kernel.calls[1][2].tolist() == [[2, 3], [0, 1]]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_tells_where_it_aims(name: str) -> None:
    """`aims_at` is what `aim` does: at x0, or half an interval beyond it, from where the picture is."""
    sampler = SAMPLERS[name]
    if sampler.order == "elsewhere":
        return
    z, seen, before = (gaussian(seed, INITIAL_STEP, SHAPE).astype(np.float64) for seed in range(3))
    for evaluation in sampler.plan(make_grid(Schedule(), 4)):
        origin, aim, _ = sampler.estimate(z, seen, evaluation, SamplerState(evaluation.level, z, before))
        reach = evaluation.extrapolation if sampler.order == "beyond" else 0.0
        np.testing.assert_array_equal(origin, z)
        np.testing.assert_allclose(aim, seen + reach * (seen - before))
