"""Noise schedules: alpha and sigma of every timestep that a network was trained at.

In this package a noisy picture is z = alpha * x0 + sigma * noise. Variance-preserving schedules have
alpha^2 + sigma^2 = 1; flow matching has alpha = 1 - t and sigma = t.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.errors import InvalidRequest

ScheduleKind = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "flow"]

_LARGEST_BETA = 0.999


@dataclass(frozen=True, slots=True)
class Schedule:
    """The noise schedule that a network was trained with; names and defaults are diffusers' and Stable Diffusion's.

    Args:
        kind: linear (DDPM, arXiv 2006.11239), scaled_linear (latent diffusion: linear in the root of beta),
            squaredcos_cap_v2 (arXiv 2102.09672, equation 17) or flow (straight paths, arXiv 2210.02747).
        beta_start, beta_end: first and last beta of the two linear kinds.
        train_steps: number of training timesteps, 1 to 1,000,000.
        zero_terminal_snr: rescale the betas so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1).
        shift: for the flow kind only: t becomes shift * t / (1 + (shift - 1) * t) (arXiv 2403.03206, equation 23).

    Raises:
        InvalidRequest: the kind does not exist, or a number is outside its range.

    >>> Schedule("scaled_linear", zero_terminal_snr=True).train_steps
    1000
    """

    kind: ScheduleKind = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    zero_terminal_snr: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_choice("schedule", self.kind, get_args(ScheduleKind))
        check_integer("train_steps", self.train_steps, 1, 1_000_000)
        check_number("beta_end", self.beta_end, 1e-9, _LARGEST_BETA)
        check_number("beta_start", self.beta_start, 1e-9, self.beta_end)
        check_number("shift", self.shift, 1e-3, 1e3)
        if self.zero_terminal_snr and self.is_flow:
            raise InvalidRequest(
                "zero_terminal_snr is set for a flow schedule",
                allowed="zero_terminal_snr for a linear, scaled_linear or squaredcos_cap_v2 schedule",
                fix="leave zero_terminal_snr out: a flow schedule starts at pure noise",
            )

    @property
    def is_flow(self) -> bool:
        """Whether the schedule is of flow matching (alpha + sigma = 1); otherwise it is variance-preserving."""
        return self.kind == "flow"


def noise_levels(schedule: Schedule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return alpha and sigma of every training timestep, cleanest first: two read-only arrays, float64 [train_steps].

    >>> alphas, sigmas = noise_levels(Schedule(zero_terminal_snr=True))
    >>> float(alphas[-1]), float(sigmas[-1])
    (0.0, 1.0)
    """
    return _noise_levels(schedule)


def shifted(schedule: Schedule, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sigma of a flow schedule, with its shift, at times t, 0 to 1 (arXiv 2403.03206, equation 23)."""
    return schedule.shift * t / (1 + (schedule.shift - 1) * t)


@cache
def _noise_levels(schedule: Schedule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if schedule.is_flow:
        sigmas = shifted(schedule, np.arange(1, schedule.train_steps + 1) / schedule.train_steps)
        alphas = 1 - sigmas
    else:
        alphas = np.sqrt(np.cumprod(1 - _betas(schedule)))
        if schedule.zero_terminal_snr:
            alphas = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
        sigmas = np.sqrt(1 - alphas**2)
    alphas.flags.writeable = sigmas.flags.writeable = False
    return alphas, sigmas


def _betas(schedule: Schedule) -> NDArray[np.float64]:
    if schedule.kind == "linear":
        return np.linspace(schedule.beta_start, schedule.beta_end, schedule.train_steps)
    if schedule.kind == "scaled_linear":
        return np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.train_steps) ** 2
    edges = np.arange(schedule.train_steps + 1) / schedule.train_steps
    signal: NDArray[np.float64] = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1 - signal[1:] / signal[:-1], 0, _LARGEST_BETA)
