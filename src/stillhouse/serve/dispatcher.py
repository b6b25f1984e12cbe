"""The front: takes orders from every door, admits them, hands them to workers, and tells how they end.

It lives in the server's loop, never waits there, and knows of each worker what the worker tells.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from stillhouse.check import check_choice
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest, NotAllowed, Refused
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest, read_manifest
from stillhouse.pipelines.resolve import resolve
from stillhouse.serve.client import Client, RateLimiter
from stillhouse.serve.engine.admission import check_admission
from stillhouse.serve.engine.executor import default_request, make_batch_key, plan_steps
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import POLICIES, Policy
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.worker.messages import Event, RequestOutput, WorkerConfig
from stillhouse.serve.worker.supervisor import ProcessSupervisor, WorkerSupervisor
from stillhouse.serve.worker_handle import WorkerHandle
from stillhouse.units import parse_duration, parse_size

log = logging.getLogger(__name__)

MAX_PROMPT_CHARS = 10_000
"""Letters of a prompt: a hundred times what text encoders read, and little work for tokenizers."""


@dataclass(slots=True)
class Dispatcher:
    """Orders in, tickets out. To be used in one loop.

    Args:
        settings: what the server was told.
        manifests: of every tier's pipeline.
        opening: what each worker is told first.
        metrics: counts.
        meter: what each key may still ask for.
        clock: seconds, the workers' own: time.monotonic.
        wall: seconds since the epoch.
        broken: called when a worker cannot open a pipeline.
        supervise: starts a worker and holds it, as `Supervisor` does.
        traced: called with every ticket, its end, and when that was, in seconds since the epoch.
    """

    settings: ServerSettings
    manifests: Mapping[str, Manifest]
    worker_config: WorkerConfig
    metrics: Metrics = field(default_factory=Metrics)
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    on_broken: Callable[[str], None] = lambda error: None
    make_supervisor: Callable[[WorkerConfig, Callable[[Event], None], Callable[[], None]], WorkerSupervisor] = (
        ProcessSupervisor
    )
    trace_request: Callable[[RequestHandle, RequestOutput, float], None] = lambda ticket, closed, now: None
    is_draining: bool = False
    workers: list[WorkerHandle] = field(default_factory=list)
    _policy: Policy = field(init=False)
    _monitor_task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._policy = POLICIES[self.settings.policy]

    # What the doors ask.

    def submit(self, request: GenerationRequest) -> RequestHandle:
        """Take an order.

        Raises:
            InvalidRequest: what its pipeline cannot do, or more than the settings allow.
            NotAllowed: a tier that the caller may not ask for.
            Refused: not now.
        """
        (ticket,) = self.submit_all([request])
        return ticket

    def validate(self, request: GenerationRequest) -> None:
        """Refuse what could never be drawn, without taking it.

        Raises:
            InvalidRequest, NotAllowed: as `place`.
        """
        tier = self._resolve_tier(request)
        amount = _pixel_steps(self._make_job(request, tier, tier))
        daily = request.client.daily
        if daily is not None and amount > daily:
            allowed = f"{daily:,.0f} pixel-steps a day with this key"
            raise InvalidRequest(f"a picture of {amount:,.0f} pixel-steps", allowed=allowed)

    def submit_all(self, requests: Sequence[GenerationRequest]) -> list[RequestHandle]:
        """Take all of these, which one caller asks for at once, or none.

        Raises:
            StillhouseError: as `place`.
        """
        meant = [(order, self._resolve_tier(order)) for order in requests]
        try:
            return self._submit_jobs([(order, tier, self._make_job(order, tier, tier)) for order, tier in meant])
        except Refused as refused:
            # Nobody is told of a patient one: it is tried again.
            for order, tier in meant:
                if not order.is_background:
                    self.metrics.rejected.labels(refused.reason, tier).inc()
                    told = {"reason": refused.reason, "key": order.client.key, "tier": tier}
                    log.info("a request was refused", extra=told)
            raise

    def cancel(self, request_id: str, reason: str = "asked") -> bool:
        """Draw that job no further; False where there is no such job, or it has ended.

        Its ticket ends when the worker says so, within a tick.
        """
        for station in self.workers:
            if ticket := station.handles.get(request_id):
                if not ticket.is_cancelled:
                    self.metrics.cancelled.labels(reason).inc()
                station.cancel(ticket)
                return True
        return False

    def get(self, request_id: str) -> RequestHandle | None:
        """The ticket of a job that has not ended."""
        return next((station.handles[request_id] for station in self.workers if request_id in station.handles), None)

    @property
    def handles(self) -> Iterable[RequestHandle]:
        """Everything that has not ended."""
        return [ticket for station in self.workers for ticket in station.handles.values()]

    @property
    def running(self) -> int:
        """See `metrics.State`."""
        return sum(ticket.job.index > 0 for ticket in self.handles)

    @property
    def waiting(self) -> int:
        """See `metrics.State`."""
        return sum(ticket.job.index == 0 for ticket in self.handles)

    @property
    def pending_seconds(self) -> float:
        """See `metrics.State`."""
        return sum(station.pending_seconds for station in self.workers)

    @property
    def is_ready(self) -> bool:
        """See `metrics.State`."""
        return not self.is_draining and any(station.is_ready for station in self.workers)

    @property
    def background_capacity(self) -> int:
        """How many orders that nobody waits for may be placed: the other half of the queue is for people."""
        return max(0, self.settings.queue // 2 - sum(len(station.handles) for station in self.workers))

    # Its life.

    def open(self) -> None:
        """Start a worker for each device."""
        for device in self.settings.devices or (None,):
            self.add_worker(device)
        self.metrics.watch_state(self)
        self._monitor_task = asyncio.get_running_loop().create_task(self._monitor_workers())

    async def drain(self, timeout: float) -> None:
        """Take nothing more; wait for what was taken; what has not ended in time ends as failed."""
        self.is_draining = True
        until = self.clock() + timeout
        while self.handles and self.clock() < until:
            await asyncio.sleep(0.02)
        for station in self.workers:
            for ticket in list(station.handles.values()):
                error = "the server is being shut down"
                station.finish(ticket, RequestOutput("failed", error=error, error_type="Drained"))

    def close(self) -> None:
        """End the workers."""
        if self._monitor_task:
            self._monitor_task.cancel()
        for station in self.workers:
            station.close()

    def add_worker(self, device: str | None = None) -> WorkerHandle:
        """Start one more worker, which sees this device only."""
        opening = msgspec.structs.replace(self.worker_config, device=device)
        station = WorkerHandle(
            opening, self.clock, self.metrics, self._handle_finished, self.on_broken, self.make_supervisor
        )
        self.workers.append(station)
        station.open()
        return station

    async def _monitor_workers(self) -> None:
        stall = parse_duration(self.settings.stall)
        while True:
            await asyncio.sleep(min(1.0, stall / 4))
            for station in self.workers:
                station.check_health(stall)

    def _handle_finished(self, handle: RequestHandle, output: RequestOutput) -> None:
        tier = handle.job.tier.name
        if output.finish_reason in ("failed", "expired"):
            self.rate_limiter.refund(handle.generation_request.client, _pixel_steps(handle.job))
        if output.finish_reason == "drawn":
            in_time = None if handle.generation_request.is_background else self.clock() <= handle.job.deadline
            self.metrics.record_finished(tier, handle.job.batch_key.pipeline, in_time)
            self.metrics.queue.labels(tier).observe(output.queue_seconds)
            self.metrics.denoise.labels(tier).observe(output.denoise_seconds)
        elif output.finish_reason == "failed":
            self.metrics.failed.labels(output.error_type).inc()
        elif output.finish_reason == "expired":
            self.metrics.rejected.labels("expired", tier).inc()
        self.trace_request(handle, output, self.wall_clock())
        told = {
            "request_id": handle.id,
            "key": handle.generation_request.client.key,
            "tier": tier,
            "outcome": output.finish_reason,
            "seconds": round(self.clock() - handle.job.arrived, 4),
            "fault": output.error_type,
        }
        if output.finish_reason == "failed":
            log.warning("a job failed", extra={**told, "error": output.error, "way": output.traceback_summary})
        else:
            log.info("a job ended", extra=told)

    # Admission.

    def _resolve_tier(self, request: GenerationRequest) -> str:
        tier = request.tier or request.client.tier
        check_choice("model", tier, self.settings.tiers)
        if tier not in request.client.tiers:
            raise NotAllowed(f"model {tier!r} with this key", allowed=", ".join(sorted(request.client.tiers)))
        return tier

    def _submit_jobs(self, jobs: Sequence[tuple[GenerationRequest, str, Job]]) -> list[RequestHandle]:
        if self.is_draining:
            raise Refused("the server is being shut down", "draining", 5.0)
        station = self._select_worker()
        caller, amount = jobs[0][0].client, sum(_pixel_steps(job) for *_, job in jobs)
        if short := self.rate_limiter.charge(caller, amount):
            told = f"key {caller.key} has no {amount:,.0f} pixel-steps left"
            raise Refused(told, short.reason, short.retry_after)
        tickets: list[RequestHandle] = []
        try:
            for order, tier, job in jobs:
                tickets.append(self._submit_job(order, tier, job, station))
        except Exception:
            for ticket in tickets:
                self.cancel(ticket.id, "refused")
            self.rate_limiter.refund(caller, amount)
            raise
        if less := amount - sum(_pixel_steps(ticket.job) for ticket in tickets):
            self.rate_limiter.refund(caller, less)  # who is given less pays less
        return tickets

    def _submit_job(self, request: GenerationRequest, tier: str, job: Job, worker: WorkerHandle) -> RequestHandle:
        drawn_as, job = self._admit_or_degrade(request, tier, job, worker)
        if drawn_as != tier:
            self.metrics.degraded.labels(tier, drawn_as).inc()
        self.metrics.pixel_steps.labels(tier).inc(_pixel_steps(job))
        ticket = RequestHandle(request, job, drawn_as, self.wall_clock())
        worker.submit(ticket)
        return ticket

    def _admit_or_degrade(
        self, request: GenerationRequest, tier: str, job: Job, worker: WorkerHandle
    ) -> tuple[str, Job]:
        """The job as it is taken: as its tier draws, or as one of those draws to which the tier may be degraded.

        Raises:
            Refused: none of them would be in time.
        """
        refused = self._check_admission(request, tier, job, worker)
        if refused is None:
            return tier, job
        for other in self.settings.tiers[tier].degrade if refused.reason == "deadline" else ():
            try:
                less = self._make_job(request, tier, other)
            except InvalidRequest:  # that pipeline cannot draw what is asked for
                continue
            if self._check_admission(request, tier, less, worker) is None:
                return other, less
        raise refused

    def _check_admission(self, request: GenerationRequest, tier: str, job: Job, worker: WorkerHandle) -> Refused | None:
        cost = worker.estimate(job)
        limits = self.settings.admission_limits(tier)
        # Those that are being decoded wait, too, though no tick is for them.
        decoding = len(worker.handles) - len(worker.pool.jobs)
        lateness = float("inf") if request.is_background else limits.lateness
        limits = replace(limits, max_jobs=limits.max_jobs - decoding, lateness=lateness)
        found = check_admission(job, list(worker.pool.jobs.values()), self._policy, job.arrived, cost, limits)
        if found is None:
            return None
        if found.reason == "queue":
            return Refused(f"{len(worker.handles)} pictures wait already", "queue", found.retry_after)
        most = limits.allowed_seconds(job)
        late = (
            f"a picture that takes {job.isolated_seconds:.1f} s alone would take {most + found.retry_after:.1f} s now"
        )
        return Refused(f"{late}, and {most:.1f} s are the most in this tier", "deadline", found.retry_after)

    def _make_job(self, generation_request: GenerationRequest, tier: str, effective_tier: str) -> Job:
        """The job of an order that is drawn as a tier draws."""
        way = self.settings.tiers[effective_tier]
        manifest = self.manifests[effective_tier]
        asked = generation_request.request
        _check_prompt_length(asked)
        resolved = resolve(
            manifest,
            replace(
                asked,
                steps=asked.steps if asked.steps is not None and effective_tier == tier else way.steps,
                guidance=way.guidance if asked.guidance is None else asked.guidance,
                sampler=asked.sampler if asked.sampler is not None and effective_tier == tier else way.sampler,
            ),
        )
        self._check_limits(resolved.request, tier)
        promised = self.settings.tiers[tier].make_tier(tier)
        if generation_request.client.weight is not None:
            promised = replace(promised, weight=generation_request.client.weight)
        group = make_batch_key(way.pipeline, resolved)
        expires = (
            float("inf")
            if generation_request.queue_timeout is None
            else self.clock() + generation_request.queue_timeout
        )
        name = generation_request.id or uuid4().hex
        return Job(
            name, promised, generation_request.client.key, group, plan_steps(manifest, resolved), resolved, expires
        )

    def _check_limits(self, request: ImageRequest, tier: str) -> None:
        assert request.width is not None and request.height is not None and request.steps is not None
        most = self.settings.tiers[tier].max_steps
        if request.steps > most:
            raise InvalidRequest(f"steps is {request.steps}", allowed=f"up to {most} for model {tier!r}")
        if request.width * request.height > self.settings.pixels:
            raise InvalidRequest(
                f"a picture of {request.width}x{request.height}", allowed=f"up to {self.settings.pixels:,} pixels"
            )

    def _select_worker(self) -> WorkerHandle:
        """The worker with the least to do.

        Raises:
            Refused: none is ready.
        """
        ready = [station for station in self.workers if station.is_ready]
        if not ready:
            raise Refused("no worker is ready", "starting", min(station.ready_in for station in self.workers))
        return min(ready, key=lambda station: station.pending_seconds)


def _pixel_steps(job: Job) -> float:
    """Pixel-steps."""
    return float(job.batch_key.pixels * len(job.step_plan.rows))


def _check_prompt_length(request: ImageRequest) -> None:
    for name, text in (("the prompt", request.prompt), ("the negative prompt", request.negative_prompt)):
        if len(text) > MAX_PROMPT_CHARS:
            raise InvalidRequest(f"{name} has {len(text):,} letters", allowed=f"up to {MAX_PROMPT_CHARS:,}")


def make_dispatcher(settings: ServerSettings, cache: Path | None = None, **options: Any) -> Dispatcher:
    """The front of a server that was told this; `options` are those of `Front`.

    Raises:
        UnknownModel, PipelineError: a tier's pipeline that cannot be served.
        InvalidRequest: a tier whose own steps, guidance or sampler its pipeline cannot draw with.
    """
    places = {tier.pipeline: find_pipeline(tier.pipeline) for tier in settings.tiers.values()}
    read = {name: read_manifest(directory) for name, directory in places.items()}
    opening = WorkerConfig(
        {name: str(directory) for name, directory in places.items()},
        settings.policy,
        parse_size(settings.memory),
        settings.backend,
        settings.precision,
        settings.threads,
        str(cache) if cache else None,
    )
    manifests = {name: read[tier.pipeline] for name, tier in settings.tiers.items()}
    front = Dispatcher(settings, manifests, opening, **options)
    for name in settings.tiers:
        try:
            front.validate(GenerationRequest(default_request(manifests[name]), Client("", name, frozenset((name,)))))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"tier {name!r} cannot draw: {error.given}", allowed=error.allowed, fix=error.fix
            ) from error
    return front
