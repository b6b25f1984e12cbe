"""A station: one worker as the server sees it, by what the worker tells.

What the worker has to draw is kept here until it has ended; so nothing is lost with a worker.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from stillhouse.errors import Refused
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import BatchKey, Job
from stillhouse.serve.engine.request_pool import RequestPool
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.request_handle import PreviewImage, RequestHandle
from stillhouse.serve.worker.messages import (
    Cancel,
    Event,
    OutputEvent,
    Preview,
    Ready,
    RequestOutput,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
)
from stillhouse.serve.worker.supervisor import ProcessSupervisor, WorkerSupervisor

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
"""How often a picture is begun at most: workers that died are to blame, not the picture, but who knows."""
MAX_SHAPE_LABELS = 64
"""Sizes of pictures that metrics tell one by one."""
DEFAULT_STARTUP_SECONDS = 10.0
"""Seconds that a worker is expected to need before it is ready, until one was."""


@dataclass(slots=True)
class WorkerHandle:
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

    config: WorkerConfig
    clock: Callable[[], float]
    metrics: Metrics
    on_finished: Callable[[RequestHandle, RequestOutput], None]
    on_broken: Callable[[str], None] = lambda error: None
    make_supervisor: Callable[[WorkerConfig, Callable[[Event], None], Callable[[], None]], WorkerSupervisor] = (
        ProcessSupervisor
    )
    pool: RequestPool = field(default_factory=RequestPool)
    cost_model: CostModel | None = None
    handles: dict[str, RequestHandle] = field(default_factory=dict)
    is_ready: bool = False
    last_seen: float = 0.0
    started: float = 0.0
    startup_seconds: float = DEFAULT_STARTUP_SECONDS
    unavailable_since: float = 0.0
    supervisor: WorkerSupervisor = field(init=False)
    _shapes: set[str] = field(default_factory=set)

    def open(self) -> None:
        """Start the worker."""
        self.last_seen = self.started = self.unavailable_since = self.clock()
        self.supervisor = self.make_supervisor(self.config, self._handle_event, self._handle_death)
        self.supervisor.start()

    def close(self) -> None:
        """End the worker for good."""
        self.is_ready = False
        self.supervisor.close()

    @property
    def pending_seconds(self) -> float:
        """Seconds that its work will still take."""
        return sum(self.cost_model.device_seconds(job) for job in self.pool.jobs.values()) if self.cost_model else 0.0

    @property
    def ready_in(self) -> float:
        """Seconds until it is expected to be ready."""
        return max(1.0, self.started + self.startup_seconds - self.clock())

    def estimate(self, job: Job) -> CostModel:
        """What a job would find if it were taken now, which is set in it; and what everything costs.

        Raises:
            Refused: the worker was never ready.
        """
        if self.cost_model is None:
            raise Refused("no worker is ready", "starting", self.ready_in)
        cost = self.cost_model.with_batch_key(job.batch_key)
        self.pool.estimate(job, self.clock(), cost)
        return cost

    def submit(self, handle: RequestHandle) -> None:
        """Have a picture drawn."""
        if not self.handles:
            self.last_seen = self.clock()  # who had nothing to do had nothing to tell
        self._send(handle, self.clock())

    def cancel(self, handle: RequestHandle) -> None:
        """Have it drawn no further. It ends when the worker says so, within a tick."""
        handle.is_cancelled = True
        if self.is_ready:
            self.supervisor.send(Cancel(handle.id))
        else:
            self.finish(handle, RequestOutput("cancelled"))

    def finish(self, handle: RequestHandle, output: RequestOutput) -> None:
        """The one place where a ticket ends."""
        del self.handles[handle.id]
        self.pool.remove(handle.id)
        handle.publish(output)
        self.on_finished(handle, output)

    def check_health(self, stall_timeout: float) -> None:
        """End a worker that has work and gives no sign of life; answer those who wait for one that does not return."""
        if self.is_ready and self.handles and self.clock() - self.last_seen > stall_timeout:
            log.error("a worker gives no sign of life", extra={"seconds": stall_timeout})
            self.supervisor.kill()
        if not self.is_ready and self.clock() - self.unavailable_since > stall_timeout:
            for ticket in list(self.handles.values()):
                error = f"the worker died and was not back after {stall_timeout:g} s"
                self.finish(ticket, RequestOutput("failed", error=error, error_type="WorkerDied"))

    def _send(self, handle: RequestHandle, arrived: float) -> None:
        job, order = handle.job, handle.generation_request
        assert self.cost_model is not None
        self.cost_model = self.cost_model.with_batch_key(job.batch_key)
        self.pool.add(job, arrived, self.cost_model)
        self.handles[job.id] = handle
        handle.attempts += 1
        expires = None if job.expires == float("inf") else job.expires
        self.supervisor.send(
            Submit(
                job.id, job.tier, job.key, job.batch_key.pipeline, job.resolved, expires, order.format, order.previews
            )
        )

    def _handle_event(self, event: Event) -> None:
        self.last_seen = self.clock()
        if isinstance(event, StepReport):
            for moved in event.steps:
                self._handle_step(moved)
        elif isinstance(event, OutputEvent):
            if ticket := self.handles.get(event.id):
                self.finish(ticket, event.output)
        elif isinstance(event, Preview):
            self._handle_preview(event)
        elif isinstance(event, Ready):
            self._handle_ready(event)
        else:
            self.on_broken(event.error)

    def _handle_death(self) -> None:
        self.metrics.deaths.inc()
        self.started = self.clock()
        if self.is_ready:
            self.unavailable_since = self.started
        self.is_ready = False
        for ticket in list(self.handles.values()):
            if ticket.is_cancelled:
                self.finish(ticket, RequestOutput("cancelled"))
            elif ticket.attempts >= MAX_ATTEMPTS:
                error = f"the worker died {ticket.attempts} times while this picture was drawn"
                self.finish(ticket, RequestOutput("failed", error=error, error_type="WorkerDied"))

    def _handle_ready(self, event: Ready) -> None:
        """What was not ended is drawn again from its beginning: the same seed, the same picture."""
        self.supervisor.mark_ready()
        self.supervisor.config = msgspec.structs.replace(self.config, curves=event.curves)
        self.startup_seconds = max(0.1, self.clock() - self.started)
        curves = dict(event.curves)
        self.cost_model = CostModel(curves) if self.cost_model is None else replace(self.cost_model, curves=curves)
        self.is_ready = True
        for name in list(self.pool.jobs):
            self.pool.remove(name)
        for ticket in self.handles.values():
            ticket.job.index = ticket.job.steps_skipped = 0
            self._send(ticket, ticket.job.arrived)
        log.info("a worker is ready", extra={"seconds": round(self.startup_seconds, 2), "again": len(self.handles)})

    def _handle_step(self, stats: StepStats) -> None:
        jobs = [self.pool.jobs[name] for name in stats.jobs if name in self.pool.jobs]
        self.pool.record_step(jobs)
        assert self.cost_model is not None
        self.cost_model = self.cost_model.with_batch_key(stats.batch_key).with_slowdown(stats.batch_key, stats.slowdown)
        for job in jobs:
            self.handles[job.id].publish(self.handles[job.id].progress)
            if job.is_done:
                self.pool.remove(job.id)
        shape = self._shape_label(stats.batch_key)
        self.metrics.step.labels(str(stats.rows), shape).observe(stats.seconds)
        self.metrics.rows.labels(shape).observe(stats.rows)

    def _shape_label(self, batch_key: BatchKey) -> str:
        """As metrics call it; they keep every name for ever, and clients choose sizes."""
        shape = f"{batch_key.width}x{batch_key.height}"
        if len(self._shapes) < MAX_SHAPE_LABELS:
            self._shapes.add(shape)
        return shape if shape in self._shapes else "other"

    def _handle_preview(self, preview: Preview) -> None:
        if (ticket := self.handles.get(preview.id)) and preview.content:
            ticket.publish(PreviewImage(ticket.preview_count, preview.index, preview.content))
            ticket.preview_count += 1
