"""Samplers: one move, and ten ideas of where to aim it.

Between two levels the probability-flow ODE, written for the clean picture x0 and lambda = log(alpha / sigma), is

    z' = (sigma' / sigma) z + sigma' * integral of e^lambda x0(lambda) d lambda     (DPM-Solver++, proposition 4.1)

so a sampler that holds x0 still over the interval moves by

    z' = kept * z + gained * x0 + fresh * noise                                                        (`interval`)

DDIM, Euler and flow Euler are this move without fresh noise, one and the same; DDPM and Euler ancestral are it with
all the noise that DDIM's eta allows, also one and the same. Their names stay because people and model files ask for
them. DPM-Solver++, UniPC and Heun aim the same move at a better point than the latest x0, and LCM begins anew from
its x0. Everything here is arithmetic on pictures and Python floats on levels; no sampler knows what its network
predicts, and each begins at pure noise (alpha = 0) as at any other level.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, Protocol, TypeAlias

from stillhouse.check import check_choice
from stillhouse.diffusion.tensor import Coefficient, Tensor
from stillhouse.diffusion.timestep_grid import NoiseLevel, TimestepGrid
from stillhouse.errors import InvalidRequest

_NEARLY_PURE = 1000.0
"""sigma / alpha above which `heun` changes its variable: above the 157 of DDPM's linear schedule, below squaredcos."""


class StepCoefficients(NamedTuple):
    """Weights of where a picture is, of where it aims, and of fresh noise."""

    z: float
    x0: float
    noise: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of the network and the move after it.

    `at` is the level at which the network is asked, `start` to `end` the interval that the move crosses: `at` is its
    start, or its end where Heun looks a second time. `share` of the full walk was done when the interval began.
    `reach` is half the interval over the one before it, in lambda: how far beyond the latest x0 its middle lies.
    """

    level: NoiseLevel
    start: NoiseLevel
    end: NoiseLevel
    progress: float
    coefficients: StepCoefficients
    extrapolation: float


@dataclass(frozen=True, slots=True)
class SamplerState(Generic[Tensor]):
    """What a sampler remembers of an earlier evaluation: its level, the picture there, and its clean picture."""

    level: NoiseLevel
    z: Tensor
    denoised: Tensor
    previous: "SamplerState[Tensor] | None" = None


Order: TypeAlias = Literal["first", "second", "custom"]
"""Where a move aims: at the clean picture, beyond it on the line through the last one, or in the sampler's own way."""
Estimated: TypeAlias = tuple[Tensor, Tensor, SamplerState[Tensor] | None]
"""The picture to move from, the picture to aim at, and the past for the next step."""


class X0Estimate(Protocol):
    """What makes a sampler: given z, x0, the evaluation and the past, where to move from and where to aim."""

    def __call__(  # noqa: D102
        self, z: Tensor, denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None, /
    ) -> Estimated[Tensor]: ...


def ddim_coefficients(start: NoiseLevel, end: NoiseLevel, eta: float = 0.0) -> StepCoefficients:
    """The move that holds x0 still (DDIM, arXiv 2010.02502, equations 12 and 16; any alpha and sigma).

    eta = 0 is the first-order ODE step, eta = 1 the ancestral one: DDPM's posterior (arXiv 2006.11239, equation 7),
    Euler ancestral, and the first-order SDE-DPM-Solver++ (arXiv 2211.01095).
    """
    decay = start.alpha * end.sigma / (end.alpha * start.sigma)
    fresh = eta * end.sigma * math.sqrt(1 - decay * decay)
    kept = math.sqrt(end.sigma**2 - fresh**2) / start.sigma
    return StepCoefficients(kept, end.alpha - start.alpha * kept, fresh)


def consistency_coefficients(start: NoiseLevel, end: NoiseLevel, eta: float = 1.0) -> StepCoefficients:
    """The move that forgets where it was: the aim, noised afresh to the next level (consistency models)."""
    return StepCoefficients(0.0, end.alpha, end.sigma)


def combine(origin: Tensor, aim: Tensor, kept: Coefficient, gained: Coefficient) -> Tensor:
    """A move without its noise; the weights are floats, or arrays with one weight per picture."""
    return origin * kept + aim * gained


def first_order(
    z: Tensor, denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None
) -> Estimated[Tensor]:
    """From z, at x0."""
    return z, denoised, None


def heun(z: Tensor, denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None) -> Estimated[Tensor]:
    """The trapezoid of EDM (arXiv 2206.00364, algorithm 1, without churn) in sigma / alpha, whose slope is the noise.

    From pure noise sigma / alpha is infinite, and from nearly pure noise one step crosses so much of it that the
    rule's error outgrows the picture. There the same rule runs in alpha / sigma, whose slope is x0.
    """
    start, end = evaluation.start, evaluation.end
    if past is None:
        return z, denoised, SamplerState(start, z, denoised) if end.sigma > 0 else None
    if start.sigma > _NEARLY_PURE * start.alpha:
        return past.z, 0.5 * (past.denoised + denoised), None
    first = (past.z - start.alpha * past.denoised) / start.sigma
    second = (z - end.alpha * denoised) / end.sigma
    return past.z, (past.z - 0.5 * start.sigma * (first + second)) / start.alpha, None


def dpmpp_2m(
    z: Tensor, denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None
) -> Estimated[Tensor]:
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2): x0 extrapolated half an interval along lambda."""
    return z, _extrapolated(denoised, evaluation, past), SamplerState(evaluation.level, z, denoised)


def unipc(z: Tensor, denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None) -> Estimated[Tensor]:
    """UniPC-2 for x0 with B2(h) = e^h - 1 (arXiv 2302.04867): correct the last move, then predict.

    Its predictor is DPM-Solver++ 2M; its corrector takes the last interval again, with the x0 found at its end.
    """
    earlier = None
    if past is not None:
        move = ddim_coefficients(past.level, evaluation.level)
        z = combine(past.z, _corrected(denoised, evaluation.level, past), move.z, move.x0)
        earlier = replace(past, previous=None)
    return z, _extrapolated(denoised, evaluation, past), SamplerState(evaluation.level, z, denoised, earlier)


def lcm(z: Tensor, denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None) -> Estimated[Tensor]:
    """The consistency function c_skip * z + c_out * x0 (arXiv 2303.01469, equation 5) as latent models set it.

    At timestep 0 it is z itself, noise included: walk trailing grids, which end well above.
    """
    data, time = 0.5, 10 * evaluation.level.timestep
    skip = data**2 / (time**2 + data**2)
    return z, skip * z + time / math.hypot(time, data) * denoised, None


def _extrapolated(denoised: Tensor, evaluation: Evaluation, past: SamplerState[Tensor] | None) -> Tensor:
    """x0 in the middle of the interval, on the line through the latest two."""
    if past is None or evaluation.extrapolation == 0:
        return denoised
    return denoised + evaluation.extrapolation * (denoised - past.denoised)


def _corrected(denoised: Tensor, here: NoiseLevel, past: SamplerState[Tensor]) -> Tensor:
    """UniC-2's aim for the interval from `past` to here; the first interval has no earlier x0 and takes UniC-1's."""
    if past.previous is None:
        return 0.5 * (past.denoised + denoised)
    h = here.half_log_snr - past.level.half_log_snr
    ratio = (past.previous.level.half_log_snr - past.level.half_log_snr) / h
    scale = math.expm1(-h)
    phi = -scale / h - 1
    first, second = phi / scale, 2 * (-phi / h - 0.5) / scale
    before = (first - second) / (1 - ratio)
    backward = (before / ratio) * (past.previous.denoised - past.denoised)
    return past.denoised + backward + (first - before) * (denoised - past.denoised)


def _extrapolation(before: NoiseLevel, start: NoiseLevel, end: NoiseLevel) -> float:
    """`Evaluation.reach`; 0 where nothing is before it, and into the clean picture, whose interval has no middle."""
    if before == start or end.sigma == 0:
        return 0.0
    here = start.half_log_snr
    return 0.5 * (end.half_log_snr - here) / (here - before.half_log_snr)


@dataclass(frozen=True, slots=True)
class Sampler:
    """A way to walk a grid.

    Args:
        summary: one line for people who choose.
        aim: where each move aims.
        eta: share of fresh noise in each move, 0 to 1; None lets the picture say.
        moves: the move across an interval, before anything is known about the picture.
        looks_twice: asks the network at both ends of each interval but the last.
        trimmed: diffusers lays this sampler's grid out with one point more and leaves the last out (see `grid`).
    """

    summary: str
    estimate: X0Estimate = first_order
    eta: float | None = 0.0
    coefficients: Callable[[NoiseLevel, NoiseLevel, float], StepCoefficients] = ddim_coefficients
    evaluates_twice: bool = False
    drops_last_level: bool = False

    @property
    def order(self) -> Order:
        """Where a move aims; `step.step` moves a whole batch at once where that is not elsewhere."""
        return _ORDERS.get(self.estimate, "custom")

    def evaluation_count(self, steps: int) -> int:
        """How often a walk of so many steps asks the network.

        >>> SAMPLERS["heun"].evaluations(10), SAMPLERS["ddim"].evaluations(10)
        (19, 10)
        """
        return 2 * steps - 1 if self.evaluates_twice else steps

    def plan(self, grid: TimestepGrid, eta: float = 0.0) -> tuple[Evaluation, ...]:
        """Every evaluation of a walk over the grid, in order; `eta` counts where the sampler lets the picture say."""
        eta = eta if self.eta is None else self.eta
        plan: list[Evaluation] = []
        before = grid.levels[0]
        for step, (start, end) in enumerate(pairwise(grid.levels), grid.skipped_steps):
            share = step / (grid.skipped_steps + grid.steps)
            move, reach = self.coefficients(start, end, eta), _extrapolation(before, start, end)
            plan.append(Evaluation(start, start, end, share, move, reach))
            if self.evaluates_twice and end.sigma > 0:
                plan.append(Evaluation(end, start, end, share, move, reach))
            before = start
        return tuple(plan)

    def step(
        self,
        z: Tensor,
        denoised: Tensor,
        evaluation: Evaluation,
        past: SamplerState[Tensor] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, SamplerState[Tensor] | None]:
        """Move one picture after one evaluation; a pure function.

        Args:
            z: the picture at `evaluation.at`, any array or tensor.
            denoised: the clean picture that the network sees in z (see `prediction.denoised`).
            evaluation: the plan's entry.
            past: what the last step returned; None at the start.
            noise: standard normal, shaped as z; needed where `evaluation.move.fresh` is above 0.

        Returns:
            The picture at `evaluation.end`, and the past for the next step.

        Raises:
            InvalidRequest: noise is needed and there is none.
        """
        origin, aim, past = self.estimate(z, denoised, evaluation, past)
        kept, gained, fresh = evaluation.coefficients
        moved = combine(origin, aim, kept, gained)
        if fresh == 0:
            return moved, past
        if noise is None:
            raise InvalidRequest("a stochastic step without noise", allowed="standard normal noise, shaped as z")
        return moved + fresh * noise, past


_ORDERS: Mapping[X0Estimate, Order] = {first_order: "first", dpmpp_2m: "second"}
SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "ddim": Sampler("DDIM: first order, the same picture every time at eta 0", eta=None),
        "ddpm": Sampler("DDPM: ancestral, fresh noise in every step, for many steps", eta=1.0),
        "euler": Sampler("Euler: first order, the same walk as ddim at eta 0"),
        "euler_ancestral": Sampler("Euler ancestral: the same walk as ddpm", eta=1.0),
        "heun": Sampler("Heun: second order, asks the network twice a step", heun, evaluates_twice=True),
        "dpmpp_2m": Sampler("DPM-Solver++ 2M: second order for the price of one", dpmpp_2m, drops_last_level=True),
        "dpmpp_2m_sde": Sampler(
            "DPM-Solver++ 2M SDE: as dpmpp_2m with fresh noise", dpmpp_2m, 1.0, drops_last_level=True
        ),
        "unipc": Sampler(
            "UniPC: second order, corrects each step at no cost; for few steps", unipc, drops_last_level=True
        ),
        "lcm": Sampler(
            "LCM: for networks distilled to a few steps, fresh noise between them", lcm, 1.0, consistency_coefficients
        ),
        "flow_euler": Sampler("flow Euler: first order for flow networks, the same walk as euler"),
    }
)
"""Every sampler by name."""


def find_sampler(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        InvalidRequest: there is none; the message lists all and offers the nearest.
    """
    check_choice("sampler", name, SAMPLERS)
    return SAMPLERS[name]
