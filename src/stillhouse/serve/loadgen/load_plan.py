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
"""Largest number of requests of a load plan."""
MAX_SECONDS = 86_400.0
"""Longest duration of a load plan in seconds."""
_FLOOD = "flood"
_SINGLE_STEP = StepPlan((1,))


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request and the time at which it is to be sent.

    Args:
        time: time of sending in seconds from the start of the load test.
        request_class: class of the request, which sets all fields except the prompt.
        client: number of the simulated client, from 0. A flood (additional requests at one time) has the number after
            that of the last simulated client.
        prompt: prompt of the request.
        report_row: name of the row of the report in which the request is counted.
    """

    time: float
    request_class: RequestClass
    client: int
    prompt: str
    report_row: str


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Parameters of the random process by which requests arrive.

    Args:
        rate: requests per second.
        count: largest number of requests; with None, only `seconds` limits the plan.
        seconds: time in seconds after which no request is sent; with None, only `count` limits the plan.
        burst: number of requests that arrive at one time. The times between arrivals grow by the same factor.
        clients: number of simulated clients, which send the same number of requests on average.
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
        """Return an upper bound of the number of requests in the plan.

        The bound is `count` or, if smaller, more than six standard deviations above the mean number of requests that
        arrive in `seconds`.
        """
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
        isolated_seconds: isolated latency (latency without other requests) in seconds, by class name.
        load_plan: parameters of the random arrivals.
        flood: additional requests that are all sent at one time; None sends none.
        prompts: prompts, used in turn; empty: captions like those that the package's own model was trained on.

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
    """Return the mean isolated latency of all requests in seconds. Classes are weighted by their shares.

    The reciprocal is the throughput of requests that are sent one after another.

    Args:
        classes: classes of requests.
        isolated_seconds: isolated latency (latency without other requests) in seconds, by class name.
    """
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
