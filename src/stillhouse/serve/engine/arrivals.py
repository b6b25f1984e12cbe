"""Random arrival times of requests, for the simulator and the load generator."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge

from stillhouse.check import check_number
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier


@dataclass(frozen=True, slots=True)
class Arrival:
    """A simulated request and the time at which it arrives.

    Args:
        time: seconds from the start of the simulation.
        tier: service tier of the request, which sets its weight and latency target.
        key: API key of the client; the scheduler shares the device fairly between keys.
        batch_key: pipeline and image size; only requests with equal batch keys can share a batch.
        step_plan: number of batch rows that each network evaluation takes.
    """

    time: float
    tier: Tier
    key: str
    batch_key: BatchKey
    step_plan: StepPlan


@dataclass(frozen=True, slots=True)
class ArrivalClass:
    """A class of identical simulated requests.

    Args:
        share: fraction of all requests that belong to the class, 0 to 1.
        tier: service tier of the requests, which sets their weight and latency target.
        batch_key: pipeline and image size; only requests with equal batch keys can share a batch.
        step_plan: number of batch rows that each network evaluation takes.
    """

    share: float
    tier: Tier
    batch_key: BatchKey
    step_plan: StepPlan


def poisson_arrivals(
    classes: Sequence[ArrivalClass],
    load: float,
    count: int,
    cost_model: CostModel,
    *,
    seed: int = 0,
    keys: int = 20,
    burst: int = 1,
) -> list[Arrival]:
    """Draw open-loop arrivals with exponentially distributed interarrival times, and return them in order of time.

    Args:
        classes: classes of requests; their shares sum to 1.
        load: seconds of work that arrive per second, each request counted with its isolated latency (the latency
            without other requests); above 0.
        count: number of requests.
        cost_model: latency model, which gives the isolated latencies.
        seed: seed of the random numbers.
        keys: number of API keys, all with the same rate of requests.
        burst: number of requests that arrive together; the interarrival times grow by the same factor.

    Raises:
        InvalidRequest: the load or the shares are out of range.
    """
    check_number("load", load, 1e-6, 1e6)
    check_number("the sum of all shares", sum(arrival_class.share for arrival_class in classes), 1 - 1e-9, 1 + 1e-9)
    rng = random.Random(seed)
    mean = sum(
        arrival_class.share * cost_model.isolated_seconds(arrival_class.batch_key, arrival_class.step_plan)
        for arrival_class in classes
    )
    shares = [arrival_class.share for arrival_class in classes]
    time, arrivals = 0.0, []
    for number in range(count):
        if number % burst == 0:
            time += rng.expovariate(load / mean / burst)
        (arrival_class,) = rng.choices(classes, shares)
        arrivals.append(
            Arrival(
                time, arrival_class.tier, f"key {rng.randrange(keys)}", arrival_class.batch_key, arrival_class.step_plan
            )
        )
    return arrivals


def add_flood(
    arrivals: Iterable[Arrival], arrival_class: ArrivalClass, time: float, count: int, key: str = "flood"
) -> list[Arrival]:
    """Return the arrivals, in order of time, with `count` more requests that one API key sends at the same time.

    Args:
        arrivals: arrivals in order of time.
        arrival_class: class of the additional requests; its share is not used.
        time: seconds at which the additional requests arrive.
        count: number of additional requests.
        key: API key of the additional requests.
    """
    return list(
        merge(
            arrivals,
            [Arrival(time, arrival_class.tier, key, arrival_class.batch_key, arrival_class.step_plan)] * count,
            key=lambda arrival: arrival.time,
        )
    )
