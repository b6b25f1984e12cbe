"""The roster: every job that is admitted and has not ended, with what policies need to know of it.

The engine keeps one of what it draws; whoever admits jobs for an engine in another process keeps a copy, moved by what
that engine tells.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.fair_queue import FairQueue
from stillhouse.serve.engine.job import Job


@dataclass(slots=True)
class RequestPool:
    """Jobs by id, in the order of their arrival, and the lines of their tiers. One loop owns it."""

    _jobs: dict[str, Job] = field(default_factory=dict)
    _queues: dict[str, FairQueue] = field(default_factory=dict)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All of them."""
        return MappingProxyType(self._jobs)

    def add(self, job: Job, now: float, cost: CostModel) -> None:
        """Take a job: its arrival, its seconds alone and its place in line are set.

        Raises:
            InvalidRequest: there is one of that id.
        """
        if job.id in self._jobs:
            raise InvalidRequest(f"a second job {job.id!r}", allowed="an id of its own for each job")
        self.estimate(job, now, cost)
        self._queue(job).assign_tag(job.key, job.isolated_seconds)
        self._jobs[job.id] = job

    def estimate(self, job: Job, now: float, cost: CostModel) -> None:
        """Set the same, without taking it."""
        job.arrived = now
        job.isolated_seconds = cost.isolated_seconds(job.batch_key, job.step_plan)
        job.tag = self._queue(job).peek_tag(job.key)

    def record_step(self, jobs: Iterable[Job]) -> None:
        """These moved by one evaluation, and all others stood by."""
        for job in self._jobs.values():
            job.steps_skipped += 1
        for job in jobs:
            job.index += 1
            job.steps_skipped = 0
            self._queue(job).advance(job.tag)

    def remove(self, job_id: str) -> Job | None:
        """The job of that id, which is over now; None where there is none."""
        return self._jobs.pop(job_id, None)

    def _queue(self, job: Job) -> FairQueue:
        return self._queues.setdefault(job.tier.name, FairQueue())
