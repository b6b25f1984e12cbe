"""Dispatcher: decides which requests are accepted, sends them to worker processes and handles their results.

The dispatcher runs in the server's event loop and never blocks. The state of a worker process is known only from the
worker's messages.
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
from stillhouse.cpu import usable_cores
from stillhouse.errors import InvalidRequest, NotAllowed, Refused
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest, read_manifest
from stillhouse.pipelines.resolve import resolve
from stillhouse.serve.client import Client, RateLimiter
from stillhouse.serve.engine.executor import default_request
from stillhouse.serve.engine.job import Job, Tier, make_batch_key, plan_steps
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.engine.policy import POLICIES, AdmissionLimits, Policy, check_admission
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.worker.locate_pipeline import PipelineReference, pipeline_id
from stillhouse.serve.worker.messages import Event, WorkerConfig
from stillhouse.serve.worker.supervisor import ProcessSupervisor, WorkerSupervisor
from stillhouse.serve.worker_handle import WorkerHandle
from stillhouse.units import parse_duration, parse_size

log = logging.getLogger(__name__)

ADMISSION_MARGIN = 0.5
"""Reserve that is subtracted from the largest accepted latency of every tier, as a multiple of the isolated latency
(latency without other requests). The reserve covers what predictions leave out, such as decoding and later requests."""
MAX_PROMPT_CHARS = 10_000
"""Largest number of characters of a prompt: far more than text encoders read, yet cheap to tokenize."""


@dataclass(slots=True)
class Dispatcher:
    """Admission and worker selection of all requests. Not thread-safe: use from one event loop.

    Args:
        settings: server settings.
        manifests: manifest (description) of each tier's pipeline, by tier name.
        worker_config: configuration sent to each worker.
        metrics: Prometheus metrics of the server.
        rate_limiter: rate limits of API keys.
        clock: returns seconds of a monotonic clock.
        wall_clock: returns seconds since the epoch.
        on_broken: called with the error message when a worker cannot load a pipeline.
        make_supervisor: makes the supervisor of a worker process from the worker's configuration, a callback for its
            events and a callback for its deaths.
        on_begun: called with every stored job whose image a worker begins.
        trace_request: called with every request that has ended, its result, and the time of its end in seconds since
            the epoch.
        is_draining: whether new requests are rejected because the server shuts down.
        workers: one handle per worker process.
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
    on_begun: Callable[[RequestHandle], None] = lambda handle: None
    trace_request: Callable[[RequestHandle, RequestOutput, float], None] = lambda handle, output, now: None
    is_draining: bool = False
    workers: list[WorkerHandle] = field(default_factory=list)
    _policy: Policy = field(init=False)
    _monitor_task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._policy = POLICIES[self.settings.policy]

    def submit(self, request: GenerationRequest) -> RequestHandle:
        """Check whether a request is valid and can finish in time, send it to a worker, and return its handle.

        Raises:
            InvalidRequest: the pipeline cannot run the request, or the request exceeds the settings' limits.
            NotAllowed: the client may not use the tier.
            Refused: the server cannot take the request now. `retry_after` says after how many seconds to try again.
        """
        (handle,) = self.submit_all([request])
        return handle

    def validate(self, request: GenerationRequest) -> None:
        """Check a request without submitting it. A request that exceeds the daily quota of its key is invalid.

        Raises:
            InvalidRequest: the pipeline cannot run the request, or the request exceeds a limit.
            NotAllowed: the client may not use the tier.
        """
        tier = self._resolve_tier(request)
        amount = _pixel_steps(self._make_job(request, tier, tier))
        daily = request.client.daily
        if daily is not None and amount > daily:
            allowed = f"up to {daily:,.0f} pixel-steps a day with this key"
            raise InvalidRequest(
                f"the image takes {amount:,.0f} pixel-steps (pixels times evaluations)", allowed=allowed
            )

    def submit_all(self, requests: Sequence[GenerationRequest]) -> list[RequestHandle]:
        """Submit all requests of a list, and return their handles in the same order.

        All requests must be of one client. If a request is invalid or not allowed, or the server cannot take all
        requests now, none is submitted and a StillhouseError is raised.
        """
        tiers = [self._resolve_tier(request) for request in requests]
        pairs = list(zip(requests, tiers, strict=True))
        try:
            return self._submit_jobs([(request, tier, self._make_job(request, tier, tier)) for request, tier in pairs])
        except Refused as refused:
            # Rejected background requests (stored jobs) are neither counted nor logged, because JobQueue submits them
            # again until they are accepted.
            for request, tier in pairs:
                if not request.is_background:
                    self.metrics.rejected.labels(refused.reason, tier).inc()
                    fields = {"reason": refused.reason, "key": request.client.key, "tier": tier}
                    log.info("request rejected", extra=fields)
            raise

    def cancel(self, request_id: str, reason: str = "requested") -> bool:
        """Cancel an unfinished request; return False if no unfinished request has this id.

        The request ends when the worker confirms the cancellation, after the current denoising step at the latest.

        Args:
            request_id: id of the request.
            reason: value of the label `reason` of the metric `cancelled`.
        """
        for worker in self.workers:
            if handle := worker.handles.get(request_id):
                if not handle.is_cancelled:
                    self.metrics.cancelled.labels(reason).inc()
                worker.cancel(handle)
                return True
        return False

    def get(self, request_id: str) -> RequestHandle | None:
        """Return the handle of the unfinished request with this id, or None if there is none."""
        return next((worker.handles[request_id] for worker in self.workers if request_id in worker.handles), None)

    @property
    def handles(self) -> Iterable[RequestHandle]:
        """Return the handles of all unfinished requests."""
        return [handle for worker in self.workers for handle in worker.handles.values()]

    @property
    def running(self) -> int:
        """Return the number of unfinished requests with at least one completed network evaluation."""
        return sum(handle.job.index > 0 for handle in self.handles)

    @property
    def waiting(self) -> int:
        """Return the number of unfinished requests without a completed network evaluation."""
        return sum(handle.job.index == 0 for handle in self.handles)

    @property
    def pending_seconds(self) -> float:
        """Return the predicted seconds of work for all accepted requests, summed over the workers."""
        return sum(worker.pending_seconds for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Return whether new requests are accepted: a worker is ready, and the server is not shutting down."""
        return not self.is_draining and any(worker.is_ready for worker in self.workers)

    @property
    def background_capacity(self) -> int:
        """Return how many stored jobs may be submitted now as background requests.

        Background requests are submitted only while there are fewer unfinished requests than half of the setting
        `max_queue`. The other half is reserved for interactive requests.
        """
        return max(0, self.settings.max_queue // 2 - sum(len(worker.handles) for worker in self.workers))

    def open(self) -> None:
        """Start the worker processes of the settings, and the task that watches the workers' health."""
        for device in self.settings.devices or (None,) * self.settings.workers:
            self.add_worker(device)
        self.metrics.watch_state(self)
        self._monitor_task = asyncio.get_running_loop().create_task(self._monitor_workers())

    async def drain(self, timeout: float) -> None:
        """Reject new requests, and wait until all accepted requests have ended.

        Requests that are unfinished after `timeout` seconds fail.
        """
        self.is_draining = True
        deadline = self.clock() + timeout
        while self.handles and self.clock() < deadline:
            await asyncio.sleep(0.02)
        for worker in self.workers:
            for handle in list(worker.handles.values()):
                error = "the server is being shut down"
                worker.finish(handle, RequestOutput(handle.id, "failed", error=error, error_type="ServerShutdown"))

    def close(self) -> None:
        """Stop all worker processes."""
        if self._monitor_task:
            self._monitor_task.cancel()
        for worker in self.workers:
            worker.close()

    def add_worker(self, device: str | None = None) -> WorkerHandle:
        """Start a worker process and return its handle.

        Args:
            device: the only GPU that the worker sees, named as in CUDA_VISIBLE_DEVICES; None shows it all devices.
        """
        config = msgspec.structs.replace(self.worker_config, device=device)
        worker = WorkerHandle(
            config,
            self.clock,
            self.metrics,
            self._handle_finished,
            self.on_broken,
            self.make_supervisor,
            on_begun=lambda handle: self.on_begun(handle),
        )
        self.workers.append(worker)
        worker.open()
        return worker

    async def _monitor_workers(self) -> None:
        stall_timeout = parse_duration(self.settings.stall_timeout)
        open_timeout = parse_duration(self.settings.open_timeout)
        while True:
            await asyncio.sleep(min(1.0, stall_timeout / 4))
            for worker in self.workers:
                worker.check_health(stall_timeout, open_timeout)

    def _handle_finished(self, handle: RequestHandle, output: RequestOutput) -> None:
        tier = handle.job.tier.name
        if output.finish_reason in ("failed", "expired"):
            self.rate_limiter.refund(handle.generation_request.client, _pixel_steps(handle.job))
        if output.finish_reason == "finished":
            in_time = None if handle.generation_request.is_background else self.clock() <= handle.job.deadline
            self.metrics.record_finished(tier, handle.job.batch_key.pipeline, in_time)
            self.metrics.queue.labels(tier).observe(output.queue_seconds)
            self.metrics.denoise.labels(tier).observe(output.denoise_seconds)
        elif output.finish_reason == "failed":
            self.metrics.failed.labels(output.error_type).inc()
        elif output.finish_reason == "expired":
            self.metrics.rejected.labels("expired", tier).inc()
        self.trace_request(handle, output, self.wall_clock())
        fields = {
            "request_id": handle.id,
            "key": handle.generation_request.client.key,
            "tier": tier,
            "finish_reason": output.finish_reason,
            "seconds": round(self.clock() - handle.job.arrived, 4),
            "error_type": output.error_type,
        }
        if output.finish_reason == "failed":
            log.warning(
                "request failed", extra={**fields, "error": output.error, "traceback_summary": output.traceback_summary}
            )
        else:
            log.info("request finished", extra=fields)

    def _resolve_tier(self, request: GenerationRequest) -> str:
        tier = request.tier or request.client.tier
        check_choice("model", tier, self.settings.tiers)
        if tier not in request.client.tiers:
            raise NotAllowed(f"this key may not use model {tier!r}", allowed=", ".join(sorted(request.client.tiers)))
        return tier

    def _submit_jobs(self, jobs: Sequence[tuple[GenerationRequest, str, Job]]) -> list[RequestHandle]:
        if self.is_draining:
            raise Refused("the server is being shut down", "draining", retry_after=5.0)
        worker = self._select_worker()
        client, amount = jobs[0][0].client, sum(_pixel_steps(job) for *_, job in jobs)
        self._charge(client, amount)
        handles: list[RequestHandle] = []
        try:
            for request, tier, job in jobs:
                handles.append(self._submit_job(request, tier, job, worker))
        except Exception:
            for handle in handles:
                self.cancel(handle.id, "rejected")
            self.rate_limiter.refund(client, amount)
            raise
        # A request that was degraded (moved to another tier) usually costs less than was charged, so the difference is
        # refunded.
        if excess := amount - sum(_pixel_steps(handle.job) for handle in handles):
            self.rate_limiter.refund(client, excess)
        return handles

    def _charge(self, client: Client, amount: float) -> None:
        if exceeded := self.rate_limiter.charge(client, amount):
            message = f"key {client.key} has fewer than {amount:,.0f} pixel-steps (pixels times evaluations) left"
            raise Refused(message, exceeded.reason, exceeded.retry_after)

    def _submit_job(self, request: GenerationRequest, tier: str, job: Job, worker: WorkerHandle) -> RequestHandle:
        effective_tier, job = self._admit_or_degrade(request, tier, job, worker)
        if effective_tier != tier:
            self.metrics.degraded.labels(tier, effective_tier).inc()
        self.metrics.pixel_steps.labels(tier).inc(_pixel_steps(job))
        handle = RequestHandle(request, job, effective_tier, self.wall_clock(), request.attempts)
        worker.submit(handle)
        return handle

    def _admit_or_degrade(
        self, request: GenerationRequest, tier: str, job: Job, worker: WorkerHandle
    ) -> tuple[str, Job]:
        """Return the name of the first tier (model) that can finish a request in time, and the job for this tier.

        The requested tier is tried first. If the request would finish too late there, the tiers in the requested tier's
        setting `degrade` are tried in order.

        Args:
            request: the request.
            tier: name of the requested tier.
            job: the request's job for the requested tier.
            worker: worker that would run the job.

        Raises:
            Refused: no tier can finish the request in time, or the worker's queue is full.
        """
        refused = self._check_admission(request, tier, job, worker)
        if refused is None:
            return tier, job
        for other in self.settings.tiers[tier].degrade if refused.reason == "deadline" else ():
            try:
                degraded = self._make_job(request, tier, other)
            except InvalidRequest:  # this tier's pipeline cannot run the request, so the next tier is tried
                continue
            if self._check_admission(request, tier, degraded, worker) is None:
                return other, degraded
        raise refused

    def _check_admission(self, request: GenerationRequest, tier: str, job: Job, worker: WorkerHandle) -> Refused | None:
        cost = worker.estimate(job)
        # `handles` holds all unfinished requests of the worker, `pool.jobs` only those whose denoising is not finished.
        # The difference is the number of requests whose images are being decoded.
        decoding = len(worker.handles) - len(worker.pool.jobs)
        max_lateness = float("inf") if request.is_background else self.settings.tiers[tier].max_lateness
        limits = AdmissionLimits(self.settings.max_queue - decoding, max_lateness, ADMISSION_MARGIN)
        rejection = check_admission(job, list(worker.pool.jobs.values()), self._policy, job.arrived, cost, limits)
        if rejection is None:
            return None
        if rejection.reason == "queue":
            return Refused(f"{len(worker.handles)} requests are queued", "queue", rejection.retry_after)
        limit = limits.allowed_seconds(job)
        latency = f"predicted latency {limit + rejection.retry_after:.1f} s"
        return Refused(f"{latency} exceeds the tier's limit of {limit:.1f} s", "deadline", rejection.retry_after)

    def _make_job(self, generation_request: GenerationRequest, tier: str, effective_tier: str) -> Job:
        """Return the scheduler's job for a request, with all defaults filled in.

        Args:
            generation_request: the request.
            tier: name of the requested tier, which sets the latency target.
            effective_tier: name of the tier whose pipeline and defaults are used.

        Raises:
            InvalidRequest: the pipeline cannot run the request, or the request exceeds a limit of the settings.
        """
        tier_settings, manifest = self.settings.tiers[effective_tier], self.manifests[effective_tier]
        image_request = generation_request.request
        _check_prompt_length(image_request)
        # A request that is moved to another tier takes that tier's steps and sampler, because the request's own steps
        # and sampler were chosen for another pipeline.
        is_own = effective_tier == tier
        resolved = resolve(
            manifest,
            replace(
                image_request,
                steps=image_request.steps if image_request.steps is not None and is_own else tier_settings.steps,
                guidance=tier_settings.guidance if image_request.guidance is None else image_request.guidance,
                sampler=image_request.sampler
                if image_request.sampler is not None and is_own
                else tier_settings.sampler,
            ),
        )
        self._check_limits(resolved.request, tier)
        queue_timeout = generation_request.queue_timeout
        return Job(
            id=generation_request.id or uuid4().hex,
            tier=self._scheduling_tier(tier, generation_request.client),
            key=generation_request.client.key,
            batch_key=make_batch_key(tier_settings.pipeline, resolved),
            step_plan=plan_steps(manifest, resolved),
            resolved=resolved,
            expires=float("inf") if queue_timeout is None else self.clock() + queue_timeout,
        )

    def _scheduling_tier(self, name: str, client: Client) -> Tier:
        tier = self.settings.tiers[name]
        return Tier(name, tier.weight if client.weight is None else client.weight, tier.slo)

    def _check_limits(self, request: ImageRequest, tier: str) -> None:
        assert request.width is not None and request.height is not None and request.steps is not None
        max_steps = self.settings.tiers[tier].max_steps
        if request.steps > max_steps:
            raise InvalidRequest(f"steps is {request.steps}", allowed=f"up to {max_steps} for model {tier!r}")
        if request.width * request.height > self.settings.max_pixels:
            raise InvalidRequest(
                f"the image size is {request.width}x{request.height}",
                allowed=f"up to {self.settings.max_pixels:,} pixels",
            )

    def _select_worker(self) -> WorkerHandle:
        """Return the ready worker with the least pending work.

        Raises:
            Refused: no worker is ready.
        """
        ready = [worker for worker in self.workers if worker.is_ready]
        if not ready:
            raise Refused("no worker is ready", "starting", retry_after=min(worker.ready_in for worker in self.workers))
        return min(ready, key=lambda worker: worker.pending_seconds)


def _pixel_steps(job: Job) -> float:
    """Return the cost of a job in pixel-steps: pixels times network evaluations."""
    return float(job.batch_key.pixels * len(job.step_plan.rows))


def _check_prompt_length(request: ImageRequest) -> None:
    for name, text in (("the prompt", request.prompt), ("the negative prompt", request.negative_prompt)):
        if len(text) > MAX_PROMPT_CHARS:
            raise InvalidRequest(
                f"{name} has {len(text):,} characters", allowed=f"up to {MAX_PROMPT_CHARS:,} characters"
            )


def make_dispatcher(settings: ServerSettings, cache: Path | None = None, **options: Any) -> Dispatcher:
    """Return a dispatcher with the settings of a server. Its workers are not yet started.

    Args:
        settings: server settings.
        cache: directory of compiled networks; None disables the cache.
        options: further arguments of `Dispatcher`.

    Raises:
        UnknownModel, PipelineError: a tier's pipeline cannot be served.
        InvalidRequest: a tier's default steps, guidance or sampler are invalid for its pipeline.
    """
    by_pipeline = {tier.pipeline: read_manifest(find_pipeline(tier.pipeline)) for tier in settings.tiers.values()}
    config = WorkerConfig(
        {name: PipelineReference(pipeline_id(manifest), name) for name, manifest in by_pipeline.items()},
        settings.policy,
        parse_size(settings.memory),
        settings.backend,
        settings.precision,
        settings.threads or _threads_per_worker(settings.workers),
        str(cache) if cache else None,
    )
    manifests = {name: by_pipeline[tier.pipeline] for name, tier in settings.tiers.items()}
    dispatcher = Dispatcher(settings, manifests, config, **options)
    for name in settings.tiers:
        client = Client("", name, frozenset((name,)))
        try:
            dispatcher.validate(GenerationRequest(default_request(manifests[name]), client))
        except InvalidRequest as error:
            problem = f"tier {name!r} is invalid: {error.problem}"
            raise InvalidRequest(problem, allowed=error.allowed, fix=error.fix) from error
    return dispatcher


def _threads_per_worker(workers: int) -> int | None:
    """Return how many threads each network of a worker may have; None: as in the pipeline's manifest."""
    return max(1, usable_cores() // workers) if workers > 1 else None
