"""The levels that a walk from noise to picture visits. It visits every one of them and ends at the clean picture."""

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
"""Where a ramp of sigma / alpha begins when the true value is infinite: diffusers' alphas_cumprod of 2^-24."""


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """A noise level, z = alpha * x0 + sigma * noise, and the timestep by which the network knows it."""

    timestep: float
    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """Lambda of the DPM-Solver papers, log(alpha / sigma): -inf for pure noise, inf for a clean picture."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


CLEAN = NoiseLevel(timestep=-1.0, alpha=1.0, sigma=0.0)
"""The finished picture. No network is asked there, so its timestep is a mark only."""


@dataclass(frozen=True, slots=True)
class TimestepGrid:
    """A walk's levels, noisiest first, CLEAN last; `skipped` counts the steps of the full walk before the first.

    >>> Grid((Point(999, 0.0, 1.0), CLEAN)).steps
    1
    """

    levels: tuple[NoiseLevel, ...]
    skipped_steps: int = 0

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or self.levels[-1] != CLEAN:
            raise InvalidRequest("a grid that does not end at CLEAN", allowed="one or more levels, then CLEAN")
        levels = [point.half_log_snr for point in self.levels]
        if any(after <= before for before, after in pairwise(levels)):
            raise InvalidRequest("a grid that goes back to more noise", allowed="levels from noisy to clean, each once")

    @property
    def steps(self) -> int:
        """Intervals to walk: one fewer than there are points."""
        return len(self.levels) - 1

    @property
    def timesteps(self) -> NDArray[np.float64]:
        """What the network is fed on the way, float64 [steps]; fractions where sigmas follow a ramp."""
        return np.array([point.timestep for point in self.levels[:-1]])

    @property
    def alphas(self) -> NDArray[np.float64]:
        """Alpha at every point, float64 [steps + 1]; the last is 1."""
        return np.array([point.alpha for point in self.levels])

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """Sigma at every point, float64 [steps + 1]; the last is 0."""
        return np.array([point.sigma for point in self.levels])

    def start_at_strength(self, strength: float) -> "TimestepGrid":
        """The tail that starts from a picture noised to this strength (SDEdit, arXiv 2108.01073).

        It enters where diffusers' `get_timesteps` does and walks int(steps * strength) steps, so a picture of 20
        steps at strength 0.5 costs 10 evaluations.

        Args:
            strength: above 0 (the picture stays) to 1 (the whole grid).

        Raises:
            InvalidRequest: a strength outside that range, or one that leaves no step to walk.

        >>> grid(Schedule(), 20).from_strength(0.5).steps
        10
        """
        check_number("strength", strength, 0, 1)
        walked = min(int(self.steps * strength), self.steps)
        if walked == 0:
            least = math.ceil(1e4 / self.steps) / 1e4
            raise InvalidRequest(
                f"strength {strength} of {self.steps} steps leaves no step to walk",
                allowed=f"a strength from {least:g} to 1 with {self.steps} steps",
                fix="raise the strength, or take more steps",
            )
        skipped = self.steps - walked
        return TimestepGrid(self.levels[skipped:], self.skipped_steps + skipped)


def make_grid(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "trailing",
    sigmas: SigmaSpacing = "schedule",
    *,
    steps_offset: int = 0,
    trimmed: bool = False,
) -> TimestepGrid:
    """Lay out a walk of so many steps.

    Args:
        schedule: what the network was trained with.
        steps: intervals to walk, 1 to the schedule's train_steps.
        spacing: trailing, leading or linspace (table 2 of arXiv 2305.08891), as diffusers' DDIM lays them out. Flow
            has trailing (sigma = 1, (N - 1) / N, ..., 1 / N) and linspace (down to the lowest trained level).
        sigmas: schedule takes the levels at those timesteps; karras (arXiv 2206.00364, equation 5, rho 7) and
            exponential lay sigma / alpha (flow: sigma) out over the trained range, whatever the spacing, and feed
            fractional timesteps.
        steps_offset: added to every timestep of leading spacing.
        trimmed: lay leading and linspace out with one step more and leave the last point out, as diffusers does for
            the samplers that say so (`Sampler.trimmed`): they would extrapolate too far over so long a last interval.

    Raises:
        InvalidRequest: a name that does not exist, or more steps than the schedule has timesteps.

    >>> grid(Schedule(zero_terminal_snr=True), 4).timesteps.tolist()
    [999.0, 749.0, 499.0, 249.0]
    """
    check_choice("spacing", spacing, get_args(Spacing))
    check_choice("sigmas", sigmas, get_args(SigmaSpacing))
    check_integer("steps_offset", steps_offset, 0, schedule.train_steps - 1)
    trimmed = trimmed and spacing != "trailing" and sigmas == "schedule"
    offset = steps_offset if spacing == "leading" and sigmas == "schedule" else 0
    check_integer("steps", steps, 1, schedule.train_steps - trimmed - offset)
    if schedule.is_flow and spacing == "leading":
        raise InvalidRequest("leading spacing of a flow schedule", allowed="trailing, linspace")
    return _grid(schedule, steps, spacing, sigmas, steps_offset, trimmed)


def grid_from_timesteps(schedule: Schedule, timesteps: Sequence[float]) -> TimestepGrid:
    """The walk over timesteps of your own, noisiest first, then CLEAN; for students with a grid of their own.

    Args:
        schedule: what the network was trained with.
        timesteps: falling; whole numbers from 0 to train_steps - 1, or for flow numbers above 0 to train_steps.

    Raises:
        InvalidRequest: a timestep outside that range, or an order that does not fall.

    >>> grid_at(Schedule(zero_terminal_snr=True), [999, 656, 342]).steps
    3
    """
    listed = np.asarray(timesteps, np.float64)
    most = schedule.train_steps
    if schedule.is_flow:
        valid, allowed = (listed > 0) & (listed <= most), f"numbers above 0 to {most}"
    else:
        valid, allowed = (listed >= 0) & (listed < most) & (listed == listed.round()), f"whole numbers, 0 to {most - 1}"
    if not valid.all():
        raise InvalidRequest(f"timesteps has {listed[~valid][0]:g}", allowed=allowed)
    if schedule.is_flow:
        return _grid_of(listed, 1 - listed / most, listed / most)
    alphas, sigmas = noise_levels(schedule)
    return _grid_of(listed, alphas[listed.astype(int)], sigmas[listed.astype(int)])


@lru_cache(maxsize=128)
def _grid(
    schedule: Schedule, steps: int, spacing: Spacing, sigmas: SigmaSpacing, steps_offset: int, trimmed: bool
) -> TimestepGrid:
    if schedule.is_flow:
        levels = _flow_sigmas(schedule, steps + trimmed, spacing)[:steps]
        if sigmas != "schedule":
            levels = _ramp(sigmas, _flow_sigmas(schedule, 2, "linspace")[[0, -1]], steps)
        return _grid_of(levels * schedule.train_steps, 1 - levels, levels)
    if sigmas != "schedule":
        return _ramped_grid(schedule, steps, sigmas)
    timesteps = _spaced(schedule.train_steps, steps + trimmed, spacing, steps_offset)
    return grid_from_timesteps(schedule, timesteps[:steps].tolist())


def _spaced(train_steps: int, count: int, spacing: Spacing, steps_offset: int) -> NDArray[np.float64]:
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, count).round()[::-1]
    if spacing == "leading":
        return np.arange(count, dtype=np.float64)[::-1] * (train_steps // count) + steps_offset
    return np.arange(train_steps, 0, -train_steps / count).round() - 1


def _flow_sigmas(schedule: Schedule, steps: int, spacing: Spacing) -> NDArray[np.float64]:
    if spacing == "trailing":
        return shifted(schedule, np.arange(steps, 0, -1) / steps)
    # The shift falls on the lowest level twice: FlowMatchEulerDiscreteScheduler takes its range from shifted levels.
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
    return _grid_of(timesteps, alphas, levels)


def _ramp(sigmas: SigmaSpacing, ends: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    first, last = ends
    if sigmas == "exponential":
        return np.geomspace(first, last, count)
    return np.power(np.linspace(first ** (1 / _RHO), last ** (1 / _RHO), count), _RHO)


def _grid_of(timesteps: NDArray[np.float64], alphas: NDArray[np.float64], sigmas: NDArray[np.float64]) -> TimestepGrid:
    levels = zip(timesteps.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)
    return TimestepGrid((*(NoiseLevel(*level) for level in levels), CLEAN))
