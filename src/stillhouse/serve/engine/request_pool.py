"""Request pool: all unfinished jobs with the bookkeeping that policies need.

The engine has one. The dispatcher keeps a copy for each worker, updated from the worker's messages.
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
    """Unfinished jobs in order of arrival, and one fair queue per tier. Not thread-safe."""

    _jobs: dict[str, Job] = field(default_factory=dict)
    _queues: dict[str, FairQueue] = field(default_factory=dict)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Return all jobs by id."""
        return MappingProxyType(self._jobs)

    def add(self, job: Job, now: float, cost: CostModel) -> None:
        """Add a job and set its arrival time, isolated latency and start tag.

        Raises:
            InvalidRequest: the id is in use.
        """
        if job.id in self._jobs:
            raise InvalidRequest(f"a second job {job.id!r}", allowed="an id of its own for each job")
        self.estimate(job, now, cost)
        self._queue(job).assign_tag(job.key, job.isolated_seconds)
        self._jobs[job.id] = job

    def estimate(self, job: Job, now: float, cost: CostModel) -> None:
        """Set arrival time, isolated latency and start tag of a job without adding it."""
        job.arrived = now
        job.isolated_seconds = cost.isolated_seconds(job.batch_key, job.step_plan)
        job.tag = self._queue(job).peek_tag(job.key)

    def record_step(self, jobs: Iterable[Job]) -> None:
        """Record one step: `jobs` advanced by one evaluation, all other jobs were skipped."""
        for job in self._jobs.values():
            job.steps_skipped += 1
        for job in jobs:
            job.index += 1
            job.steps_skipped = 0
            self._queue(job).advance(job.tag)

    def remove(self, job_id: str) -> Job | None:
        """Remove and return a job, or None if there is none with this id."""
        return self._jobs.pop(job_id, None)

    def _queue(self, job: Job) -> FairQueue:
        return self._queues.setdefault(job.tier.name, FairQueue())
