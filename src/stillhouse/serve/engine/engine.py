"""The engine: pick, advance, finish. It owns every job until its one end, and has no thread of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stillhouse.errors import BackendFailed, StillhouseError
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy, select_batch
from stillhouse.serve.engine.request_pool import RequestPool

FinishReason = Literal["drawn", "failed", "cancelled", "expired"]
"""drawn: every evaluation is done. failed: the device refused it, or broke on it. expired: its time was over before it
began."""


@dataclass(frozen=True, slots=True, eq=False)
class FinishedJob:
    """The one end of a job; of a drawn one with what the device made of it, of a failed one with the reason."""

    job: Job
    finish_reason: FinishReason
    result: Any = None
    error: StillhouseError | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one tick did: who was moved, how long the device took for all of it, and whose end it was."""

    jobs: tuple[Job, ...] = ()
    seconds: float = 0.0
    finished: tuple[FinishedJob, ...] = ()


class Executor(Protocol):
    """What draws. Where it raises, no picture has moved."""

    def begin(self, job: Job) -> None:
        """Lay out the job's picture."""

    def advance(self, jobs: Sequence[Job]) -> None:
        """Move the pictures of jobs of one group by one evaluation."""

    def finish(self, job: Job) -> Any:
        """What is handed out when the last evaluation is done."""


@dataclass(slots=True)
class Engine:
    """One device and the jobs that wait for it. To be used from one thread.

    Args:
        device: draws.
        policy: chooses the batch of each tick.
        cost: what ticks cost.
        clock: seconds; time.monotonic in a server, a virtual one elsewhere.
    """

    executor: Executor
    policy: Policy
    cost_model: CostModel
    clock: Callable[[], float]
    pool: RequestPool = field(default_factory=RequestPool)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Everything that has not ended, by id, in the order of arrival."""
        return self.pool.jobs

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            InvalidRequest: there is one of that id, or nobody measured what its pipeline costs.
        """
        self.cost_model = self.cost_model.with_batch_key(job.batch_key)
        self.pool.add(job, self.clock(), self.cost_model)

    def cancel(self, job_id: str) -> FinishedJob | None:
        """Drop a job before the next tick; None where it has ended already."""
        job = self.jobs.get(job_id)
        return self._remove(job, "cancelled") if job else None

    def step(self) -> StepOutput:
        """Move one batch by one evaluation; nothing where nobody waits."""
        began = self.clock()
        ends = [self._remove(job, "expired") for job in [*self.jobs.values()] if not job.index and job.expires <= began]
        picked = select_batch(self.policy, list(self.jobs.values()), began, self.cost_model)
        moved = [job for job in picked if self._start(job, ends)]
        if not self._advance(moved, ends):
            moved = [job for job in moved if self._advance([job], ends, is_single=True)]
        self.pool.record_step(moved)
        for job in moved:
            if job.is_done:
                self._finish(job, ends)
        return StepOutput(tuple(moved), self.clock() - began, tuple(ends))

    def _start(self, job: Job, finished: list[FinishedJob]) -> bool:
        try:
            if job.index == 0:
                self.executor.begin(job)
        except Exception as error:
            finished.append(self._remove(job, "failed", error=wrap_error(error)))
            return False
        return True

    def _advance(self, jobs: Sequence[Job], finished: list[FinishedJob], is_single: bool = False) -> bool:
        """Whether the pictures moved. Where several did not, each is tried alone, and only who is to blame fails."""
        if not jobs:
            return True
        began = self.clock()
        try:
            self.executor.advance(jobs)
        except Exception as error:
            if is_single:
                finished.append(self._remove(jobs[0], "failed", error=wrap_error(error)))
            return False
        self.cost_model = self.cost_model.with_measurement(
            jobs[0].batch_key, sum(job.rows for job in jobs), self.clock() - began
        )
        return True

    def _finish(self, job: Job, finished: list[FinishedJob]) -> None:
        try:
            result = self.executor.finish(job)
        except Exception as error:
            finished.append(self._remove(job, "failed", error=wrap_error(error)))
        else:
            finished.append(self._remove(job, "drawn", result))

    def _remove(
        self, job: Job, finish_reason: FinishReason, result: Any = None, error: StillhouseError | None = None
    ) -> FinishedJob:
        self.pool.remove(job.id)
        return FinishedJob(job, finish_reason, result, error)


def wrap_error(error: Exception, action: str = "drawing") -> StillhouseError:
    """The error as a person is told it: one picture's fault must not end the others'."""
    if isinstance(error, StillhouseError):
        return error
    told = BackendFailed(f"{action} failed with {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
