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
        finished: time on the virtual clock, in seconds, at which its image was decoded.
    """

    job: Job
    finished: float

    @property
    def seconds(self) -> float:
        """Return the latency in seconds, from arrival to decoded image."""
        return self.finished - self.job.arrived

    @property
    def is_in_time(self) -> bool:
        """Return whether the job met its latency target."""
        return self.finished <= self.job.deadline


@dataclass(slots=True)
class VirtualExecutor:
    """An `engine.Executor` for simulations: instead of running networks, a virtual clock advances by predicted seconds.

    Args:
        cost_model: latency model, which predicts the seconds.
        now: time on the virtual clock, in seconds.
        finish_times: time on the virtual clock at which each finished job was decoded, by job id.
    """

    cost_model: CostModel
    now: float = 0.0
    finish_times: dict[str, float] = field(default_factory=dict)

    def clock(self) -> float:
        """Return the time on the virtual clock, in seconds."""
        return self.now

    def begin(self, job: Job) -> None:
        """Advance the virtual clock by the seconds that a job's prompt and images take to encode."""
        self.now += self.cost_model.curves[job.batch_key].start_seconds(job.step_plan)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Advance the virtual clock by the seconds of one network evaluation for a batch of these jobs."""
        self.now += self.cost_model.step_seconds(jobs[0].batch_key, sum(job.rows for job in jobs))

    def finish(self, job: Job) -> None:
        """Advance the virtual clock by the seconds that a job's image takes to decode, and record the job's end."""
        self.now += self.cost_model.curves[job.batch_key].decode
        self.finish_times[job.id] = self.now


def make_virtual_engine(policy: Policy, cost: CostModel) -> tuple[Engine, VirtualExecutor]:
    """Return an engine that runs on a virtual clock, and the executor that advances this clock."""
    executor = VirtualExecutor(cost)
    return Engine(executor, policy, cost, executor.clock), executor


def simulate(arrivals: Iterable[Arrival], policy: Policy, cost: CostModel) -> list[SimulatedJob]:
    """Simulate a server for these arrivals, sorted by time, and return the finished jobs in order of completion."""
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
        job.arrived = arrival.time  # not the time of `submit`, because the job arrived during the last step
    while engine.jobs:
        step()
    return finished
