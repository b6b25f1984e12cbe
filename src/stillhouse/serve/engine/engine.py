"""Engine: selects a batch, runs one network evaluation and finishes jobs. The caller's thread does all the work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.output import RequestOutput, failed_output
from stillhouse.serve.engine.policy import Policy, select_batch
from stillhouse.serve.engine.request_pool import RequestPool


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Result of one engine step: one network evaluation of one batch of jobs.

    Args:
        jobs: jobs that advanced by one evaluation; empty where no job could run.
        seconds: duration of the step.
        finished: jobs whose last evaluation is done; their images are not decoded yet.
        outputs: results for the clients of the jobs that failed or expired in this step.
    """

    jobs: tuple[Job, ...] = ()
    seconds: float = 0.0
    finished: tuple[Job, ...] = ()
    outputs: tuple[RequestOutput, ...] = ()


class Executor(Protocol):
    """The part of an engine that runs the networks. A method that raises an error leaves all jobs unchanged."""

    def begin(self, job: Job) -> None:
        """Prepare a job for its first evaluation: encode its prompt and images, and create its denoising state."""

    def advance(self, jobs: Sequence[Job]) -> None:
        """Run one network evaluation for a batch of jobs, whose batch keys must be equal."""

    def finish(self, job: Job) -> None:
        """Prepare the trajectory (denoising state) of a job for decoding, after the job's last evaluation."""


@dataclass(slots=True)
class Engine:
    """Scheduler of one device. Not thread-safe: use from one thread.

    Args:
        executor: runs the network evaluations.
        policy: orders the jobs by priority, from which the batch of each step is selected.
        cost_model: latency model; updated after each step.
        clock: returns the time in seconds; time.monotonic in a server, a virtual clock in simulations.
        pool: unfinished jobs.
        on_begin: called with each job before anything is computed for it.
    """

    executor: Executor
    policy: Policy
    cost_model: CostModel
    clock: Callable[[], float]
    pool: RequestPool = field(default_factory=RequestPool)
    on_begin: Callable[[Job], None] = lambda job: None

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Return the unfinished jobs by id, in order of arrival."""
        return self.pool.jobs

    def submit(self, job: Job) -> None:
        """Add a job to the unfinished jobs; its time of arrival is now.

        Raises:
            InvalidRequest: the id is in use, or no latency of the job's pipeline was measured.
        """
        self.cost_model = self.cost_model.with_batch_key(job.batch_key)
        self.pool.add(job, self.clock(), self.cost_model)

    def cancel(self, job_id: str) -> RequestOutput | None:
        """Remove a job before the next step, and return the result for its client; None if no job has this id."""
        job = self.pool.remove(job_id)
        return RequestOutput(job_id, "cancelled") if job else None

    def step(self) -> StepOutput:
        """Select a batch of jobs, run one network evaluation for it, and return what happened.

        Jobs that expired, failed or had their last evaluation are removed. Without jobs, no evaluation is run.
        """
        began = self.clock()
        expired = [job for job in self.jobs.values() if not job.index and job.expires <= began]
        outputs = [self._expire(job) for job in expired]
        batch = select_batch(self.policy, self._runnable_jobs(), began, self.cost_model)
        advanced = [job for job in batch if self._start(job, outputs)]
        if not self._advance(advanced, outputs):
            advanced = [job for job in advanced if self._advance([job], outputs, is_single=True)]
        self.pool.record_step(advanced)
        finished = [job for job in advanced if job.is_done and self._finish(job, outputs)]
        ended = self.clock()
        for job in advanced:
            job.record_batch(len(advanced), began, ended)
        return StepOutput(tuple(advanced), ended - began, tuple(finished), tuple(outputs))

    def _runnable_jobs(self) -> Sequence[Job]:
        """Return the jobs of which the next batch is selected, in order of arrival.

        These are all unfinished jobs, unless one of them must run alone: then those that are in progress, and after
        them that one.
        """
        jobs = list(self.jobs.values())
        alone = [job for job in jobs if job.is_alone]
        return ([job for job in jobs if job.index] or alone[:1]) if alone else jobs

    def _start(self, job: Job, outputs: list[RequestOutput]) -> bool:
        """Start a job if it has not started yet, and return whether it can be advanced.

        A job that cannot be started is removed, and its failure is appended to `outputs`.
        """
        try:
            if job.index == 0:
                self.on_begin(job)
                self.executor.begin(job)
        except Exception as error:
            outputs.append(self._fail(job, error))
            return False
        return True

    def _advance(self, jobs: Sequence[Job], outputs: list[RequestOutput], is_single: bool = False) -> bool:
        """Run one network evaluation for a batch of jobs, and return whether the evaluation succeeded.

        An empty batch succeeds, and nothing is run. If `is_single`, the batch has one job, and an error removes this
        job as failed and appends its result to `outputs`. Otherwise an error changes no job, and the caller tries each
        job alone, so that only the faulty job fails.
        """
        if not jobs:
            return True
        began = self.clock()
        try:
            self.executor.advance(jobs)
        except Exception as error:
            if is_single:
                outputs.append(self._fail(jobs[0], error))
            return False
        self.cost_model = self.cost_model.with_measurement(
            jobs[0].batch_key, sum(job.rows for job in jobs), self.clock() - began
        )
        return True

    def _finish(self, job: Job, outputs: list[RequestOutput]) -> bool:
        """Remove a job after its last evaluation, and return whether its image can be decoded.

        If the image cannot be decoded, the job's failure is appended to `outputs`.
        """
        try:
            self.executor.finish(job)
        except Exception as error:
            outputs.append(self._fail(job, error))
            return False
        self.pool.remove(job.id)
        return True

    def _fail(self, job: Job, error: Exception) -> RequestOutput:
        self.pool.remove(job.id)
        return failed_output(job.id, error)

    def _expire(self, job: Job) -> RequestOutput:
        self.pool.remove(job.id)
        return RequestOutput(job.id, "expired")
