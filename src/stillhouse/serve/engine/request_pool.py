"""The roster: every job that is admitted and has not ended, with what policies need to know of it.

The engine keeps one of what it draws; whoever admits jobs for an engine in another process keeps a copy, moved by what
that engine tells.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.cost import Cost
from stillhouse.serve.engine.fair_queue import Line
from stillhouse.serve.engine.job import Job


@dataclass(slots=True)
class Roster:
    """Jobs by id, in the order of their arrival, and the lines of their tiers. One loop owns it."""

    _jobs: dict[str, Job] = field(default_factory=dict)
    _lines: dict[str, Line] = field(default_factory=dict)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All of them."""
        return MappingProxyType(self._jobs)

    def enter(self, job: Job, now: float, cost: Cost) -> None:
        """Take a job: its arrival, its seconds alone and its place in line are set.

        Raises:
            InvalidRequest: there is one of that id.
        """
        if job.id in self._jobs:
            raise InvalidRequest(f"a second job {job.id!r}", allowed="an id of its own for each job")
        self.expect(job, now, cost)
        self._line(job).tag(job.key, job.alone)
        self._jobs[job.id] = job

    def expect(self, job: Job, now: float, cost: Cost) -> None:
        """Set the same, without taking it."""
        job.arrived = now
        job.alone = cost.alone(job.group, job.walk)
        job.tag = self._line(job).next(job.key)

    def moved(self, jobs: Iterable[Job]) -> None:
        """These moved by one evaluation, and all others stood by."""
        for job in self._jobs.values():
            job.passed += 1
        for job in jobs:
            job.index += 1
            job.passed = 0
            self._line(job).picked(job.tag)

    def leave(self, name: str) -> Job | None:
        """The job of that id, which is over now; None where there is none."""
        return self._jobs.pop(name, None)

    def _line(self, job: Job) -> Line:
        return self._lines.setdefault(job.tier.name, Line())
