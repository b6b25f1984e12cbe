"""The plan: which request is sent at which moment, and by whom. Made before the first is sent, the same for a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

from stillhouse.check import check_number, check_whole
from stillhouse.serve.engine.arrivals import Arrival, flood, poisson
from stillhouse.serve.engine.arrivals import Kind as Drawn
from stillhouse.serve.engine.cost import Cost, Curve
from stillhouse.serve.engine.job import Group, Tier, Walk
from stillhouse.serve.loadgen.request_class import Flood, Kind
from stillhouse.shapes.caption import captions

MOST = 100_000
"""Requests of one plan."""
LONGEST = 86_400.0
"""Seconds of one plan."""
_FLOOD = "flood"
_ONE = Walk((1,))


@dataclass(frozen=True, slots=True)
class Shot:
    """A request, at a moment.

    Args:
        at: seconds from the beginning.
        kind: what is asked for.
        client: who asks, from 0; the one who floods has the number after the last.
        prompt: what is drawn.
        row: of the report.
    """

    at: float
    kind: Kind
    client: int
    prompt: str
    row: str


@dataclass(frozen=True, slots=True)
class Course:
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
        check_whole("burst", self.burst, 1, 10_000)
        check_whole("clients", self.clients, 1, 10_000)
        check_whole("seed", self.seed, 0, 2**63 - 1)
        if self.count is not None:
            check_whole("count", self.count, 1, MOST)
        if self.seconds is not None or self.count is None:
            check_number("seconds", self.seconds, 1e-3, LONGEST)
        check_number("the number of requests", self.most, 1, MOST)

    @property
    def most(self) -> int:
        """No more requests than that come, however the dice fall: six standard deviations above the mean."""
        if self.seconds is None:
            assert self.count is not None
            return self.count
        mean = self.rate * self.seconds
        likely = ceil(mean + 6 * sqrt(mean * self.burst)) + 10 * self.burst
        return likely if self.count is None else min(likely, self.count)


def plan(
    kinds: Sequence[Kind],
    alone: Mapping[str, float],
    course: Course,
    flooded: Flood | None = None,
    prompts: Sequence[str] = (),
) -> list[Shot]:
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
    by_name = {kind.name: kind for kind in kinds}
    drawn = {kind.name: _drawn(kind) for kind in kinds}
    cost = Cost({one.group: Curve({1: alone[name]}) for name, one in drawn.items()})
    load = course.rate * mean_seconds(kinds, alone)
    trace = poisson(
        list(drawn.values()), load, course.most, cost, seed=course.seed, keys=course.clients, burst=course.burst
    )
    trace = [arrival for arrival in trace if course.seconds is None or arrival.at <= course.seconds]
    if flooded:
        trace = flood(trace, drawn[flooded.kind], flooded.at, flooded.count, _FLOOD)
    texts = prompts or captions(min(len(trace), 1000), course.seed)
    return [_shot(arrival, by_name, course, texts[number % len(texts)]) for number, arrival in enumerate(trace)]


def mean_seconds(kinds: Sequence[Kind], alone: Mapping[str, float]) -> float:
    """Of a request alone, over all kinds: how many of them a second holds is its reciprocal."""
    return sum(kind.share * alone[kind.name] for kind in kinds)


def _drawn(kind: Kind) -> Drawn:
    return Drawn(kind.share, Tier(kind.name), Group(kind.name, 1, 1), _ONE)


def _shot(arrival: Arrival, kinds: Mapping[str, Kind], course: Course, prompt: str) -> Shot:
    kind = kinds[arrival.tier.name]
    if arrival.key == _FLOOD:
        return Shot(arrival.at, kind, course.clients, prompt, f"{kind.name}, {_FLOOD}")
    return Shot(arrival.at, kind, int(arrival.key.split()[-1]), prompt, kind.name)
