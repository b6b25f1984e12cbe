from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.diffusion import (
    CLEAN,
    NoiseLevel,
    Schedule,
    SigmaSpacing,
    Spacing,
    TimestepGrid,
    grid_from_timesteps,
    make_grid,
    noise_levels,
)
from stillhouse.errors import InvalidRequest

SCHEDULES = st.sampled_from(
    [
        Schedule(),
        Schedule("linear", 0.0001, 0.02),
        Schedule("squaredcos_cap_v2"),
        Schedule(zero_terminal_snr=True),
        Schedule("flow"),
        Schedule("flow", shift=3.0),
    ]
)
SPACINGS = st.sampled_from(["trailing", "leading", "linspace"])
SIGMAS = st.sampled_from(["schedule", "karras", "exponential"])


@given(schedule=SCHEDULES, steps=st.integers(1, 999), spacing=SPACINGS, sigmas=SIGMAS, trimmed=st.booleans())
def test_every_grid_falls_from_noise_to_clean(
    schedule: Schedule, steps: int, spacing: Spacing, sigmas: SigmaSpacing, trimmed: bool
) -> None:
    if schedule.is_flow and spacing == "leading":
        spacing = "trailing"
    walk = make_grid(schedule, steps, spacing, sigmas, drop_last_level=trimmed)
    assert walk.steps == len(walk.timesteps) == steps
    assert walk.levels[-1] == CLEAN
    assert (walk.alphas[-1], walk.sigmas[-1]) == (1, 0)
    assert (np.diff(walk.sigmas) < 0).all()
    assert (np.diff(walk.timesteps) < 0).all()
    assert 0 <= walk.timesteps[-1] <= walk.timesteps[0] <= schedule.train_steps
    norm = walk.alphas + walk.sigmas if schedule.is_flow else walk.alphas**2 + walk.sigmas**2
    np.testing.assert_allclose(norm, 1, rtol=1e-12)


@given(schedule=SCHEDULES, steps=st.integers(1, 1000), sigmas=SIGMAS)
def test_trailing_walks_and_ramps_begin_where_training_ended(
    schedule: Schedule, steps: int, sigmas: SigmaSpacing
) -> None:
    alphas, levels = noise_levels(schedule)
    first = make_grid(schedule, steps, "trailing", sigmas).levels[0]
    assert (first.alpha, first.sigma) == pytest.approx((alphas[-1], levels[-1]), abs=1e-12)


def test_levels_are_those_of_the_listed_timesteps() -> None:
    walk = make_grid(Schedule(), 35)
    alphas, sigmas = noise_levels(Schedule())
    listed = walk.timesteps.astype(int)
    assert walk.alphas[:-1].tolist() == alphas[listed].tolist()
    assert walk.sigmas[:-1].tolist() == sigmas[listed].tolist()
    assert walk.timesteps[:3].tolist() == [999, 970, 942]


def test_exponential_sigmas_are_even_in_lambda() -> None:
    lambdas = [point.half_log_snr for point in make_grid(Schedule(), 30, sigmas="exponential").levels[:-1]]
    np.testing.assert_allclose(np.diff(lambdas), np.diff(lambdas)[0], rtol=1e-9)


def test_karras_sigmas_are_even_in_their_seventh_root() -> None:
    walk = make_grid(Schedule(), 30, sigmas="karras")
    roots = (walk.sigmas[:-1] / walk.alphas[:-1]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-9)


@given(steps=st.integers(1, 1000))
def test_ramps_feed_the_timestep_of_their_level(steps: int) -> None:
    _, sigmas = noise_levels(Schedule())
    for point in make_grid(Schedule(), steps, sigmas="karras").levels[:-1]:
        below, above = int(np.floor(point.timestep)), int(np.ceil(point.timestep))
        assert sigmas[below] - 1e-9 <= point.sigma <= sigmas[above] + 1e-9


def test_grids_are_computed_once() -> None:
    assert make_grid(Schedule(), 20) is make_grid(Schedule(), 20, "trailing")


@given(steps=st.integers(1, 1000), strength=st.floats(0, 1, exclude_min=True))
def test_strength_enters_the_grid_where_diffusers_does(steps: int, strength: float) -> None:
    whole = make_grid(Schedule(), steps)
    walked = min(int(steps * strength), steps)
    if walked == 0:
        with pytest.raises(InvalidRequest, match="leaves no step"):
            whole.start_at_strength(strength)
        return
    tail = whole.start_at_strength(strength)
    assert tail.levels == whole.levels[steps - walked :]
    assert (tail.steps, tail.skipped_steps) == (walked, steps - walked)


@given(steps=st.integers(1, 1000))
def test_the_least_strength_that_a_refusal_names_is_enough(steps: int) -> None:
    walk = make_grid(Schedule(), steps)
    with pytest.raises(InvalidRequest) as refusal:
        walk.start_at_strength(0.5 / steps)
    least = float(str(refusal.value.allowed).split()[3])
    assert walk.start_at_strength(least).steps >= 1
    assert least <= 1 / steps + 1e-4


def test_grid_at_lays_out_a_students_own_timesteps() -> None:
    walk = grid_from_timesteps(Schedule(zero_terminal_snr=True), [999, 656, 342])
    whole = make_grid(Schedule(zero_terminal_snr=True), 1000)
    assert walk.levels == (whole.levels[0], whole.levels[343], whole.levels[657], CLEAN)
    assert grid_from_timesteps(Schedule("flow"), [1000, 250.5]).sigmas.tolist() == [1, 0.2505, 0]


@pytest.mark.parametrize(
    ("steps", "more", "said"),
    [
        (0, {}, "steps is 0; allowed: a whole number from 1 to 1000"),
        (-3, {}, "steps is -3"),
        (1001, {}, "steps is 1001"),
        (2.5, {}, "steps is 2.5"),
        (1000, {"spacing": "leading", "drop_last_level": True}, "from 1 to 999"),
        (10, {"spacing": "trailling"}, "did you mean 'trailing'"),
        (10, {"sigmas": "karas"}, "did you mean 'karras'"),
        (10, {"steps_offset": -1}, "steps_offset is -1"),
        (1000, {"spacing": "leading", "steps_offset": 1}, "steps is 1000; allowed: a whole number from 1 to 999"),
        (10, {"schedule": Schedule("flow"), "spacing": "leading"}, "allowed: trailing, linspace"),
    ],
)
def test_refusals(steps: int, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        make_grid(**{"schedule": Schedule(), "steps": steps, **more})


@pytest.mark.parametrize("timesteps", [[1000, 5], [5.5], [-1], []])
def test_grid_at_refuses_timesteps_that_no_network_saw(timesteps: list[float]) -> None:
    with pytest.raises(InvalidRequest):
        grid_from_timesteps(Schedule(), timesteps)


def test_grids_refuse_to_end_noisy_or_to_turn_back() -> None:
    noisy, less = NoiseLevel(999, 0.1, 0.9), NoiseLevel(500, 0.5, 0.5)
    with pytest.raises(InvalidRequest, match="end at CLEAN"):
        TimestepGrid((noisy, less))
    with pytest.raises(
        InvalidRequest, match="the noise levels do not fall: one has as much noise as the level before, or more"
    ):
        TimestepGrid((less, noisy, CLEAN))
    assert [a.half_log_snr < b.half_log_snr for a, b in pairwise((noisy, less, CLEAN))] == [True, True]


@pytest.mark.parametrize("strength", [0, -0.5, 1.5, float("nan")])
def test_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(InvalidRequest, match="strength"):
        make_grid(Schedule(), 20).start_at_strength(strength)
