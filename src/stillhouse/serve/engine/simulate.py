"""A server without pictures: the same engine on a virtual clock, so that a day of requests takes seconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stillhouse.core import ImageRequest
from stillhouse.diffusion import CLEAN, NoiseLevel, SamplingPlan, TimestepGrid
from stillhouse.pipelines.resolve import Resolved
from stillhouse.serve.engine.arrivals import Arrival
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy

NO_REQUEST = Resolved(ImageRequest(""), SamplingPlan(TimestepGrid((NoiseLevel(0.0, 0.6, 0.8), CLEAN))), ())
"""Of a job of which no picture is generated."""


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job that was drawn, and when it ended."""

    job: Job
    finished: float

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""
        return self.finished - self.job.arrived

    @property
    def is_in_time(self) -> bool:
        """Whether its promise was kept."""
        return self.finished <= self.job.deadline


@dataclass(slots=True)
class VirtualExecutor:
    """A device that only lets time pass, as much as was measured; decoding included."""

    cost_model: CostModel
    now: float = 0.0

    def clock(self) -> float:
        """What time it is."""
        return self.now

    def begin(self, job: Job) -> None:
        """See `engine.Device`."""
        self.now += self.cost_model.curves[job.batch_key].start_seconds(job.step_plan)

    def advance(self, jobs: Sequence[Job]) -> None:
        """See `engine.Device`."""
        self.now += self.cost_model.step_seconds(jobs[0].batch_key, sum(job.rows for job in jobs))

    def finish(self, job: Job) -> float:
        """The moment at which the picture is there."""
        self.now += self.cost_model.curves[job.batch_key].decode
        return self.now


def make_virtual_engine(policy: Policy, cost: CostModel) -> tuple[Engine, VirtualExecutor]:
    """An engine on a device that only lets time pass."""
    device = VirtualExecutor(cost)
    return Engine(device, policy, cost, device.clock), device


def simulate(arrivals: Iterable[Arrival], policy: Policy, cost: CostModel) -> list[SimulatedJob]:
    """Serve all arrivals, which come in the order of time; the jobs in the order in which they end."""
    engine, device = make_virtual_engine(policy, cost)
    served: list[SimulatedJob] = []

    def tick() -> None:
        served.extend(SimulatedJob(end.job, end.result) for end in engine.step().finished)

    for number, arrival in enumerate(arrivals):
        while engine.jobs and device.now < arrival.time:
            tick()
        device.now = max(device.now, arrival.time)
        job = Job(str(number), arrival.tier, arrival.key, arrival.batch_key, arrival.step_plan, NO_REQUEST)
        engine.submit(job)
        job.arrived = arrival.time  # it waited at the door while a tick was under way
    while engine.jobs:
        tick()
    return served
