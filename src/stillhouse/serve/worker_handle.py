"""The server's handle of one worker process: the worker's state, as its events report it, and its unfinished requests.

A request stays in the handle until it has ended, so that no request is lost when the worker dies.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from stillhouse.errors import Refused
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import BatchKey, Job
from stillhouse.serve.engine.output import PreviewImage, RequestOutput
from stillhouse.serve.engine.request_pool import RequestPool
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.worker.messages import (
    Begun,
    Cancel,
    Event,
    Ready,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
    WorkerFailed,
)
from stillhouse.serve.worker.supervisor import ProcessSupervisor, WorkerSupervisor

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Largest number of times that an image is begun. It is not repeated without end, because it may itself have ended the
worker. From the second time on no other image is in progress meanwhile, so that none is blamed for another one."""
START_SECONDS = 10.0
"""Least time in seconds that a worker gets for its first message: it imports its libraries before."""
STEP_TOLERANCE = 4.0
"""Multiple of the predicted seconds of a step after which a worker counts as stalled, where stall_timeout is less."""
MAX_SHAPE_LABELS = 64
"""Number of image sizes that metrics distinguish; further sizes are counted together as "other"."""
DEFAULT_STARTUP_SECONDS = 10.0
"""Expected seconds from the start of a worker until it is ready, used until a start has been measured."""


@dataclass(slots=True)
class WorkerHandle:
    """One worker process and its unfinished requests. Not thread-safe: use from the server's event loop.

    Args:
        config: the first message to the worker. A worker that replaces a dead one also gets the measured latencies.
        clock: returns seconds of a monotonic clock; times below are on this clock.
        metrics: Prometheus metrics of the server.
        on_finished: called with the handle and the output of every request that has ended.
        on_broken: called with the error message when the worker cannot open a pipeline.
        make_supervisor: makes the supervisor of the worker from its config, a callback for events and one for deaths.
        on_begun: called with the handle of every stored job whose image the worker begins.
        pool: the jobs of requests that still need denoising steps.
        cost_model: latency model of the worker; None before it was ready for the first time.
        handles: unfinished requests by id, including those whose image is being decoded.
        is_ready: whether the worker accepts requests.
        last_seen: time of the worker's last event.
        started: time of the worker's last start.
        startup_seconds: seconds from the last start until the worker was ready.
        is_heard: whether the worker has sent an event since its last start.
        unavailable_since: time of the first start, or of the death that last ended the worker's readiness.
    """

    config: WorkerConfig
    clock: Callable[[], float]
    metrics: Metrics
    on_finished: Callable[[RequestHandle, RequestOutput], None]
    on_broken: Callable[[str], None] = lambda error: None
    make_supervisor: Callable[[WorkerConfig, Callable[[Event], None], Callable[[], None]], WorkerSupervisor] = (
        ProcessSupervisor
    )
    on_begun: Callable[[RequestHandle], None] = lambda handle: None
    pool: RequestPool = field(default_factory=RequestPool)
    cost_model: CostModel | None = None
    handles: dict[str, RequestHandle] = field(default_factory=dict)
    is_ready: bool = False
    last_seen: float = 0.0
    started: float = 0.0
    startup_seconds: float = DEFAULT_STARTUP_SECONDS
    unavailable_since: float = 0.0
    is_heard: bool = False
    supervisor: WorkerSupervisor = field(init=False)
    _shapes: set[str] = field(default_factory=set)

    def open(self) -> None:
        """Start the worker process without waiting until it is ready."""
        self.last_seen = self.started = self.unavailable_since = self.clock()
        self.supervisor = self.make_supervisor(self.config, self._handle_event, self._handle_death)
        self.supervisor.start()

    def close(self) -> None:
        """Kill the worker process and do not start another one."""
        self.is_ready = False
        self.supervisor.close()

    @property
    def pending_seconds(self) -> float:
        """Return the predicted seconds of work for all jobs in `pool`; 0 before the worker is first ready."""
        return sum(self.cost_model.device_seconds(job) for job in self.pool.jobs.values()) if self.cost_model else 0.0

    @property
    def ready_in(self) -> float:
        """Return the expected seconds until the worker is ready, at least 1."""
        return max(1.0, self.started + self.startup_seconds - self.clock())

    def estimate(self, job: Job) -> CostModel:
        """Set the arrival time, isolated latency and fair-queueing tag of a job, as if the job were submitted now.

        The isolated latency is the predicted latency without other jobs. The job is changed in place, but not added to
        `pool`. The latency model used for the prediction is returned.

        Raises:
            Refused: the worker has not been ready yet.
        """
        if self.cost_model is None:
            raise Refused("no worker is ready", "starting", retry_after=self.ready_in)
        cost = self.cost_model.with_batch_key(job.batch_key)
        self.pool.estimate(job, self.clock(), cost)
        return cost

    def submit(self, handle: RequestHandle) -> None:
        """Send a request to the worker, and keep the handle until the request ends.

        The worker must have been ready before.
        """
        if not self.handles:
            # An idle worker sends no events, so the time without events is counted only from now.
            self.last_seen = self.clock()
        self._send(handle, self.clock())

    def cancel(self, handle: RequestHandle) -> None:
        """Cancel a request.

        The request ends when the worker confirms the cancellation, after the current denoising step at the latest. If
        the worker is not ready, the request ends at once.
        """
        handle.is_cancelled = True
        if self.is_ready:
            self.supervisor.send(Cancel(handle.id))
        else:
            self.finish(handle, RequestOutput(handle.id, "cancelled"))

    def finish(self, handle: RequestHandle, output: RequestOutput) -> None:
        """End a request: remove its handle, publish its output and call `on_finished`. Call once per request."""
        del self.handles[handle.id]
        self.pool.remove(handle.id)
        handle.publish(output)
        self.on_finished(handle, output)

    def check_health(self, stall_timeout: float, open_timeout: float = float("inf")) -> None:
        """Kill the worker if it sends no events while it opens or has requests. End its requests if it is not back.

        Stored jobs end with the error type `WorkerUnavailable`, which puts them back in line.

        Args:
            stall_timeout: seconds without an event after which the worker is killed, and seconds without being ready
                after which its requests end.
            open_timeout: seconds from the start until the worker must be ready.
        """
        silent, allowed = self.clock() - self.last_seen, self._allowed_silence(stall_timeout)
        if self.is_ready and self.handles and silent > allowed:
            log.error("worker stalled", extra={"seconds": allowed})
            self.supervisor.kill()
        elif not self.is_ready and (silent > allowed or self.clock() - self.started > open_timeout):
            log.error("worker stalled while it was opening", extra={"seconds": round(self.clock() - self.started, 1)})
            self.last_seen = self.started = self.clock()
            self.supervisor.kill()
        if not self.is_ready and self.clock() - self.unavailable_since > stall_timeout:
            for handle in list(self.handles.values()):
                error = f"the worker died and was not back after {stall_timeout:g} s"
                kind = "WorkerUnavailable" if handle.generation_request.is_background else "WorkerDied"
                self.finish(handle, RequestOutput(handle.id, "failed", error=error, error_type=kind))

    def _allowed_silence(self, stall_timeout: float) -> float:
        """Return the seconds without an event after which the worker counts as stalled."""
        if not self.is_heard:
            return max(stall_timeout, START_SECONDS)
        if self.cost_model is None or not self.is_ready:
            return stall_timeout
        cost = self.cost_model
        steps = [
            cost.step_seconds(job.batch_key, max(job.rows, cost.saturation_rows(job.batch_key)))
            for job in self.pool.jobs.values()
        ]
        return max(stall_timeout, STEP_TOLERANCE * max(steps, default=0.0))

    def _send(self, handle: RequestHandle, arrived: float) -> None:
        job, request = handle.job, handle.generation_request
        assert self.cost_model is not None
        self.cost_model = self.cost_model.with_batch_key(job.batch_key)
        self.pool.add(job, arrived, self.cost_model)
        self.handles[job.id] = handle
        handle.is_begun = False
        self.supervisor.send(
            Submit(
                job.id,
                job.tier,
                job.key,
                job.batch_key,
                job.step_plan,
                job.resolved,
                None if job.expires == float("inf") else job.expires - self.clock(),
                request.format,
                request.previews,
                is_alone=handle.attempts > 0,
            )
        )

    def _handle_event(self, event: Event) -> None:
        self.last_seen, self.is_heard = self.clock(), True
        if isinstance(event, StepReport):
            for stats in event.steps:
                self._handle_step(stats)
        elif isinstance(event, RequestOutput):
            if handle := self.handles.get(event.id):
                self.finish(handle, event)
        elif isinstance(event, Begun):
            self._handle_begun(event)
        elif isinstance(event, PreviewImage):
            self._handle_preview(event)
        elif isinstance(event, Ready):
            self._handle_ready(event)
        elif isinstance(event, WorkerFailed):
            self.on_broken(event.error)

    def _handle_begun(self, event: Begun) -> None:
        if handle := self.handles.get(event.id):
            handle.attempts += 1
            handle.is_begun = True
            if handle.generation_request.is_background:
                self.on_begun(handle)

    def _handle_death(self) -> None:
        self.metrics.deaths.inc()
        self.started = self.last_seen = self.clock()
        self.is_heard = False
        if self.is_ready:
            self.unavailable_since = self.started
        self.is_ready = False
        for handle in list(self.handles.values()):
            if handle.is_cancelled:
                self.finish(handle, RequestOutput(handle.id, "cancelled"))
            elif handle.is_begun and handle.attempts >= MAX_ATTEMPTS:
                error = f"the worker died {handle.attempts} times while this image was generated"
                self.finish(handle, RequestOutput(handle.id, "failed", error=error, error_type="WorkerDied"))
            handle.is_begun = False

    def _handle_ready(self, event: Ready) -> None:
        """Mark the worker as ready and send it all unfinished requests, each to be run from its first step.

        A request that is sent twice gives the same image.
        """
        self.supervisor.mark_ready()
        self.supervisor.config = msgspec.structs.replace(self.config, curves=event.curves)
        self.startup_seconds = max(0.1, self.clock() - self.started)
        curves = dict(event.curves)
        self.cost_model = CostModel(curves) if self.cost_model is None else replace(self.cost_model, curves=curves)
        self.is_ready = True
        for job_id in list(self.pool.jobs):
            self.pool.remove(job_id)
        for handle in self.handles.values():
            handle.job.index = handle.job.steps_skipped = 0
            self._send(handle, handle.job.arrived)
        log.info("worker ready", extra={"seconds": round(self.startup_seconds, 2), "requeued": len(self.handles)})

    def _handle_step(self, stats: StepStats) -> None:
        jobs = [self.pool.jobs[job_id] for job_id in stats.jobs if job_id in self.pool.jobs]
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
        """Return the label of an image size in metrics: `WIDTHxHEIGHT`, or "other" if there are too many sizes.

        The number of labels is limited, because clients choose the sizes.
        """
        shape = f"{batch_key.width}x{batch_key.height}"
        if len(self._shapes) < MAX_SHAPE_LABELS:
            self._shapes.add(shape)
        return shape if shape in self._shapes else "other"

    def _handle_preview(self, preview: PreviewImage) -> None:
        if (handle := self.handles.get(preview.id)) and preview.content:
            handle.publish(msgspec.structs.replace(preview, number=handle.preview_count))
            handle.preview_count += 1
