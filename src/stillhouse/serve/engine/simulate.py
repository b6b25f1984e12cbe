"""A server without pictures: the same engine on a virtual clock, so that a day of requests takes seconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stillhouse.core import ImageRequest
from stillhouse.serve.engine.arrivals import Arrival
from stillhouse.serve.engine.cost import Cost
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy

NO_REQUEST = ImageRequest("")
"""Of a job that nobody draws."""


@dataclass(frozen=True, slots=True)
class Served:
    """A job that was drawn, and when it ended."""

    job: Job
    at: float

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""
        return self.at - self.job.arrived

    @property
    def in_time(self) -> bool:
        """Whether its promise was kept."""
        return self.at <= self.job.deadline


@dataclass(slots=True)
class VirtualDevice:
    """A device that only lets time pass, as much as was measured; decoding included."""

    cost: Cost
    now: float = 0.0

    def clock(self) -> float:
        """What time it is."""
        return self.now

    def begin(self, job: Job) -> None:
        """See `engine.Device`."""
        self.now += self.cost.curves[job.group].before(job.walk)

    def advance(self, jobs: Sequence[Job]) -> None:
        """See `engine.Device`."""
        self.now += self.cost.tick(jobs[0].group, sum(job.rows for job in jobs))

    def finish(self, job: Job) -> float:
        """The moment at which the picture is there."""
        self.now += self.cost.curves[job.group].finish
        return self.now


def virtual_engine(policy: Policy, cost: Cost) -> tuple[Engine, VirtualDevice]:
    """An engine on a device that only lets time pass."""
    device = VirtualDevice(cost)
    return Engine(device, policy, cost, device.clock), device


def simulate(arrivals: Iterable[Arrival], policy: Policy, cost: Cost) -> list[Served]:
    """Serve all arrivals, which come in the order of time; the jobs in the order in which they end."""
    engine, device = virtual_engine(policy, cost)
    served: list[Served] = []

    def tick() -> None:
        served.extend(Served(end.job, end.result) for end in engine.tick().ends)

    for number, arrival in enumerate(arrivals):
        while engine.jobs and device.now < arrival.at:
            tick()
        device.now = max(device.now, arrival.at)
        job = Job(str(number), arrival.tier, arrival.key, arrival.group, arrival.walk, NO_REQUEST)
        engine.submit(job)
        job.arrived = arrival.at  # it waited at the door while a tick was under way
    while engine.jobs:
        tick()
    return served
