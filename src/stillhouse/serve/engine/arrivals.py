"""Traces: who asks for what, and when. The same ones for the simulator and for servers under load."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge

from stillhouse.check import check_number
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, at a moment: seconds from the beginning."""

    time: float
    tier: Tier
    key: str
    batch_key: BatchKey
    step_plan: StepPlan


@dataclass(frozen=True, slots=True)
class ArrivalClass:
    """A kind of picture, and how many in all are of it: a share from 0 to 1."""

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
    """Requests that come whether or not earlier ones were answered, at exponentially distributed distances.

    Args:
        kinds: their shares add up to 1.
        load: seconds of work that arrive in a second, each picture counted as if it were drawn alone; above 0.
        count: of requests.
        cost: what pictures take.
        seed: the same seed, the same trace.
        keys: so many ask, each as often as the others.
        burst: so many come at one moment, and the moments are so much further apart.

    Raises:
        InvalidRequest: a load or shares outside their ranges.
    """
    check_number("load", load, 1e-6, 1e6)
    check_number("the sum of all shares", sum(kind.share for kind in classes), 1 - 1e-9, 1 + 1e-9)
    dice = random.Random(seed)
    mean = sum(kind.share * cost_model.isolated_seconds(kind.batch_key, kind.step_plan) for kind in classes)
    shares = [kind.share for kind in classes]
    at, arrivals = 0.0, []
    for number in range(count):
        if number % burst == 0:
            at += dice.expovariate(load / mean / burst)
        (kind,) = dice.choices(classes, shares)
        arrivals.append(Arrival(at, kind.tier, f"key {dice.randrange(keys)}", kind.batch_key, kind.step_plan))
    return arrivals


def add_flood(
    arrivals: Iterable[Arrival], arrival_class: ArrivalClass, at: float, count: int, key: str = "flood"
) -> list[Arrival]:
    """The trace with so many pictures of one kind more, all asked for by one key at one moment."""
    return list(
        merge(
            arrivals,
            [Arrival(at, arrival_class.tier, key, arrival_class.batch_key, arrival_class.step_plan)] * count,
            key=lambda one: one.time,
        )
    )
