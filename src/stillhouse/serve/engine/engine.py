"""Engine: selects a batch, runs one evaluation and finishes jobs. It has no thread of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stillhouse.errors import BackendFailed, StillhouseError
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy, select_batch
from stillhouse.serve.engine.request_pool import RequestPool

FinishReason = Literal["finished", "failed", "cancelled", "expired"]
"""Why a job ended.

"finished": all evaluations are done. "failed": the executor raised an error. "cancelled": cancelled by the client.
"expired": the queue timeout passed before the start.
"""


@dataclass(frozen=True, slots=True, eq=False)
class FinishedJob:
    """The end of a job.

    Args:
        job: the job.
        finish_reason: why it ended.
        result: return value of `Executor.finish` if the job finished.
        error: error of a failed job.
    """

    job: Job
    finish_reason: FinishReason
    result: Any = None
    error: StillhouseError | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Result of one engine step.

    Args:
        jobs: jobs that advanced by one evaluation.
        seconds: duration of the step.
        finished: jobs that ended in the step.
    """

    jobs: tuple[Job, ...] = ()
    seconds: float = 0.0
    finished: tuple[FinishedJob, ...] = ()


class Executor(Protocol):
    """Runs network evaluations. A method that raises leaves all jobs unchanged."""

    def begin(self, job: Job) -> None:
        """Encode the inputs of a job and create its trajectory."""

    def advance(self, jobs: Sequence[Job]) -> None:
        """Run one evaluation for jobs that share a batch key."""

    def finish(self, job: Job) -> Any:
        """Return the result of a job after its last evaluation."""


@dataclass(slots=True)
class Engine:
    """Scheduler of one device. Not thread-safe: use from one thread.

    Args:
        executor: runs the evaluations.
        policy: selects the batch of each step.
        cost_model: latency model.
        clock: seconds; time.monotonic in a server, a virtual clock in simulations.
        pool: unfinished jobs.
    """

    executor: Executor
    policy: Policy
    cost_model: CostModel
    clock: Callable[[], float]
    pool: RequestPool = field(default_factory=RequestPool)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Return the unfinished jobs by id, in order of arrival."""
        return self.pool.jobs

    def submit(self, job: Job) -> None:
        """Add a job.

        Raises:
            InvalidRequest: the id is in use, or the pipeline was never measured.
        """
        self.cost_model = self.cost_model.with_batch_key(job.batch_key)
        self.pool.add(job, self.clock(), self.cost_model)

    def cancel(self, job_id: str) -> FinishedJob | None:
        """Remove a job before the next step; return None if there is none with this id."""
        job = self.jobs.get(job_id)
        return self._remove(job, "cancelled") if job else None

    def step(self) -> StepOutput:
        """Run one evaluation of one batch. Do nothing if there are no jobs."""
        began = self.clock()
        finished = [
            self._remove(job, "expired") for job in [*self.jobs.values()] if not job.index and job.expires <= began
        ]
        batch = select_batch(self.policy, list(self.jobs.values()), began, self.cost_model)
        advanced = [job for job in batch if self._start(job, finished)]
        if not self._advance(advanced, finished):
            advanced = [job for job in advanced if self._advance([job], finished, is_single=True)]
        self.pool.record_step(advanced)
        for job in advanced:
            if job.is_done:
                self._finish(job, finished)
        return StepOutput(tuple(advanced), self.clock() - began, tuple(finished))

    def _start(self, job: Job, finished: list[FinishedJob]) -> bool:
        try:
            if job.index == 0:
                self.executor.begin(job)
        except Exception as error:
            finished.append(self._remove(job, "failed", error=wrap_error(error)))
            return False
        return True

    def _advance(self, jobs: Sequence[Job], finished: list[FinishedJob], is_single: bool = False) -> bool:
        """Run one evaluation and return whether it succeeded.

        A failed batch is retried job by job, so that only the faulty job fails.
        """
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
            finished.append(self._remove(job, "finished", result))

    def _remove(
        self, job: Job, finish_reason: FinishReason, result: Any = None, error: StillhouseError | None = None
    ) -> FinishedJob:
        self.pool.remove(job.id)
        return FinishedJob(job, finish_reason, result, error)


def wrap_error(error: Exception, action: str = "inference") -> StillhouseError:
    """Return a StillhouseError unchanged, and any other error as the cause of a BackendFailed that names the action."""
    if isinstance(error, StillhouseError):
        return error
    failure = BackendFailed(f"{action} failed with {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
