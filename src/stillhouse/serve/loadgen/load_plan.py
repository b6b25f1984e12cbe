"""The plan: which request is sent at which moment, and by whom. Made before the first is sent, the same for a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from stillhouse.check import check_integer, check_number
from stillhouse.serve.engine.arrivals import Arrival, add_flood, poisson_arrivals
from stillhouse.serve.engine.arrivals import ArrivalClass as Drawn
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier
from stillhouse.serve.loadgen.request_class import Flood, RequestClass
from stillhouse.shapes.caption import random_captions

MAX_REQUESTS = 100_000
"""Requests of one plan."""
MAX_SECONDS = 86_400.0
"""Seconds of one plan."""
_FLOOD = "flood"
_SINGLE_STEP = StepPlan((1,))


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request, at a moment.

    Args:
        at: seconds from the beginning.
        kind: what is asked for.
        client: who asks, from 0; the one who floods has the number after the last.
        prompt: what is drawn.
        row: of the report.
    """

    time: float
    request_class: RequestClass
    client: int
    prompt: str
    report_row: str


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How requests come.

    Args:
        rate: requests in a second.
        count: of requests; None, as many as `seconds` hold.
        seconds: after which none is sent any more; None, until all are sent.
        burst: so many come at one moment, the moments so much further apart.
        clients: so many ask, each as often as the others.
        seed: the same seed, the same plan.

    Raises:
        InvalidRequest: a number outside its range, or no end.
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
        """No more requests than that come, however the dice fall: six standard deviations above the mean."""
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
    """Every request, in the order of time; open-loop: none waits for the answer to another.

    Args:
        kinds: their shares add up to 1.
        alone: seconds of each, by name.
        course: how they come.
        flooded: that many more at one moment.
        prompts: taken in turn; none, captions of the embedded model's world.

    Raises:
        InvalidRequest: shares that do not add up to 1.
    """
    by_name = {kind.name: kind for kind in classes}
    drawn = {kind.name: _arrival_class(kind) for kind in classes}
    cost = CostModel({one.batch_key: LatencyCurve({1: isolated_seconds[name]}) for name, one in drawn.items()})
    load = load_plan.rate * mean_seconds(classes, isolated_seconds)
    trace = poisson_arrivals(
        list(drawn.values()),
        load,
        load_plan.max_requests,
        cost,
        seed=load_plan.seed,
        keys=load_plan.clients,
        burst=load_plan.burst,
    )
    trace = [arrival for arrival in trace if load_plan.seconds is None or arrival.time <= load_plan.seconds]
    if flood:
        trace = add_flood(trace, drawn[flood.request_class], flood.time, flood.count, _FLOOD)
    texts = prompts or random_captions(min(len(trace), 1000), load_plan.seed)
    return [_schedule(arrival, by_name, load_plan, texts[number % len(texts)]) for number, arrival in enumerate(trace)]


def mean_seconds(classes: Sequence[RequestClass], isolated_seconds: Mapping[str, float]) -> float:
    """Of a request alone, over all kinds: how many of them a second holds is its reciprocal."""
    return sum(kind.share * isolated_seconds[kind.name] for kind in classes)


def _arrival_class(request_class: RequestClass) -> Drawn:
    return Drawn(request_class.share, Tier(request_class.name), BatchKey(request_class.name, 1, 1), _SINGLE_STEP)


def _schedule(
    arrival: Arrival, classes: Mapping[str, RequestClass], load_plan: LoadPlan, prompt: str
) -> ScheduledRequest:
    kind = classes[arrival.tier.name]
    if arrival.key == _FLOOD:
        return ScheduledRequest(arrival.time, kind, load_plan.clients, prompt, f"{kind.name}, {_FLOOD}")
    return ScheduledRequest(arrival.time, kind, int(arrival.key.split()[-1]), prompt, kind.name)
