"""Timestep grids: the noise levels of a trajectory, from the noisiest level to the clean picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.diffusion.schedule import Schedule, noise_levels, shifted
from stillhouse.errors import InvalidRequest

Spacing = Literal["trailing", "leading", "linspace"]
SigmaSpacing = Literal["schedule", "karras", "exponential"]

_RHO = 7.0
_PURE_NOISE_RATIO = (2.0**24 - 1) ** 0.5
"""The sigma / alpha that karras and exponential grids start from at pure noise, where the true ratio is infinite.

The value follows from diffusers, which sets alphas_cumprod to 2^-24 at pure noise.
"""


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """A noise level, z = alpha * x0 + sigma * noise, and the timestep that the network takes as its input."""

    timestep: float
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma), the lambda of the DPM-Solver papers: -inf for pure noise, inf for a clean picture."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


CLEAN = NoiseLevel(timestep=-1.0, alpha=1.0, sigma=0.0)
"""The level of a clean picture. No network is evaluated there, and its timestep has no meaning."""


@dataclass(frozen=True, slots=True)
class TimestepGrid:
    """The noise levels of a trajectory.

    Args:
        levels: noisiest level first, CLEAN last; each level has less noise than the one before.
        skipped_steps: number of steps of the full grid that are left out at its start, because the trajectory starts
            from a picture.

    Raises:
        InvalidRequest: a level has as much noise as the previous one or more, or the last level is not CLEAN.

    >>> TimestepGrid((NoiseLevel(999, 0.0, 1.0), CLEAN)).steps
    1
    """

    levels: tuple[NoiseLevel, ...]
    skipped_steps: int = 0

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or self.levels[-1] != CLEAN:
            raise InvalidRequest(
                "the noise levels do not end at CLEAN, the level of a clean picture",
                allowed="one or more levels, then CLEAN",
            )
        ratios = [level.half_log_snr for level in self.levels]
        if any(after <= before for before, after in pairwise(ratios)):
            raise InvalidRequest(
                "the noise levels do not fall: one has as much noise as the level before, or more",
                allowed="levels from noisy to clean",
            )

    @property
    def steps(self) -> int:
        """Number of steps: one less than the number of levels."""
        return len(self.levels) - 1

    @property
    def timesteps(self) -> NDArray[np.float64]:
        """Timestep of every level except CLEAN, float64 [steps]; fractional with karras and exponential sigmas."""
        return np.array([level.timestep for level in self.levels[:-1]])

    @property
    def alphas(self) -> NDArray[np.float64]:
        """Alpha of every level, float64 [steps + 1]; the last is 1."""
        return np.array([level.alpha for level in self.levels])

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """Sigma of every level, float64 [steps + 1]; the last is 0."""
        return np.array([level.sigma for level in self.levels])

    def start_at_strength(self, strength: float) -> "TimestepGrid":
        """Return the grid's last int(steps * strength) steps, to start from a picture (SDEdit, arXiv 2108.01073).

        diffusers' `get_timesteps` keeps the same number. `strength` lies from above 0 (the picture hardly changes) to 1
        (the whole grid). InvalidRequest is raised if the strength lies outside this range, or leaves no step.

        >>> make_grid(Schedule(), 20).start_at_strength(0.5).steps
        10
        """
        check_number("strength", strength, 0, 1)
        remaining = min(int(self.steps * strength), self.steps)
        if remaining == 0:
            least = math.ceil(1e4 / self.steps) / 1e4
            raise InvalidRequest(
                f"strength {strength} of {self.steps} steps leaves no step",
                allowed=f"a strength from {least:g} to 1 with {self.steps} steps",
                fix="raise the strength, or take more steps",
            )
        skipped = self.steps - remaining
        return TimestepGrid(self.levels[skipped:], self.skipped_steps + skipped)


def make_grid(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "trailing",
    sigmas: SigmaSpacing = "schedule",
    *,
    steps_offset: int = 0,
    drop_last_level: bool = False,
) -> TimestepGrid:
    """Return the grid of noise levels for a trajectory of `steps` sampler steps.

    Args:
        schedule: noise schedule that the network was trained with.
        steps: number of sampler steps, 1 to the schedule's train_steps.
        spacing: trailing, leading or linspace (table 2 of arXiv 2305.08891), as in diffusers' DDIM. Flow has trailing
            (sigma = 1, (N - 1) / N, ..., 1 / N) and linspace (down to the lowest trained level).
        sigmas: schedule takes the noise levels of the timesteps that `spacing` selects. karras (arXiv 2206.00364,
            equation 5, rho 7) and exponential ignore `spacing`: they spread sigma / alpha (flow: sigma) over the
            trained range, and have fractional timesteps.
        steps_offset: number added to every timestep of leading spacing.
        drop_last_level: whether leading and linspace grids are made with one more step, and their last noisy level is
            left out. diffusers does so for samplers with `Sampler.drops_last_level`, which would extrapolate too far
            over a long last step.

    Raises:
        InvalidRequest: a name does not exist, `steps` exceeds the number of the schedule's timesteps, or the spacing of
            a flow schedule is leading.

    >>> make_grid(Schedule(zero_terminal_snr=True), 4).timesteps.tolist()
    [999.0, 749.0, 499.0, 249.0]
    """
    check_choice("spacing", spacing, get_args(Spacing))
    check_choice("sigmas", sigmas, get_args(SigmaSpacing))
    check_integer("steps_offset", steps_offset, 0, schedule.train_steps - 1)
    drop_last_level = drop_last_level and spacing != "trailing" and sigmas == "schedule"
    offset = steps_offset if spacing == "leading" and sigmas == "schedule" else 0
    check_integer("steps", steps, 1, schedule.train_steps - drop_last_level - offset)
    if schedule.is_flow and spacing == "leading":
        raise InvalidRequest("spacing is leading for a flow schedule", allowed="trailing, linspace")
    return _grid(schedule, steps, spacing, sigmas, steps_offset, drop_last_level)


def grid_from_timesteps(schedule: Schedule, timesteps: Sequence[float]) -> TimestepGrid:
    """Return the grid over these timesteps, noisiest first, then CLEAN, for distilled networks trained on one grid.

    Args:
        schedule: noise schedule that the network was trained with.
        timesteps: strictly falling whole numbers from 0 to train_steps - 1; for flow, numbers above 0, up to
            train_steps.

    Raises:
        InvalidRequest: a timestep is outside its range, or not below the previous one.

    >>> grid_from_timesteps(Schedule(zero_terminal_snr=True), [999, 656, 342]).steps
    3
    """
    array = np.asarray(timesteps, np.float64)
    most = schedule.train_steps
    if schedule.is_flow:
        valid, valid_range = (array > 0) & (array <= most), f"numbers above 0 to {most}"
    else:
        valid, valid_range = (array >= 0) & (array < most) & (array == array.round()), f"whole numbers, 0 to {most - 1}"
    if not valid.all():
        raise InvalidRequest(f"timesteps contains {array[~valid][0]:g}", allowed=valid_range)
    if schedule.is_flow:
        return _make_levels(array, 1 - array / most, array / most)
    alphas, sigmas = noise_levels(schedule)
    return _make_levels(array, alphas[array.astype(int)], sigmas[array.astype(int)])


@lru_cache(maxsize=128)
def _grid(
    schedule: Schedule, steps: int, spacing: Spacing, sigmas: SigmaSpacing, steps_offset: int, drop_last_level: bool
) -> TimestepGrid:
    if schedule.is_flow:
        levels = _flow_sigmas(schedule, steps + drop_last_level, spacing)[:steps]
        if sigmas != "schedule":
            levels = _ramp(sigmas, _flow_sigmas(schedule, 2, "linspace")[[0, -1]], steps)
        return _make_levels(levels * schedule.train_steps, 1 - levels, levels)
    if sigmas != "schedule":
        return _ramped_grid(schedule, steps, sigmas)
    timesteps = _spaced_timesteps(schedule.train_steps, steps + drop_last_level, spacing, steps_offset)
    return grid_from_timesteps(schedule, timesteps[:steps].tolist())


def _spaced_timesteps(train_steps: int, count: int, spacing: Spacing, steps_offset: int) -> NDArray[np.float64]:
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, count).round()[::-1]
    if spacing == "leading":
        return np.arange(count, dtype=np.float64)[::-1] * (train_steps // count) + steps_offset
    return np.arange(train_steps, 0, -train_steps / count).round() - 1


def _flow_sigmas(schedule: Schedule, steps: int, spacing: Spacing) -> NDArray[np.float64]:
    if spacing == "trailing":
        return shifted(schedule, np.arange(steps, 0, -1) / steps)
    # `lowest` is a shifted level, and the return statement shifts it again. FlowMatchEulerDiscreteScheduler of
    # diffusers, whose range comes from shifted levels, does the same.
    lowest = noise_levels(schedule)[1][0]
    return shifted(schedule, np.linspace(1, lowest, steps))


def _ramped_grid(schedule: Schedule, steps: int, sigmas: SigmaSpacing) -> TimestepGrid:
    trained_alphas, trained_sigmas = noise_levels(schedule)
    ratios = np.full(schedule.train_steps, _PURE_NOISE_RATIO)
    np.divide(trained_sigmas, trained_alphas, out=ratios, where=trained_alphas > 0)
    ramp = _ramp(sigmas, ratios[[-1, 0]], steps)
    timesteps = np.interp(np.log(ramp), np.log(ratios), np.arange(schedule.train_steps))
    alphas = 1 / np.sqrt(1 + ramp**2)
    levels = ramp * alphas
    timesteps[0], alphas[0], levels[0] = schedule.train_steps - 1, trained_alphas[-1], trained_sigmas[-1]
    return _make_levels(timesteps, alphas, levels)


def _ramp(sigmas: SigmaSpacing, ends: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    first, last = ends
    if sigmas == "exponential":
        return np.geomspace(first, last, count)
    return np.power(np.linspace(first ** (1 / _RHO), last ** (1 / _RHO), count), _RHO)


def _make_levels(
    timesteps: NDArray[np.float64], alphas: NDArray[np.float64], sigmas: NDArray[np.float64]
) -> TimestepGrid:
    levels = zip(timesteps.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)
    return TimestepGrid((*(NoiseLevel(*level) for level in levels), CLEAN))
