"""The plan of one picture's walk, checked before it begins."""

from dataclasses import dataclass

from stillhouse.check import check_number, check_whole
from stillhouse.diffusion.guidance import is_guided
from stillhouse.diffusion.noise import check_seed
from stillhouse.diffusion.prediction import Prediction, check_prediction
from stillhouse.diffusion.samplers import Evaluation, find_sampler
from stillhouse.diffusion.timestep_grid import TimestepGrid
from stillhouse.errors import InvalidRequest

MAX_CACHE_INTERVAL = 1000


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The immutable plan of one picture.

    Args:
        grid: the levels to visit.
        sampler: a name out of SAMPLERS.
        prediction: what the network's output means.
        guidance: scale as in diffusers; up to 1 means none, and one row instead of two.
        guidance_rescale: 0 to 1, see `guidance.rescale`.
        guidance_interval: shares of the walk between which guidance acts, see `guidance.is_guided`.
        eta: share of fresh noise in each step of ddim, 0 to 1.
        seed: 0 to 2**63 - 1; with the step's number it decides all fresh noise.
        cache_interval: evaluations between two computations of the network's deep features, 1 (always computed) to
            1000; see `step_cache`.

    Raises:
        InvalidRequest: a name that does not exist, a number outside its range, or a combination without meaning.
    """

    grid: TimestepGrid
    sampler: str = "ddim"
    prediction: Prediction = "epsilon"
    guidance: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    eta: float = 0.0
    seed: int = 0
    cache_interval: int = 1

    def __post_init__(self) -> None:
        sampler = find_sampler(self.sampler)
        check_prediction(self.prediction)
        check_number("guidance", self.guidance, 0, 1000)
        check_number("guidance_rescale", self.guidance_rescale, 0, 1)
        check_guidance_interval(self.guidance_interval)
        check_number("eta", self.eta, 0, 1)
        check_seed(self.seed)
        check_cache_interval(self.cache_interval)
        if self.eta and sampler.eta is not None:
            raise InvalidRequest(f"eta is {self.eta} with sampler {self.sampler}", allowed="eta with sampler ddim")
        if self.prediction == "epsilon" and self.grid.levels[0].alpha == 0:
            raise InvalidRequest(
                "an epsilon network at pure noise, where the noise tells nothing about the picture",
                allowed="sample, v_prediction and flow networks at zero terminal SNR",
                fix="use a schedule without zero_terminal_snr, or leading spacing",
            )

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Every evaluation of the walk, in order."""
        return find_sampler(self.sampler).plan(self.grid, self.eta)

    def is_guided(self, evaluation: Evaluation) -> bool:
        """Whether guidance acts in this evaluation of the plan."""
        return is_guided(self.guidance, self.guidance_interval, evaluation.progress)


def check_guidance_interval(interval: tuple[float, float]) -> None:
    """Refuse a guidance interval that is not two shares of the walk, the earlier one first."""
    if len(interval) != 2:
        raise InvalidRequest(f"guidance_interval is {interval}", allowed="two numbers from 0 to 1")
    begin, end = interval
    check_number("the end of guidance_interval", end, 0, 1)
    check_number("the beginning of guidance_interval", begin, 0, end)


def check_cache_interval(cache_interval: int) -> None:
    """Refuse a number of evaluations that deep features cannot be kept for."""
    check_whole("cache_interval", cache_interval, 1, MAX_CACHE_INTERVAL)
