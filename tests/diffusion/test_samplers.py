import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stillhouse.diffusion import (
    CLEAN,
    SAMPLERS,
    NoiseLevel,
    SamplerState,
    Schedule,
    TimestepGrid,
    find_sampler,
    make_grid,
)
from stillhouse.errors import InvalidRequest
from tests.diffusion.formulas import sampler_step

Real = NDArray[np.float64]

NAMES = sorted(SAMPLERS)
PURE = Schedule(zero_terminal_snr=True)
SCHEDULES = st.sampled_from([Schedule(), PURE, Schedule("squaredcos_cap_v2"), Schedule("flow", shift=3.0)])


def walk(sampler: str, on: TimestepGrid, eta: float = 0.0, seed: int = 1) -> Iterator[Any]:
    """z after every evaluation, with a made-up clean picture that depends on z and on the level."""
    rng = np.random.default_rng(seed)
    z, past = rng.standard_normal((3, 4)), cast(SamplerState[Real] | None, None)
    for evaluation in SAMPLERS[sampler].plan(on, eta):
        clean = z / (1 + z**2) + evaluation.level.alpha
        z, past = sampler_step(SAMPLERS[sampler], z, clean, evaluation, past, rng.standard_normal(z.shape))
        yield z


def assert_same_walk(left: Iterator[Real], right: Iterator[Real]) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


@given(schedule=SCHEDULES, steps=st.integers(1, 12))
def test_ddim_euler_and_flow_euler_are_one_walk(schedule: Schedule, steps: int) -> None:
    on = make_grid(schedule, steps)
    assert_same_walk(walk("ddim", on), walk("euler", on))
    assert_same_walk(walk("ddim", on), walk("flow_euler", on))


@given(schedule=SCHEDULES, steps=st.integers(1, 12))
def test_ddpm_euler_ancestral_and_ddim_with_all_its_noise_are_one_walk(schedule: Schedule, steps: int) -> None:
    on = make_grid(schedule, steps)
    assert_same_walk(walk("ddpm", on), walk("euler_ancestral", on))
    assert_same_walk(walk("ddpm", on), walk("ddim", on, eta=1.0))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_move_keeps_a_noised_picture_on_its_schedule(eta: float) -> None:
    """From alpha x0 + sigma noise with the true x0, the next z has alpha' of picture and variance sigma'^2."""
    for evaluation in SAMPLERS["ddim"].plan(make_grid(Schedule(), 20), eta):
        kept, gained, fresh = evaluation.coefficients
        assert kept * evaluation.start.alpha + gained == pytest.approx(evaluation.end.alpha)
        assert math.hypot(kept * evaluation.start.sigma, fresh) == pytest.approx(evaluation.end.sigma)


@pytest.mark.parametrize("name", NAMES)
@given(steps=st.integers(1, 30), strength=st.floats(0.5, 1))
def test_plans_cross_every_interval_in_order(name: str, steps: int, strength: float) -> None:
    sampler, on = SAMPLERS[name], make_grid(Schedule(), steps * 2).start_at_strength(strength)
    plan = sampler.plan(on)
    assert len(plan) == sampler.evaluation_count(on.steps)
    assert [e.start for e in plan if e.level == e.start] == list(on.levels[:-1])
    assert [e.end for e in plan if e.level == e.start] == list(on.levels[1:])
    assert plan[-1].end == CLEAN
    assert plan[0].progress == on.skipped_steps / (steps * 2)
    assert all(before.progress <= after.progress < 1 for before, after in pairwise(plan))
    assert all(evaluation.level != CLEAN for evaluation in plan)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", [PURE, Schedule("flow"), Schedule("squaredcos_cap_v2", zero_terminal_snr=True)])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 1000])
def test_every_sampler_begins_at_pure_noise(name: str, schedule: Schedule, steps: int) -> None:
    on = make_grid(schedule, steps)
    assert on.levels[0].alpha == 0
    assert all(np.isfinite(z).all() for z in walk(name, on))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigmas", ["schedule", "karras", "exponential"])
def test_a_certain_network_is_believed(name: str, sigmas: Any) -> None:
    """Where x0 is the same at every step, every walk ends there, whatever it began with."""
    x0 = np.array([-1.0, 0.2, 3.0])
    z, past = np.array([5.0, -2.0, 0.1]), cast(SamplerState[Real] | None, None)
    noise = np.random.default_rng(2)
    for evaluation in SAMPLERS[name].plan(make_grid(PURE, 9, sigmas=sigmas)):
        z, past = sampler_step(SAMPLERS[name], z, x0, evaluation, past, noise.standard_normal(3))
    # lcm's boundary condition keeps some of z near timestep 0, where the ramps end and trailing does not.
    near = 5e-2 if name == "lcm" and sigmas != "schedule" else 1e-5
    np.testing.assert_allclose(z, x0, rtol=near)


@pytest.mark.parametrize("name", NAMES)
def test_torch_tensors_give_what_arrays_give(name: str) -> None:
    rng = np.random.default_rng(3)
    sampler, z = SAMPLERS[name], rng.standard_normal((2, 4, 4))
    tensor, past, tensor_past = (
        torch.from_numpy(z),
        cast(SamplerState[Any] | None, None),
        cast(SamplerState[Any] | None, None),
    )
    for evaluation in sampler.plan(make_grid(PURE, 6), eta=0.5):
        noise = rng.standard_normal(z.shape)
        z, past = sampler_step(sampler, z, z / (1 + z**2), evaluation, past, noise)
        clean = tensor / (1 + tensor**2)
        tensor, tensor_past = sampler_step(sampler, tensor, clean, evaluation, tensor_past, torch.from_numpy(noise))
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_allclose(tensor.numpy(), z, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_pure_and_leave_float32_alone(name: str) -> None:
    sampler, z = SAMPLERS[name], np.ones((2, 2), np.float32)
    clean, noise, past = z * np.float32(0.5), z * np.float32(-0.3), cast(SamplerState[Any] | None, None)
    for evaluation in sampler.plan(make_grid(PURE, 4)):
        for array in (z, clean, noise):
            array.flags.writeable = False
        (once, _), (z, past) = (sampler_step(sampler, z, clean, evaluation, past, noise) for _ in range(2))
        assert z.dtype == np.float32
        assert once.tobytes() == z.tobytes()


def test_the_last_stochastic_step_takes_no_noise() -> None:
    first, *_, last = SAMPLERS["ddpm"].plan(make_grid(PURE, 3))
    assert first.coefficients.noise > 0 and last.coefficients.noise == 0
    assert sampler_step(SAMPLERS["ddpm"], 1.0, 0.5, last) == (0.5, None)


def test_memory_does_not_grow() -> None:
    z, past = np.zeros(3), cast(SamplerState[Real] | None, None)
    for evaluation in SAMPLERS["unipc"].plan(make_grid(PURE, 8)):
        z, past = sampler_step(SAMPLERS["unipc"], z, z, evaluation, past)
        assert past is not None
        assert past.previous is None or past.previous.previous is None


def test_heun_looks_at_both_ends_of_all_intervals_but_the_last() -> None:
    on = make_grid(Schedule(), 3)
    first, second, third = on.levels[:3]
    seen = [(e.level, e.start, e.end) for e in SAMPLERS["heun"].plan(on)]
    assert seen == [
        (first, first, second),
        (second, first, second),
        (second, second, third),
        (third, second, third),
        (third, third, CLEAN),
    ]


def test_lambda_of_the_ends() -> None:
    assert (CLEAN.half_log_snr, NoiseLevel(999, 0.0, 1.0).half_log_snr) == (math.inf, -math.inf)


def test_samplers_cannot_be_replaced_and_say_what_they_are() -> None:
    with pytest.raises(TypeError):
        SAMPLERS["ddim"] = SAMPLERS["heun"]  # type: ignore[index]
    assert all(30 < len(sampler.summary) < 90 for sampler in SAMPLERS.values())
    assert find_sampler("lcm") is SAMPLERS["lcm"]


@pytest.mark.parametrize(("name", "near"), [("DDIM", "ddim"), ("dpm++_2m", "dpmpp_2m"), ("euler_a", "euler")])
def test_unknown_samplers_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        find_sampler(name)
    assert f"did you mean '{near}'?" in str(refusal.value)
    assert all(known in str(refusal.value) for known in SAMPLERS)


def test_a_name_like_no_other_gets_the_list_alone() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        find_sampler("zzz")
    assert refusal.value.fix is None
