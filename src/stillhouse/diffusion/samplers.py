"""Samplers: the step between two noise levels, and the estimate of the clean picture that each sampler steps with.

Between two levels the probability-flow ODE, written for the clean picture x0 and lambda = log(alpha / sigma), is

    z' = (sigma' / sigma) z + sigma' * integral of e^lambda x0(lambda) d lambda     (DPM-Solver++, proposition 4.1)

so a sampler with a constant x0 over the interval steps by

    z' = z_weight * z + x0_weight * x0 + noise_weight * noise                       (`ddim_coefficients`)

DDIM, Euler and flow Euler are this step without noise, and equal to each other. DDPM and Euler ancestral are this step
with the noise of eta = 1, and equal to each other. Each keeps its name, because people and model files use it.
DPM-Solver++, UniPC and Heun take the same step with a better estimate of x0. LCM adds fresh noise to its estimate of
x0. Noise levels are Python floats. No sampler depends on the kind of the network's prediction. Every sampler can start
at pure noise (alpha = 0).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, Protocol, TypeAlias

from stillhouse.check import check_choice
from stillhouse.diffusion.step import combine
from stillhouse.diffusion.tensor import Tensor
from stillhouse.diffusion.timestep_grid import NoiseLevel, TimestepGrid

_NEARLY_PURE = 1000.0
"""Where sigma / alpha exceeds this value, `heun` integrates over alpha / sigma instead of sigma / alpha.

DDPM's linear schedule reaches a ratio of 157, so it never exceeds the value; squaredcos_cap_v2 exceeds it.
"""


class StepCoefficients(NamedTuple):
    """Weights in a sampler's step: of the latents z, of the estimate of the clean picture x0, and of fresh noise."""

    z: float
    x0: float
    noise: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of the network, and the step after it.

    Args:
        level: noise level at which the network is evaluated: `start`, or `end` for Heun's second evaluation.
        start, end: noise levels before and after the step.
        progress: share of the whole trajectory that is done at `start`, 0 to 1.
        coefficients: weights of the step.
        extrapolation: half of the step's length, divided by the length of the step before, both in
            lambda = log(alpha / sigma). DPM-Solver++ and UniPC extrapolate x0 by this share, to the middle of the step.
            0 for the first and the last step.
    """

    level: NoiseLevel
    start: NoiseLevel
    end: NoiseLevel
    progress: float
    coefficients: StepCoefficients
    extrapolation: float


@dataclass(frozen=True, slots=True)
class SamplerState(Generic[Tensor]):
    """What a multistep sampler keeps of the previous evaluation.

    Args:
        level: noise level of the previous evaluation.
        z: latents at that level.
        denoised: denoised picture of the previous evaluation.
        previous: state of the evaluation before the previous one, for samplers that need two evaluations.
    """

    level: NoiseLevel
    z: Tensor
    denoised: Tensor
    previous: "SamplerState[Tensor] | None" = None


Order: TypeAlias = Literal["first", "second", "custom"]
"""How a sampler estimates the clean picture x0.

first: as the denoised picture. second: extrapolated from the last two denoised pictures. custom: by another formula.
"""
Estimated: TypeAlias = tuple[Tensor, Tensor, SamplerState[Tensor] | None]
"""Result of an `X0Estimate`: latents to step from, estimate of x0, and state for the next evaluation or None."""


class X0Estimate(Protocol):
    """A function that estimates the clean picture x0 for a sampler's step.

    The arguments are the latents z, the denoised picture, the evaluation, and the state that the previous call returned
    (None at the first evaluation). The result is the latents to step from, the estimate of x0, and the state for the
    next call.
    """

    def __call__(  # noqa: D102
        self, z: Tensor, denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None, /
    ) -> Estimated[Tensor]: ...


def ddim_coefficients(start: NoiseLevel, end: NoiseLevel, eta: float = 0.0) -> StepCoefficients:
    """Return the weights of a step from `start` to `end` with a constant x0 (DDIM, arXiv 2010.02502, eq. 12 and 16).

    The levels may be of any schedule. eta = 0 is the first-order ODE step. eta = 1 is the ancestral step: DDPM's
    posterior (arXiv 2006.11239, equation 7), Euler ancestral, and the first-order SDE-DPM-Solver++ (arXiv 2211.01095).
    """
    decay = start.alpha * end.sigma / (end.alpha * start.sigma)
    noise = eta * end.sigma * math.sqrt(1 - decay * decay)
    z = math.sqrt(end.sigma**2 - noise**2) / start.sigma
    return StepCoefficients(z, end.alpha - start.alpha * z, noise)


def consistency_coefficients(start: NoiseLevel, end: NoiseLevel, eta: float = 1.0) -> StepCoefficients:
    """Return the weights of a consistency model's step: x0 plus fresh noise at level `end`; z has weight 0.

    `start` and `eta` are ignored; `ddim_coefficients` has the same signature.
    """
    return StepCoefficients(0.0, end.alpha, end.sigma)


def first_order(
    z: Tensor, denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None
) -> Estimated[Tensor]:
    """Estimate x0 as the denoised picture. The step starts from z, and no state is kept.

    See `X0Estimate` for arguments and result.
    """
    return z, denoised, None


def heun(z: Tensor, denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None) -> Estimated[Tensor]:
    """Estimate x0 by the trapezoid rule of EDM (arXiv 2206.00364, algorithm 1, without churn).

    The rule integrates over sigma / alpha, where the derivative is the noise. At pure noise sigma / alpha is infinite,
    and near pure noise one step is so long that the rule's error exceeds the picture. Such steps integrate over alpha /
    sigma instead, where the derivative is x0. See `X0Estimate` for arguments and result.
    """
    start, end = evaluation.start, evaluation.end
    if state is None:
        return z, denoised, SamplerState(start, z, denoised) if end.sigma > 0 else None
    if start.sigma > _NEARLY_PURE * start.alpha:
        return state.z, 0.5 * (state.denoised + denoised), None
    first = (state.z - start.alpha * state.denoised) / start.sigma
    second = (z - end.alpha * denoised) / end.sigma
    return state.z, (state.z - 0.5 * start.sigma * (first + second)) / start.alpha, None


def dpmpp_2m(
    z: Tensor, denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None
) -> Estimated[Tensor]:
    """Estimate x0 by DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2).

    The last two denoised pictures are extrapolated to the middle of the step in lambda = log(alpha / sigma). See
    `X0Estimate` for arguments and result.
    """
    return z, _extrapolate(denoised, evaluation, state), SamplerState(evaluation.level, z, denoised)


def unipc(z: Tensor, denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None) -> Estimated[Tensor]:
    """Correct the previous step, then estimate x0: UniPC-2 with B2(h) = e^h - 1 (arXiv 2302.04867).

    The predictor is DPM-Solver++ 2M. The corrector repeats the previous step with the x0 that was found at the end of
    that step. See `X0Estimate` for arguments and result.
    """
    earlier = None
    if state is not None:
        step = ddim_coefficients(state.level, evaluation.level)
        z = combine(state.z, _corrected(denoised, evaluation.level, state), step.z, step.x0)
        earlier = replace(state, previous=None)
    return z, _extrapolate(denoised, evaluation, state), SamplerState(evaluation.level, z, denoised, earlier)


def lcm(z: Tensor, denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None) -> Estimated[Tensor]:
    """Estimate x0 by the consistency function c_skip * z + c_out * x0 (arXiv 2303.01469, equation 5).

    The constants are as in latent consistency models. At timestep 0 the function returns z itself, with its noise.
    Grids therefore need trailing spacing, whose last timestep is well above 0. See `X0Estimate` for arguments and
    result.
    """
    data, time = 0.5, 10 * evaluation.level.timestep
    skip = data**2 / (time**2 + data**2)
    return z, skip * z + time / math.hypot(time, data) * denoised, None


def _extrapolate(denoised: Tensor, evaluation: Evaluation, state: SamplerState[Tensor] | None) -> Tensor:
    """Return x0 in the middle of the step, on the line through the last two denoised pictures.

    Where there is no previous evaluation, the denoised picture is returned.

    Args:
        denoised: the last denoised picture.
        evaluation: evaluation before the step.
        state: state of the previous evaluation, with the denoised picture before the last; None: there was none.
    """
    if state is None or evaluation.extrapolation == 0:
        return denoised
    return denoised + evaluation.extrapolation * (denoised - state.denoised)


def _corrected(denoised: Tensor, level: NoiseLevel, state: SamplerState[Tensor]) -> Tensor:
    """Return the x0 with which UniPC's corrector repeats the step from the state's level to `level`.

    The corrector is UniC-2, or UniC-1 for the first step.

    Args:
        denoised: the denoised picture at `level`.
        level: noise level at the end of the step.
        state: state of the evaluation at the start of the step.
    """
    if state.previous is None:
        return 0.5 * (state.denoised + denoised)
    h = level.half_log_snr - state.level.half_log_snr
    ratio = (state.previous.level.half_log_snr - state.level.half_log_snr) / h
    scale = math.expm1(-h)
    phi = -scale / h - 1
    first, second = phi / scale, 2 * (-phi / h - 0.5) / scale
    before = (first - second) / (1 - ratio)
    backward = (before / ratio) * (state.previous.denoised - state.denoised)
    return state.denoised + backward + (first - before) * (denoised - state.denoised)


def _extrapolation(before: NoiseLevel, start: NoiseLevel, end: NoiseLevel) -> float:
    """Return half of the length of the step from `start` to `end`, divided by the length of the step before.

    Lengths are measured in lambda = log(alpha / sigma). The result is 0 for the first step, and for the last step,
    which is infinitely long.
    """
    if before == start or end.sigma == 0:
        return 0.0
    center = start.half_log_snr
    return 0.5 * (end.half_log_snr - center) / (center - before.half_log_snr)


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler: how it steps over a grid of noise levels.

    Args:
        summary: one line that helps people choose a sampler.
        estimate: estimates x0 for each step.
        eta: share of fresh noise in each step, 0 to 1; None: the request's eta.
        coefficients: returns the weights of the step between two levels, which do not depend on the picture.
        evaluates_twice: whether the network is evaluated at both ends of each step, except the last step.
        drops_last_level: whether the grid of noise levels is made with one more level, and its last noisy level is left
            out, as in diffusers; see `timestep_grid.make_grid`.
        order: how the sampler estimates x0. Unless it is "custom", `step.step_batch` steps the whole batch at once.
    """

    summary: str
    estimate: X0Estimate = first_order
    eta: float | None = 0.0
    coefficients: Callable[[NoiseLevel, NoiseLevel, float], StepCoefficients] = ddim_coefficients
    evaluates_twice: bool = False
    drops_last_level: bool = False
    order: Order = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", _ORDERS.get(self.estimate, "custom"))

    def evaluation_count(self, steps: int) -> int:
        """Return the number of network evaluations of a trajectory of `steps` steps.

        >>> SAMPLERS["heun"].evaluation_count(10), SAMPLERS["ddim"].evaluation_count(10)
        (19, 10)
        """
        return 2 * steps - 1 if self.evaluates_twice else steps

    def plan(self, grid: TimestepGrid, eta: float = 0.0) -> tuple[Evaluation, ...]:
        """Return every network evaluation of a trajectory over the grid, in order.

        `eta` is the share of fresh noise in each step, 0 to 1; it is ignored where the sampler has an eta of its own.
        """
        eta = eta if self.eta is None else self.eta
        plan: list[Evaluation] = []
        before = grid.levels[0]
        for step, (start, end) in enumerate(pairwise(grid.levels), grid.skipped_steps):
            progress = step / (grid.skipped_steps + grid.steps)
            coefficients, extrapolation = self.coefficients(start, end, eta), _extrapolation(before, start, end)
            plan.append(Evaluation(start, start, end, progress, coefficients, extrapolation))
            if self.evaluates_twice and end.sigma > 0:
                plan.append(Evaluation(end, start, end, progress, coefficients, extrapolation))
            before = start
        return tuple(plan)


_ORDERS: Mapping[X0Estimate, Order] = {first_order: "first", dpmpp_2m: "second"}
SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "ddim": Sampler("DDIM: first order, the same picture every time at eta 0", eta=None),
        "ddpm": Sampler("DDPM: ancestral, fresh noise in every step, for many steps", eta=1.0),
        "euler": Sampler("Euler: first order, the same as ddim at eta 0"),
        "euler_ancestral": Sampler("Euler ancestral: the same as ddpm", eta=1.0),
        "heun": Sampler("Heun: second order, two evaluations a step", heun, evaluates_twice=True),
        "dpmpp_2m": Sampler("DPM-Solver++ 2M: second order, one evaluation a step", dpmpp_2m, drops_last_level=True),
        "dpmpp_2m_sde": Sampler(
            "DPM-Solver++ 2M SDE: as dpmpp_2m with fresh noise", dpmpp_2m, 1.0, drops_last_level=True
        ),
        "unipc": Sampler(
            "UniPC: second order, corrects each step, one evaluation a step; for few steps",
            unipc,
            drops_last_level=True,
        ),
        "lcm": Sampler(
            "LCM: for networks distilled to a few steps, fresh noise between them", lcm, 1.0, consistency_coefficients
        ),
        "flow_euler": Sampler("flow Euler: first order for flow networks, the same as euler"),
    }
)
"""Every sampler by name."""


def find_sampler(name: str) -> Sampler:
    """Return the sampler with this name.

    Raises:
        InvalidRequest: no sampler has this name; the message lists all names and the nearest one.
    """
    check_choice("sampler", name, SAMPLERS)
    return SAMPLERS[name]
