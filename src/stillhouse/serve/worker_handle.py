"""A station: one worker as the server sees it, by what the worker tells.

What the worker has to draw is kept here until it has ended; so nothing is lost with a worker.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from stillhouse.errors import Refused
from stillhouse.serve.engine.cost import Cost
from stillhouse.serve.engine.job import Group, Job
from stillhouse.serve.engine.request_pool import Roster
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.request_handle import Shown, Ticket
from stillhouse.serve.worker.messages import Cancel, Closed, Draw, Ended, Moved, Opening, Preview, Ready, Ticked, Told
from stillhouse.serve.worker.supervisor import Supervision, Supervisor

log = logging.getLogger(__name__)

RUNS = 2
"""How often a picture is begun at most: workers that died are to blame, not the picture, but who knows."""
MOST_SHAPES = 64
"""Sizes of pictures that metrics tell one by one."""
FIRST_START = 10.0
"""Seconds that a worker is expected to need before it is ready, until one was."""


@dataclass(slots=True)
class Station:
    """One worker. The server's loop owns it.

    Args:
        opening: what the worker is told first; what it has measured is told to the next.
        clock: seconds, the worker's own.
        metrics: counts.
        ended: called with every ticket that has ended.
        broken: called when the worker cannot open a pipeline.
        supervise: starts the worker and holds it, as `Supervisor` does.
        roster: the jobs that are being denoised.
        cost: what its ticks cost; None until it told.
        tickets: everything that has not ended, decoding included.
        heard: when it last gave a sign of life.
        started: when it was started last; `starting` seconds it took to be ready.
        lost: since when it is not ready.
    """

    opening: Opening
    clock: Callable[[], float]
    metrics: Metrics
    ended: Callable[[Ticket, Closed], None]
    broken: Callable[[str], None] = lambda error: None
    supervise: Callable[[Opening, Callable[[Told], None], Callable[[], None]], Supervision] = Supervisor
    roster: Roster = field(default_factory=Roster)
    cost: Cost | None = None
    tickets: dict[str, Ticket] = field(default_factory=dict)
    is_ready: bool = False
    heard: float = 0.0
    started: float = 0.0
    starting: float = FIRST_START
    lost: float = 0.0
    supervisor: Supervision = field(init=False)
    _shapes: set[str] = field(default_factory=set)

    def open(self) -> None:
        """Start the worker."""
        self.heard = self.started = self.lost = self.clock()
        self.supervisor = self.supervise(self.opening, self._hear, self._died)
        self.supervisor.start()

    def close(self) -> None:
        """End the worker for good."""
        self.is_ready = False
        self.supervisor.close()

    @property
    def pending(self) -> float:
        """Seconds that its work will still take."""
        return sum(self.cost.share(job) for job in self.roster.jobs.values()) if self.cost else 0.0

    @property
    def due(self) -> float:
        """Seconds until it is expected to be ready."""
        return max(1.0, self.started + self.starting - self.clock())

    def expect(self, job: Job) -> Cost:
        """What a job would find if it were taken now, which is set in it; and what everything costs.

        Raises:
            Refused: the worker was never ready.
        """
        if self.cost is None:
            raise Refused("no worker is ready", "starting", self.due)
        cost = self.cost.knowing(job.group)
        self.roster.expect(job, self.clock(), cost)
        return cost

    def take(self, ticket: Ticket) -> None:
        """Have a picture drawn."""
        if not self.tickets:
            self.heard = self.clock()  # who had nothing to do had nothing to tell
        self._enter(ticket, self.clock())

    def cancel(self, ticket: Ticket) -> None:
        """Have it drawn no further. It ends when the worker says so, within a tick."""
        ticket.is_cancelled = True
        if self.is_ready:
            self.supervisor.ask(Cancel(ticket.id))
        else:
            self.end(ticket, Closed("cancelled"))

    def end(self, ticket: Ticket, closed: Closed) -> None:
        """The one place where a ticket ends."""
        del self.tickets[ticket.id]
        self.roster.leave(ticket.id)
        ticket.tell(closed)
        self.ended(ticket, closed)

    def look_after(self, stall: float) -> None:
        """End a worker that has work and gives no sign of life; answer those who wait for one that does not return."""
        if self.is_ready and self.tickets and self.clock() - self.heard > stall:
            log.error("a worker gives no sign of life", extra={"seconds": stall})
            self.supervisor.kill()
        if not self.is_ready and self.clock() - self.lost > stall:
            for ticket in list(self.tickets.values()):
                error = f"the worker died and was not back after {stall:g} s"
                self.end(ticket, Closed("failed", error=error, fault="WorkerDied"))

    def _enter(self, ticket: Ticket, arrived: float) -> None:
        job, order = ticket.job, ticket.order
        assert self.cost is not None
        self.cost = self.cost.knowing(job.group)
        self.roster.enter(job, arrived, self.cost)
        self.tickets[job.id] = ticket
        ticket.runs += 1
        expires = None if job.expires == float("inf") else job.expires
        self.supervisor.ask(
            Draw(job.id, job.tier, job.key, job.group.pipeline, job.request, expires, order.format, order.previews)
        )

    def _hear(self, told: Told) -> None:
        self.heard = self.clock()
        if isinstance(told, Ticked):
            for moved in told.moves:
                self._moved(moved)
        elif isinstance(told, Ended):
            if ticket := self.tickets.get(told.id):
                self.end(ticket, told.closed)
        elif isinstance(told, Preview):
            self._shown(told)
        elif isinstance(told, Ready):
            self._ready(told)
        else:
            self.broken(told.error)

    def _died(self) -> None:
        self.metrics.deaths.inc()
        self.started = self.clock()
        if self.is_ready:
            self.lost = self.started
        self.is_ready = False
        for ticket in list(self.tickets.values()):
            if ticket.is_cancelled:
                self.end(ticket, Closed("cancelled"))
            elif ticket.runs >= RUNS:
                error = f"the worker died {ticket.runs} times while this picture was drawn"
                self.end(ticket, Closed("failed", error=error, fault="WorkerDied"))

    def _ready(self, told: Ready) -> None:
        """What was not ended is drawn again from its beginning: the same seed, the same picture."""
        self.supervisor.opened()
        self.supervisor.opening = msgspec.structs.replace(self.opening, curves=told.curves)
        self.starting = max(0.1, self.clock() - self.started)
        curves = dict(told.curves)
        self.cost = Cost(curves) if self.cost is None else replace(self.cost, curves=curves)
        self.is_ready = True
        for name in list(self.roster.jobs):
            self.roster.leave(name)
        for ticket in self.tickets.values():
            ticket.job.index = ticket.job.passed = 0
            self._enter(ticket, ticket.job.arrived)
        log.info("a worker is ready", extra={"seconds": round(self.starting, 2), "again": len(self.tickets)})

    def _moved(self, told: Moved) -> None:
        jobs = [self.roster.jobs[name] for name in told.jobs if name in self.roster.jobs]
        self.roster.moved(jobs)
        assert self.cost is not None
        self.cost = self.cost.knowing(told.group).paced(told.group, told.pace)
        for job in jobs:
            self.tickets[job.id].tell(self.tickets[job.id].progress)
            if job.is_done:
                self.roster.leave(job.id)
        shape = self._shape(told.group)
        self.metrics.step.labels(str(told.rows), shape).observe(told.seconds)
        self.metrics.rows.labels(shape).observe(told.rows)

    def _shape(self, group: Group) -> str:
        """As metrics call it; they keep every name for ever, and clients choose sizes."""
        shape = f"{group.width}x{group.height}"
        if len(self._shapes) < MOST_SHAPES:
            self._shapes.add(shape)
        return shape if shape in self._shapes else "other"

    def _shown(self, told: Preview) -> None:
        if (ticket := self.tickets.get(told.id)) and told.content:
            ticket.tell(Shown(ticket.shown, told.index, told.content))
            ticket.shown += 1
