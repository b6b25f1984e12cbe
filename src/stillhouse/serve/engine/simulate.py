"""Simulation of a server: the engine on a virtual clock, without generating images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stillhouse.core import ImageRequest
from stillhouse.diffusion import CLEAN, NoiseLevel, SamplingPlan, TimestepGrid
from stillhouse.pipelines.resolve import Resolved
from stillhouse.serve.engine.arrivals import Arrival
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy

NO_REQUEST = Resolved(ImageRequest(""), SamplingPlan(TimestepGrid((NoiseLevel(0.0, 0.6, 0.8), CLEAN))), ())
"""Placeholder for the request of a simulated job, for which no image is generated."""


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A finished job of a simulation.

    Args:
        job: the job.
        finished: time of completion in virtual seconds.
    """

    job: Job
    finished: float

    @property
    def seconds(self) -> float:
        """Return the latency in seconds."""
        return self.finished - self.job.arrived

    @property
    def is_in_time(self) -> bool:
        """Return whether the latency target was met."""
        return self.finished <= self.job.deadline


@dataclass(slots=True)
class VirtualExecutor:
    """Executor that advances a virtual clock by the predicted seconds, decoding included.

    Args:
        cost_model: latency model.
        now: virtual time in seconds.
        finish_times: virtual time at which each finished job was decoded, by job id.
    """

    cost_model: CostModel
    now: float = 0.0
    finish_times: dict[str, float] = field(default_factory=dict)

    def clock(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    def begin(self, job: Job) -> None:
        """Advance the clock by the encoding time, see `engine.Executor`."""
        self.now += self.cost_model.curves[job.batch_key].start_seconds(job.step_plan)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Advance the clock by one evaluation, see `engine.Executor`."""
        self.now += self.cost_model.step_seconds(jobs[0].batch_key, sum(job.rows for job in jobs))

    def finish(self, job: Job) -> None:
        """Advance the clock by the decoding time and record it."""
        self.now += self.cost_model.curves[job.batch_key].decode
        self.finish_times[job.id] = self.now


def make_virtual_engine(policy: Policy, cost: CostModel) -> tuple[Engine, VirtualExecutor]:
    """Return an engine and its virtual executor."""
    executor = VirtualExecutor(cost)
    return Engine(executor, policy, cost, executor.clock), executor


def simulate(arrivals: Iterable[Arrival], policy: Policy, cost: CostModel) -> list[SimulatedJob]:
    """Serve arrivals, which are sorted by time, and return the finished jobs in order of completion."""
    engine, executor = make_virtual_engine(policy, cost)
    finished: list[SimulatedJob] = []

    def step() -> None:
        finished.extend(SimulatedJob(job, executor.finish_times[job.id]) for job in engine.step().finished)

    for number, arrival in enumerate(arrivals):
        while engine.jobs and executor.now < arrival.time:
            step()
        executor.now = max(executor.now, arrival.time)
        job = Job(str(number), arrival.tier, arrival.key, arrival.batch_key, arrival.step_plan, NO_REQUEST)
        engine.submit(job)
        job.arrived = arrival.time  # the job arrived during the last step, not now
    while engine.jobs:
        step()
    return finished
