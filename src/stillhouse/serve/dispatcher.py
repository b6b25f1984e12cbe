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
from stillhouse.serve.client import Caller, Meter
from stillhouse.serve.engine.admission import refusal
from stillhouse.serve.engine.executor import group_of, usual, walk_of
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import POLICIES, Policy
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.request_handle import Order, Ticket
from stillhouse.serve.settings import Settings
from stillhouse.serve.worker.messages import Closed, Opening, Told
from stillhouse.serve.worker.supervisor import Supervision, Supervisor
from stillhouse.serve.worker_handle import Station
from stillhouse.units import read_bytes, read_seconds

log = logging.getLogger(__name__)

LONGEST_TEXT = 10_000
"""Letters of a prompt: a hundred times what text encoders read, and little work for tokenizers."""


@dataclass(slots=True)
class Front:
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

    settings: Settings
    manifests: Mapping[str, Manifest]
    opening: Opening
    metrics: Metrics = field(default_factory=Metrics)
    meter: Meter = field(default_factory=Meter)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    broken: Callable[[str], None] = lambda error: None
    supervise: Callable[[Opening, Callable[[Told], None], Callable[[], None]], Supervision] = Supervisor
    traced: Callable[[Ticket, Closed, float], None] = lambda ticket, closed, now: None
    is_draining: bool = False
    stations: list[Station] = field(default_factory=list)
    _policy: Policy = field(init=False)
    _watching: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._policy = POLICIES[self.settings.policy]

    # What the doors ask.

    def place(self, order: Order) -> Ticket:
        """Take an order.

        Raises:
            InvalidRequest: what its pipeline cannot do, or more than the settings allow.
            NotAllowed: a tier that the caller may not ask for.
            Refused: not now.
        """
        (ticket,) = self.place_all([order])
        return ticket

    def review(self, order: Order) -> None:
        """Refuse what could never be drawn, without taking it.

        Raises:
            InvalidRequest, NotAllowed: as `place`.
        """
        tier = self._tier(order)
        amount = _amount(self._job(order, tier, tier))
        daily = order.caller.daily
        if daily is not None and amount > daily:
            allowed = f"{daily:,.0f} pixel-steps a day with this key"
            raise InvalidRequest(f"a picture of {amount:,.0f} pixel-steps", allowed=allowed)

    def place_all(self, orders: Sequence[Order]) -> list[Ticket]:
        """Take all of these, which one caller asks for at once, or none.

        Raises:
            StillhouseError: as `place`.
        """
        meant = [(order, self._tier(order)) for order in orders]
        try:
            return self._placed([(order, tier, self._job(order, tier, tier)) for order, tier in meant])
        except Refused as refused:
            # Nobody is told of a patient one: it is tried again.
            for order, tier in meant:
                if not order.is_patient:
                    self.metrics.rejected.labels(refused.reason, tier).inc()
                    told = {"reason": refused.reason, "key": order.caller.key, "tier": tier}
                    log.info("a request was refused", extra=told)
            raise

    def cancel(self, name: str, reason: str = "asked") -> bool:
        """Draw that job no further; False where there is no such job, or it has ended.

        Its ticket ends when the worker says so, within a tick.
        """
        for station in self.stations:
            if ticket := station.tickets.get(name):
                if not ticket.is_cancelled:
                    self.metrics.cancelled.labels(reason).inc()
                station.cancel(ticket)
                return True
        return False

    def find(self, name: str) -> Ticket | None:
        """The ticket of a job that has not ended."""
        return next((station.tickets[name] for station in self.stations if name in station.tickets), None)

    @property
    def tickets(self) -> Iterable[Ticket]:
        """Everything that has not ended."""
        return [ticket for station in self.stations for ticket in station.tickets.values()]

    @property
    def running(self) -> int:
        """See `metrics.State`."""
        return sum(ticket.job.index > 0 for ticket in self.tickets)

    @property
    def waiting(self) -> int:
        """See `metrics.State`."""
        return sum(ticket.job.index == 0 for ticket in self.tickets)

    @property
    def pending_seconds(self) -> float:
        """See `metrics.State`."""
        return sum(station.pending for station in self.stations)

    @property
    def is_ready(self) -> bool:
        """See `metrics.State`."""
        return not self.is_draining and any(station.is_ready for station in self.stations)

    @property
    def room(self) -> int:
        """How many orders that nobody waits for may be placed: the other half of the queue is for people."""
        return max(0, self.settings.queue // 2 - sum(len(station.tickets) for station in self.stations))

    # Its life.

    def open(self) -> None:
        """Start a worker for each device."""
        for device in self.settings.devices or (None,):
            self.hire(device)
        self.metrics.watch(self)
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def drain(self, patience: float) -> None:
        """Take nothing more; wait for what was taken; what has not ended in time ends as failed."""
        self.is_draining = True
        until = self.clock() + patience
        while self.tickets and self.clock() < until:
            await asyncio.sleep(0.02)
        for station in self.stations:
            for ticket in list(station.tickets.values()):
                error = "the server is being shut down"
                station.end(ticket, Closed("failed", error=error, fault="Drained"))

    def close(self) -> None:
        """End the workers."""
        if self._watching:
            self._watching.cancel()
        for station in self.stations:
            station.close()

    def hire(self, device: str | None = None) -> Station:
        """Start one more worker, which sees this device only."""
        opening = msgspec.structs.replace(self.opening, device=device)
        station = Station(opening, self.clock, self.metrics, self._ended, self.broken, self.supervise)
        self.stations.append(station)
        station.open()
        return station

    async def _watch(self) -> None:
        stall = read_seconds(self.settings.stall)
        while True:
            await asyncio.sleep(min(1.0, stall / 4))
            for station in self.stations:
                station.look_after(stall)

    def _ended(self, ticket: Ticket, closed: Closed) -> None:
        tier = ticket.job.tier.name
        if closed.outcome in ("failed", "expired"):
            self.meter.give_back(ticket.order.caller, _amount(ticket.job))
        if closed.outcome == "drawn":
            in_time = None if ticket.order.is_patient else self.clock() <= ticket.job.deadline
            self.metrics.drawn(tier, ticket.job.group.pipeline, in_time)
            self.metrics.queue.labels(tier).observe(closed.waited)
            self.metrics.denoise.labels(tier).observe(closed.denoised)
        elif closed.outcome == "failed":
            self.metrics.failed.labels(closed.fault).inc()
        elif closed.outcome == "expired":
            self.metrics.rejected.labels("expired", tier).inc()
        self.traced(ticket, closed, self.wall())
        told = {
            "request_id": ticket.id,
            "key": ticket.order.caller.key,
            "tier": tier,
            "outcome": closed.outcome,
            "seconds": round(self.clock() - ticket.job.arrived, 4),
            "fault": closed.fault,
        }
        if closed.outcome == "failed":
            log.warning("a job failed", extra={**told, "error": closed.error, "way": closed.way})
        else:
            log.info("a job ended", extra=told)

    # Admission.

    def _tier(self, order: Order) -> str:
        tier = order.tier or order.caller.tier
        check_choice("model", tier, self.settings.tiers)
        if tier not in order.caller.tiers:
            raise NotAllowed(f"model {tier!r} with this key", allowed=", ".join(sorted(order.caller.tiers)))
        return tier

    def _placed(self, meant: Sequence[tuple[Order, str, Job]]) -> list[Ticket]:
        if self.is_draining:
            raise Refused("the server is being shut down", "draining", 5.0)
        station = self._station()
        caller, amount = meant[0][0].caller, sum(_amount(job) for *_, job in meant)
        if short := self.meter.charge(caller, amount):
            told = f"key {caller.key} has no {amount:,.0f} pixel-steps left"
            raise Refused(told, short.reason, short.seconds)
        tickets: list[Ticket] = []
        try:
            for order, tier, job in meant:
                tickets.append(self._taken(order, tier, job, station))
        except Exception:
            for ticket in tickets:
                self.cancel(ticket.id, "refused")
            self.meter.give_back(caller, amount)
            raise
        if less := amount - sum(_amount(ticket.job) for ticket in tickets):
            self.meter.give_back(caller, less)  # who is given less pays less
        return tickets

    def _taken(self, order: Order, tier: str, job: Job, station: Station) -> Ticket:
        drawn_as, job = self._admitted(order, tier, job, station)
        if drawn_as != tier:
            self.metrics.degraded.labels(tier, drawn_as).inc()
        self.metrics.pixel_steps.labels(tier).inc(_amount(job))
        ticket = Ticket(order, job, drawn_as, self.wall())
        station.take(ticket)
        return ticket

    def _admitted(self, order: Order, tier: str, job: Job, station: Station) -> tuple[str, Job]:
        """The job as it is taken: as its tier draws, or as one of those draws to which the tier may be degraded.

        Raises:
            Refused: none of them would be in time.
        """
        refused = self._refusal(order, tier, job, station)
        if refused is None:
            return tier, job
        for other in self.settings.tiers[tier].degrade if refused.reason == "deadline" else ():
            try:
                less = self._job(order, tier, other)
            except InvalidRequest:  # that pipeline cannot draw what is asked for
                continue
            if self._refusal(order, tier, less, station) is None:
                return other, less
        raise refused

    def _refusal(self, order: Order, tier: str, job: Job, station: Station) -> Refused | None:
        cost = station.expect(job)
        limits = self.settings.limits(tier)
        # Those that are being decoded wait, too, though no tick is for them.
        decoding = len(station.tickets) - len(station.roster.jobs)
        lateness = float("inf") if order.is_patient else limits.lateness
        limits = replace(limits, jobs=limits.jobs - decoding, lateness=lateness)
        found = refusal(job, list(station.roster.jobs.values()), self._policy, job.arrived, cost, limits)
        if found is None:
            return None
        if found.reason == "queue":
            return Refused(f"{len(station.tickets)} pictures wait already", "queue", found.retry_after)
        most = limits.allowed(job)
        late = f"a picture that takes {job.alone:.1f} s alone would take {most + found.retry_after:.1f} s now"
        return Refused(f"{late}, and {most:.1f} s are the most in this tier", "deadline", found.retry_after)

    def _job(self, order: Order, tier: str, drawn_as: str) -> Job:
        """The job of an order that is drawn as a tier draws."""
        way = self.settings.tiers[drawn_as]
        manifest = self.manifests[drawn_as]
        asked = order.request
        _check_text(asked)
        request = resolve(
            manifest,
            replace(
                asked,
                steps=asked.steps if asked.steps is not None and drawn_as == tier else way.steps,
                guidance=way.guidance if asked.guidance is None else asked.guidance,
                sampler=asked.sampler if asked.sampler is not None and drawn_as == tier else way.sampler,
            ),
        )
        self._check(request, tier)
        promised = self.settings.tiers[tier].tier(tier)
        if order.caller.weight is not None:
            promised = replace(promised, weight=order.caller.weight)
        group = group_of(way.pipeline, request)
        expires = float("inf") if order.patience is None else self.clock() + order.patience
        name = order.id or uuid4().hex
        return Job(name, promised, order.caller.key, group, walk_of(manifest, request), request, expires)

    def _check(self, request: ImageRequest, tier: str) -> None:
        assert request.width is not None and request.height is not None and request.steps is not None
        most = self.settings.tiers[tier].most_steps
        if request.steps > most:
            raise InvalidRequest(f"steps is {request.steps}", allowed=f"up to {most} for model {tier!r}")
        if request.width * request.height > self.settings.pixels:
            raise InvalidRequest(
                f"a picture of {request.width}x{request.height}", allowed=f"up to {self.settings.pixels:,} pixels"
            )

    def _station(self) -> Station:
        """The worker with the least to do.

        Raises:
            Refused: none is ready.
        """
        ready = [station for station in self.stations if station.is_ready]
        if not ready:
            raise Refused("no worker is ready", "starting", min(station.due for station in self.stations))
        return min(ready, key=lambda station: station.pending)


def _amount(job: Job) -> float:
    """Pixel-steps."""
    return float(job.group.pixels * len(job.walk.rows))


def _check_text(request: ImageRequest) -> None:
    for name, text in (("the prompt", request.prompt), ("the negative prompt", request.negative_prompt)):
        if len(text) > LONGEST_TEXT:
            raise InvalidRequest(f"{name} has {len(text):,} letters", allowed=f"up to {LONGEST_TEXT:,}")


def front_of(settings: Settings, cache: Path | None = None, **options: Any) -> Front:
    """The front of a server that was told this; `options` are those of `Front`.

    Raises:
        UnknownModel, PipelineError: a tier's pipeline that cannot be served.
        InvalidRequest: a tier whose own steps, guidance or sampler its pipeline cannot draw with.
    """
    places = {tier.pipeline: find_pipeline(tier.pipeline) for tier in settings.tiers.values()}
    read = {name: read_manifest(directory) for name, directory in places.items()}
    opening = Opening(
        {name: str(directory) for name, directory in places.items()},
        settings.policy,
        read_bytes(settings.memory),
        settings.backend,
        settings.precision,
        settings.threads,
        str(cache) if cache else None,
    )
    manifests = {name: read[tier.pipeline] for name, tier in settings.tiers.items()}
    front = Front(settings, manifests, opening, **options)
    for name in settings.tiers:
        try:
            front.review(Order(usual(manifests[name]), Caller("", name, frozenset((name,)))))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"tier {name!r} cannot draw: {error.given}", allowed=error.allowed, fix=error.fix
            ) from error
    return front
