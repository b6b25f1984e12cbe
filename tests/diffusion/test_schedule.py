import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.diffusion import Schedule, ScheduleKind, noise_levels
from stillhouse.errors import InvalidRequest

BETAS: tuple[ScheduleKind, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2")


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("train_steps", [2, 50, 1000])
def test_beta_schedules_preserve_variance_and_only_add_noise(kind: ScheduleKind, zero: bool, train_steps: int) -> None:
    alphas, sigmas = noise_levels(Schedule(kind, train_steps=train_steps, zero_terminal_snr=zero))
    assert alphas.shape == sigmas.shape == (train_steps,)
    np.testing.assert_allclose(alphas**2 + sigmas**2, 1, rtol=1e-12)
    assert (np.diff(alphas) < 0).all()
    assert (alphas[-1] == 0) == zero


def test_zero_terminal_snr_keeps_the_cleanest_level() -> None:
    before, after = (noise_levels(Schedule(zero_terminal_snr=zero))[0] for zero in (False, True))
    assert after[0] == pytest.approx(before[0], rel=1e-12)
    assert after[-1] == 0


def test_stable_diffusion_is_neither_pure_at_its_start_nor_clean_at_its_end() -> None:
    cumulative = noise_levels(Schedule())[0] ** 2
    assert cumulative[-1] == pytest.approx(0.00466, abs=5e-6)
    assert cumulative[0] == pytest.approx(0.99915, abs=5e-6)


@given(shift=st.floats(0.1, 20))
def test_flow_is_straight_and_shifted_towards_noise(shift: float) -> None:
    alphas, sigmas = noise_levels(Schedule("flow", shift=shift))
    np.testing.assert_allclose(alphas + sigmas, 1, rtol=1e-12)
    assert sigmas[-1] == pytest.approx(1)
    assert (np.diff(sigmas) > 0).all()
    assert (sigmas[499] >= 0.5 - 1e-12) == (shift >= 1)


def test_levels_are_computed_once_and_cannot_be_changed() -> None:
    alphas, _ = noise_levels(Schedule())
    assert noise_levels(Schedule())[0] is alphas
    with pytest.raises(ValueError, match="read-only"):
        alphas[0] = 1


@pytest.mark.parametrize(
    ("given_as", "said"),
    [
        ({"kind": "scaled-linear"}, "did you mean 'scaled_linear'"),
        ({"train_steps": 0}, "train_steps is 0; allowed: a whole number from 1"),
        ({"beta_end": 1.5}, "beta_end is 1.5"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start is 0.5; allowed: a number from 1e-09 to 0.1"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"kind": "flow", "zero_terminal_snr": True}, "leave zero_terminal_snr out"),
    ],
)
def test_refusals(given_as: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Schedule(**given_as)  # type: ignore[arg-type]
