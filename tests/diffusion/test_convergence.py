"""The Gaussian oracle: for data N(MEAN, SPREAD^2) the perfect network and the ODE's solution have closed forms.

Along the probability-flow ODE each z keeps its number of standard deviations from the mean, so a walk's error is known
at every level. A sampler of order p must lose a factor 2^p of it when the steps double.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.diffusion import (
    CLEAN,
    SAMPLERS,
    NoiseLevel,
    Prediction,
    SamplerState,
    Schedule,
    Spacing,
    TimestepGrid,
    add_noise,
    make_grid,
    predict_denoised,
)
from tests.diffusion.formulas import sampler_step, training_target

Real = NDArray[np.float64]

MEAN, SPREAD = 0.3, 0.5
DEVIATIONS = np.array([-1.5, 0.4, 2.0])
SCHEDULES = {
    "scaled_linear": Schedule(),
    "linear": Schedule("linear", 0.0001, 0.02),
    "squaredcos": Schedule("squaredcos_cap_v2"),
    "scaled_linear, zero SNR": Schedule(zero_terminal_snr=True),
    "squaredcos, zero SNR": Schedule("squaredcos_cap_v2", zero_terminal_snr=True),
    "flow": Schedule("flow"),
    "flow, shift 3": Schedule("flow", shift=3.0),
}
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction", "flow")


def exact(level: NoiseLevel, deviations: Real) -> Real:
    """The ODE's solution at a level."""
    return level.alpha * MEAN + math.hypot(level.alpha * SPREAD, level.sigma) * deviations


def perfect(prediction: Prediction, z: Real, level: NoiseLevel) -> Real:
    """What a perfect network says: the posterior's mean, in its own words."""
    gain = level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)
    x0 = MEAN + gain * (z - level.alpha * MEAN)
    return training_target(prediction, x0, (z - level.alpha * x0) / level.sigma, level.alpha, level.sigma)


def error(sampler: str, walk: TimestepGrid, prediction: Prediction = "sample", end: NoiseLevel = CLEAN) -> float:
    """How far three deviations end from the solution, walked from the grid's first level to `end`."""
    z, past = exact(walk.levels[0], DEVIATIONS), cast(SamplerState[Real] | None, None)
    for evaluation in SAMPLERS[sampler].plan(walk):
        if evaluation.start == end:
            break
        level = evaluation.level
        clean = predict_denoised(prediction, perfect(prediction, z, level), z, level.alpha, level.sigma)
        z, past = sampler_step(SAMPLERS[sampler], z, clean, evaluation, past)
    return float(np.abs(z - exact(end, DEVIATIONS)).max())


def exponential_walks(schedule: Schedule) -> tuple[list[TimestepGrid], NoiseLevel]:
    """Even in lambda; their lowest level before CLEAN is the schedule's cleanest, whatever the number of steps."""
    walks = [make_grid(schedule, steps, sigmas="exponential") for steps in (40, 80, 160, 320)]
    return walks, walks[0].levels[-2]


def trailing_walks(schedule: Schedule) -> tuple[list[TimestepGrid], NoiseLevel]:
    """Even in time; all of them visit the level at a fifth of the way before the end."""
    walks = [make_grid(schedule, steps) for steps in (25, 50, 100, 200)]
    return walks, walks[0].levels[20]


def says_something(prediction: Prediction, schedule: Schedule) -> bool:
    return prediction != "epsilon" or make_grid(schedule, 1).levels[0].alpha > 0


@pytest.mark.parametrize("walks", [exponential_walks, trailing_walks], ids=["exponential", "trailing"])
@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [(p, name) for p in PREDICTIONS for name, schedule in SCHEDULES.items() if says_something(p, schedule)],
)
@pytest.mark.parametrize(
    ("sampler", "least", "most"),
    # Flow and squared-cosine walks leave nearly pure noise in one long interval, which costs the second-order methods
    # a fifth of an order; UniPC's corrector has order three, of which cancelling errors can show more or less.
    [
        ("ddim", 0.95, 1.05),
        ("euler", 0.95, 1.05),
        ("flow_euler", 0.95, 1.05),
        ("heun", 1.8, 2.2),
        ("dpmpp_2m", 1.8, 2.2),
        ("unipc", 1.9, 8.0),
    ],
)
def test_order(
    sampler: str,
    least: float,
    most: float,
    prediction: Prediction,
    schedule: str,
    walks: Callable[[Schedule], tuple[list[TimestepGrid], NoiseLevel]],
) -> None:
    grids, end = walks(SCHEDULES[schedule])
    errors = [error(sampler, walk, prediction, end) for walk in grids]
    order = math.log2(errors[0] / errors[-1]) / (len(errors) - 1)
    assert least <= order <= most, errors
    assert all(after < before for before, after in pairwise(errors))


@pytest.mark.parametrize("sampler", ["ddim", "euler", "flow_euler", "heun", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_whole_walks_end_at_the_data(sampler: str, schedule: str, spacing: Spacing) -> None:
    """To the clean picture, whose last interval every sampler crosses at first order: closer with more steps."""
    if SCHEDULES[schedule].is_flow and spacing == "leading":
        spacing = "trailing"
    trimmed = SAMPLERS[sampler].drops_last_level
    errors = [
        error(sampler, make_grid(SCHEDULES[schedule], steps, spacing, drop_last_level=trimmed))
        for steps in (5, 20, 80, 320)
    ]
    assert errors[0] < 0.8
    assert errors[-1] < 0.02
    assert errors[-1] < errors[1] < errors[0]


@pytest.mark.parametrize(
    ("sampler", "spread", "kept"),
    [
        ("ddim", 1.0, {128: 0.986, 64: 0.974, 35: 0.954, 16: 0.907, 8: 0.827, 4: 0.684, 3: 0.596, 2: 0.429}),
        ("ddim", 0.5, {128: 0.971, 64: 0.947, 35: 0.911, 16: 0.832, 8: 0.713, 4: 0.525, 3: 0.425, 2: 0.262}),
        ("ddim", 0.2, {128: 0.894, 64: 0.823, 35: 0.735, 8: 0.425, 4: 0.261, 3: 0.197, 2: 0.112}),
        ("dpmpp_2m", 1.0, {128: 0.997, 64: 0.994, 35: 0.988, 16: 0.970, 8: 0.911}),
        ("dpmpp_2m", 0.5, {128: 0.988, 64: 0.974, 35: 0.951, 16: 0.886, 8: 0.757}),
        ("dpmpp_2m", 0.2, {128: 0.921, 64: 0.852, 35: 0.761, 16: 0.602, 8: 0.431}),
    ],
)
def test_contrast_that_few_steps_keep(sampler: str, spread: float, kept: dict[int, float]) -> None:
    """Measured apart from this program, with other code: zero terminal SNR, trailing, Stable Diffusion's betas."""
    for steps, share in kept.items():
        z, past = np.array([1.0]), cast(SamplerState[Real] | None, None)
        for evaluation in SAMPLERS[sampler].plan(make_grid(Schedule(zero_terminal_snr=True), steps)):
            alpha, sigma = evaluation.level.alpha, evaluation.level.sigma
            gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
            z, past = sampler_step(SAMPLERS[sampler], z, gain * z, evaluation, past)
        assert float(z[0]) / spread == pytest.approx(share, abs=1.5e-3), steps


PICTURES = 20_000
MEAN_ERROR = SPREAD / PICTURES**0.5
SPREAD_ERROR = SPREAD / (2 * PICTURES) ** 0.5


def drawn(
    sampler: str, walk: TimestepGrid, eta: float, clean: Callable[[Real, NoiseLevel], Real]
) -> tuple[float, float]:
    """Mean and standard deviation of many pictures of one pixel."""
    rng = np.random.default_rng(5)
    start = walk.levels[0]
    x0 = MEAN + SPREAD * rng.standard_normal(PICTURES)
    z, past = (
        add_noise(x0, rng.standard_normal(PICTURES), start.alpha, start.sigma),
        cast(SamplerState[Real] | None, None),
    )
    for evaluation in SAMPLERS[sampler].plan(walk, eta):
        noise = rng.standard_normal(PICTURES)
        z, past = sampler_step(SAMPLERS[sampler], z, clean(z, evaluation.level), evaluation, past, noise)
    return float(z.mean()), float(z.std())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("sampler", "eta", "shares"),
    # The least and most of the true spread that 10, 40 and 160 steps may show.
    [
        ("ddim", 0.5, [(0.72, 0.88), (0.90, 0.97), (0.96, 1.0)]),
        ("ddpm", 0.0, [(0.65, 0.82), (0.86, 0.94), (0.95, 1.0)]),
        ("euler_ancestral", 0.0, [(0.65, 0.82), (0.86, 0.94), (0.95, 1.0)]),
        ("dpmpp_2m_sde", 0.0, [(0.77, 1.06), (0.96, 1.06), (0.99, 1.02)]),
    ],
)
def test_stochastic_samplers_draw_from_the_data(
    sampler: str, eta: float, shares: list[tuple[float, float]], schedule: str
) -> None:
    for steps, (least, most) in zip((10, 40, 160), shares, strict=True):
        mean, spread = drawn(
            sampler, make_grid(SCHEDULES[schedule], steps), eta, lambda z, level: perfect("sample", z, level)
        )
        assert abs(mean - MEAN) < 4 * MEAN_ERROR
        assert least * SPREAD - 4 * SPREAD_ERROR < spread < most * SPREAD + 4 * SPREAD_ERROR


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_with_a_perfect_consistency_function_draws_exactly_the_data(schedule: str, steps: int) -> None:
    """Its network says where the ODE ends, so that each restart begins from true data."""

    def end(z: Real, level: NoiseLevel) -> Real:
        return MEAN + SPREAD * (z - level.alpha * MEAN) / math.hypot(level.alpha * SPREAD, level.sigma)

    mean, spread = drawn("lcm", make_grid(SCHEDULES[schedule], steps), 0.0, end)
    assert abs(mean - MEAN) < 4 * MEAN_ERROR
    assert abs(spread - SPREAD) < 4 * SPREAD_ERROR
