"""Load plan: which client sends which request at which time. Deterministic for a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from stillhouse.check import check_integer, check_number
from stillhouse.serve.engine.arrivals import Arrival, ArrivalClass, add_flood, poisson_arrivals
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier
from stillhouse.serve.loadgen.request_class import Flood, RequestClass
from stillhouse.shapes.caption import random_captions

MAX_REQUESTS = 100_000
"""Largest number of requests of a plan."""
MAX_SECONDS = 86_400.0
"""Longest duration of a plan in seconds."""
_FLOOD = "flood"
_SINGLE_STEP = StepPlan((1,))


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request at a time.

    Args:
        time: seconds from the start of the plan.
        request_class: class of the request.
        client: number of the client, from 0; the flood is sent by the client after the last.
        prompt: prompt.
        report_row: name of the row in the report.
    """

    time: float
    request_class: RequestClass
    client: int
    prompt: str
    report_row: str


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Parameters of the arrival process.

    Args:
        rate: requests per second.
        count: number of requests; None is limited by `seconds` only.
        seconds: time of the last request at the latest; None is limited by `count` only.
        burst: requests per arrival time; the interarrival times grow by the same factor.
        clients: number of clients, all with the same rate.
        seed: seed of the random numbers.

    Raises:
        InvalidRequest: a number is out of range, or neither `count` nor `seconds` is set.
    """

    rate: float
    count: int | None = None
    seconds: float | None = 60.0
    burst: int = 1
    clients: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("the rate", self.rate, 1e-6, 10_000)
        check_integer("burst", self.burst, 1, 10_000)
        check_integer("clients", self.clients, 1, 10_000)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.count is not None:
            check_integer("count", self.count, 1, MAX_REQUESTS)
        if self.seconds is not None or self.count is None:
            check_number("seconds", self.seconds, 1e-3, MAX_SECONDS)
        check_number("the number of requests", self.max_requests, 1, MAX_REQUESTS)

    @property
    def max_requests(self) -> int:
        """Return an upper bound of the number of requests: six standard deviations above the mean."""
        if self.seconds is None:
            assert self.count is not None
            return self.count
        mean = self.rate * self.seconds
        likely = ceil(mean + 6 * sqrt(mean * self.burst)) + 10 * self.burst
        return likely if self.count is None else min(likely, self.count)


def schedule_requests(
    classes: Sequence[RequestClass],
    isolated_seconds: Mapping[str, float],
    load_plan: LoadPlan,
    flood: Flood | None = None,
    prompts: Sequence[str] = (),
) -> list[ScheduledRequest]:
    """Return all requests of a plan in order of time. The load is open-loop: no request waits for a response.

    Args:
        classes: classes of requests; their shares sum to 1.
        isolated_seconds: isolated latency by class name.
        load_plan: arrival process.
        flood: additional requests at one time.
        prompts: prompts, used in turn; empty uses captions of the embedded model's training data.

    Raises:
        InvalidRequest: the shares do not sum to 1.
    """
    by_name = {request_class.name: request_class for request_class in classes}
    arrival_classes = {request_class.name: _arrival_class(request_class) for request_class in classes}
    cost = CostModel(
        {
            arrival_class.batch_key: LatencyCurve({1: isolated_seconds[name]})
            for name, arrival_class in arrival_classes.items()
        }
    )
    load = load_plan.rate * mean_seconds(classes, isolated_seconds)
    arrivals = poisson_arrivals(
        list(arrival_classes.values()),
        load,
        load_plan.max_requests,
        cost,
        seed=load_plan.seed,
        keys=load_plan.clients,
        burst=load_plan.burst,
    )
    arrivals = [arrival for arrival in arrivals if load_plan.seconds is None or arrival.time <= load_plan.seconds]
    if flood:
        arrivals = add_flood(arrivals, arrival_classes[flood.request_class], flood.time, flood.count, _FLOOD)
    texts = prompts or random_captions(min(len(arrivals), 1000), load_plan.seed)
    return [
        _schedule(arrival, by_name, load_plan, texts[number % len(texts)]) for number, arrival in enumerate(arrivals)
    ]


def mean_seconds(classes: Sequence[RequestClass], isolated_seconds: Mapping[str, float]) -> float:
    """Return the mean isolated latency of a request; its reciprocal is the sequential throughput."""
    return sum(request_class.share * isolated_seconds[request_class.name] for request_class in classes)


def _arrival_class(request_class: RequestClass) -> ArrivalClass:
    return ArrivalClass(request_class.share, Tier(request_class.name), BatchKey(request_class.name, 1, 1), _SINGLE_STEP)


def _schedule(
    arrival: Arrival, classes: Mapping[str, RequestClass], load_plan: LoadPlan, prompt: str
) -> ScheduledRequest:
    request_class = classes[arrival.tier.name]
    if arrival.key == _FLOOD:
        return ScheduledRequest(
            arrival.time, request_class, load_plan.clients, prompt, f"{request_class.name}, {_FLOOD}"
        )
    return ScheduledRequest(arrival.time, request_class, int(arrival.key.split()[-1]), prompt, request_class.name)
