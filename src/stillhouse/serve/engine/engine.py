"""The engine: pick, advance, finish. It owns every job until its one end, and has no thread of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from stillhouse.errors import BackendFailed, StillhouseError
from stillhouse.serve.engine.cost import Cost
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy, pick
from stillhouse.serve.engine.request_pool import Roster

Outcome = Literal["drawn", "failed", "cancelled", "expired"]
"""drawn: every evaluation is done. failed: the device refused it, or broke on it. expired: its time was over before it
began."""


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """The one end of a job; of a drawn one with what the device made of it, of a failed one with the reason."""

    job: Job
    outcome: Outcome
    result: Any = None
    error: StillhouseError | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """What one tick did: who was moved, how long the device took for all of it, and whose end it was."""

    moved: tuple[Job, ...] = ()
    seconds: float = 0.0
    ends: tuple[End, ...] = ()


class Device(Protocol):
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

    device: Device
    policy: Policy
    cost: Cost
    clock: Callable[[], float]
    roster: Roster = field(default_factory=Roster)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Everything that has not ended, by id, in the order of arrival."""
        return self.roster.jobs

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            InvalidRequest: there is one of that id, or nobody measured what its pipeline costs.
        """
        self.cost = self.cost.knowing(job.group)
        self.roster.enter(job, self.clock(), self.cost)

    def cancel(self, name: str) -> End | None:
        """Drop a job before the next tick; None where it has ended already."""
        job = self.jobs.get(name)
        return self._end(job, "cancelled") if job else None

    def tick(self) -> Tick:
        """Move one batch by one evaluation; nothing where nobody waits."""
        began = self.clock()
        ends = [self._end(job, "expired") for job in [*self.jobs.values()] if not job.index and job.expires <= began]
        picked = pick(self.policy, list(self.jobs.values()), began, self.cost)
        moved = [job for job in picked if self._begun(job, ends)]
        if not self._advanced(moved, ends):
            moved = [job for job in moved if self._advanced([job], ends, alone=True)]
        self.roster.moved(moved)
        for job in moved:
            if job.is_done:
                self._finish(job, ends)
        return Tick(tuple(moved), self.clock() - began, tuple(ends))

    def _begun(self, job: Job, ends: list[End]) -> bool:
        try:
            if job.index == 0:
                self.device.begin(job)
        except Exception as error:
            ends.append(self._end(job, "failed", error=as_told(error)))
            return False
        return True

    def _advanced(self, jobs: Sequence[Job], ends: list[End], alone: bool = False) -> bool:
        """Whether the pictures moved. Where several did not, each is tried alone, and only who is to blame fails."""
        if not jobs:
            return True
        began = self.clock()
        try:
            self.device.advance(jobs)
        except Exception as error:
            if alone:
                ends.append(self._end(jobs[0], "failed", error=as_told(error)))
            return False
        self.cost = self.cost.seen(jobs[0].group, sum(job.rows for job in jobs), self.clock() - began)
        return True

    def _finish(self, job: Job, ends: list[End]) -> None:
        try:
            result = self.device.finish(job)
        except Exception as error:
            ends.append(self._end(job, "failed", error=as_told(error)))
        else:
            ends.append(self._end(job, "drawn", result))

    def _end(self, job: Job, outcome: Outcome, result: Any = None, error: StillhouseError | None = None) -> End:
        self.roster.leave(job.id)
        return End(job, outcome, result, error)


def as_told(error: Exception, doing: str = "drawing") -> StillhouseError:
    """The error as a person is told it: one picture's fault must not end the others'."""
    if isinstance(error, StillhouseError):
        return error
    told = BackendFailed(f"{doing} failed with {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
