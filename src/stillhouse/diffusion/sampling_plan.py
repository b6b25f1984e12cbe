"""The sampling plan of one picture: noise levels, sampler, guidance and seed, checked before the first evaluation."""

from dataclasses import dataclass, field, replace
from typing import get_args

from stillhouse.check import check_choice, check_integer, check_number
from stillhouse.diffusion.guidance import Guidance
from stillhouse.diffusion.noise import MAX_SEED
from stillhouse.diffusion.prediction import Prediction
from stillhouse.diffusion.samplers import Evaluation, find_sampler
from stillhouse.diffusion.timestep_grid import TimestepGrid
from stillhouse.errors import InvalidRequest

MAX_CACHE_INTERVAL = 1000


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How one picture is generated: noise levels, sampler, guidance and seed. A plan never changes.

    Args:
        grid: the noise levels to visit.
        sampler: name of the sampler, a key of SAMPLERS.
        prediction: what the network's output means.
        guidance: which branches are evaluated at each step, and their weights.
        eta: share of fresh noise in each step of ddim, 0 to 1.
        seed: 0 to 2**63 - 1; seed and number of the step determine all fresh noise.
        cache_interval: the network's deep features are computed at every `cache_interval`-th evaluation and estimated
            in between, 1 (always computed) to 1000; see `effects.FeatureCache`.
        evaluations: every evaluation of the network, in order; empty: computed from the grid. Only a plan that is
            decoded from a message is given its evaluations.

    Raises:
        InvalidRequest: a name does not exist, a number is outside its range, or two values do not go together.
    """

    grid: TimestepGrid
    sampler: str = "ddim"
    prediction: Prediction = "epsilon"
    guidance: Guidance = field(default_factory=Guidance)
    eta: float = 0.0
    seed: int = 0
    cache_interval: int = 1
    evaluations: tuple[Evaluation, ...] = ()

    def __post_init__(self) -> None:
        sampler = find_sampler(self.sampler)
        check_choice("prediction", self.prediction, get_args(Prediction))
        check_number("eta", self.eta, 0, 1)
        check_integer("seed", self.seed, 0, MAX_SEED)
        check_cache_interval(self.cache_interval)
        if self.eta and sampler.eta is not None:
            raise InvalidRequest(f"eta is {self.eta} with sampler {self.sampler}", allowed="eta 0, or sampler ddim")
        if self.prediction == "epsilon" and self.grid.levels[0].alpha == 0:
            raise InvalidRequest(
                "the first step evaluates an epsilon network at pure noise, where the predicted noise says nothing "
                "about the picture",
                allowed="sample, v_prediction and flow networks at zero terminal SNR",
                fix="use a schedule without zero_terminal_snr, or leading spacing",
            )
        if not self.evaluations:
            object.__setattr__(self, "evaluations", sampler.plan(self.grid, self.eta))

    @property
    def rows(self) -> tuple[int, ...]:
        """Number of batch rows that each evaluation takes, in order: one row for each guidance branch."""
        return tuple(len(self.guidance.active_branches(evaluation.progress)) for evaluation in self.evaluations)

    def with_grid(self, grid: TimestepGrid, guidance: Guidance | None = None) -> "SamplingPlan":
        """Return a copy of the plan for another grid of noise levels, without feature caching.

        `guidance` replaces the plan's guidance; None: the plan's guidance is kept.
        """
        return replace(self, grid=grid, guidance=guidance or self.guidance, cache_interval=1, evaluations=())


def check_cache_interval(cache_interval: int) -> None:
    """Raise InvalidRequest unless `cache_interval` is a whole number from 1 to 1000."""
    check_integer("cache_interval", cache_interval, 1, MAX_CACHE_INTERVAL)
