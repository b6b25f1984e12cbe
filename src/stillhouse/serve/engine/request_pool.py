"""Request pool: all unfinished jobs with the bookkeeping that policies need, and fair queueing between API keys.

The engine has one pool. The dispatcher keeps a copy for each worker, updated from the worker's messages.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996, section 2): the start tag of a job is the virtual time at
its arrival or the finish tag of its key's previous job, whichever is later. Virtual time is the start tag of the latest
job in service. A key that submits a hundred jobs at once gets increasing tags, so another key's first job precedes all
but the first of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job


@dataclass(slots=True)
class FairQueue:
    """Start-time fair queueing between the API keys of one service tier.

    A job's start tag says when it is the job's turn, and its finish tag when it is the turn of the key's next job. Tags
    and virtual time are in seconds of work.

    Args:
        virtual_time: largest start tag of a job that was served.
        finish_tags: finish tag of each key's last job, by key.
    """

    virtual_time: float = 0.0
    finish_tags: dict[str, float] = field(default_factory=dict)

    def assign_tag(self, key: str, seconds: float) -> float:
        """Return the start tag of an arriving job (when it is the job's turn), and move the finish tag of its key.

        Args:
            key: API key of the job.
            seconds: latency of the job without other jobs.

        >>> queue = FairQueue()
        >>> [queue.assign_tag("many", 5.0), queue.assign_tag("many", 5.0), queue.assign_tag("few", 5.0)]
        [0.0, 5.0, 0.0]
        """
        self.finish_tags = {name: end for name, end in self.finish_tags.items() if end > self.virtual_time}
        tag = self.peek_tag(key)
        self.finish_tags[key] = tag + seconds
        return tag

    def peek_tag(self, key: str) -> float:
        """Return the start tag that a job of this API key would get now, without adding the job."""
        return max(self.virtual_time, self.finish_tags.get(key, self.virtual_time))

    def advance(self, tag: float) -> None:
        """Advance the virtual time to `tag`, the start tag of a job that was served; never turn it back."""
        self.virtual_time = max(self.virtual_time, tag)


@dataclass(slots=True)
class RequestPool:
    """Unfinished jobs in order of arrival, and for each service tier a queue that shares the device between API keys.

    Not thread-safe.
    """

    _jobs: dict[str, Job] = field(default_factory=dict)
    _queues: dict[str, FairQueue] = field(default_factory=dict)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Return the unfinished jobs by id, in order of arrival."""
        return MappingProxyType(self._jobs)

    def add(self, job: Job, now: float, cost: CostModel) -> None:
        """Add a job, and set its time of arrival to `now`, its isolated latency and its start tag of fair queueing.

        The isolated latency is the latency without other jobs, as the latency model `cost` predicts it.

        Raises:
            InvalidRequest: the id is in use.
        """
        if job.id in self._jobs:
            raise InvalidRequest(f"the job id {job.id!r} is in use", allowed="an id of its own for each job")
        self.estimate(job, now, cost)
        self._queue(job).assign_tag(job.key, job.isolated_seconds)
        self._jobs[job.id] = job

    def estimate(self, job: Job, now: float, cost: CostModel) -> None:
        """Set a job's arrival to `now`, its isolated latency and its start tag, without adding the job.

        The isolated latency is the latency without other jobs, as the latency model `cost` predicts it.
        """
        job.arrived = now
        job.isolated_seconds = cost.isolated_seconds(job.batch_key, job.step_plan)
        job.tag = self._queue(job).peek_tag(job.key)

    def record_step(self, jobs: Iterable[Job]) -> None:
        """Count an engine step in the pool's jobs: `jobs` advanced by one evaluation, all other jobs were skipped."""
        for job in self._jobs.values():
            job.steps_skipped += 1
        for job in jobs:
            job.index += 1
            job.steps_skipped = 0
            self._queue(job).advance(job.tag)

    def remove(self, job_id: str) -> Job | None:
        """Remove the job with this id and return it; return None if there is none."""
        return self._jobs.pop(job_id, None)

    def _queue(self, job: Job) -> FairQueue:
        return self._queues.setdefault(job.tier.name, FairQueue())
