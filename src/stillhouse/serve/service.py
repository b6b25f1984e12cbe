"""A server without its doors: who asks, what is drawn, what is kept."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from stillhouse.errors import NotAllowed, RuntimeMissing
from stillhouse.serve.client import Caller
from stillhouse.serve.dispatcher import Front, front_of
from stillhouse.serve.job_queue import Patient, going_on, storing, told_of
from stillhouse.serve.request_handle import Ticket
from stillhouse.serve.settings import Settings
from stillhouse.serve.store.api_keys import anybody, caller_of, find_key
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.job_store import BY_ADDRESS, JobStore
from stillhouse.serve.store.usage import read_usage, write_usage
from stillhouse.serve.worker.messages import Closed
from stillhouse.units import read_bytes, read_seconds

if TYPE_CHECKING:
    from stillhouse.serve.tracing import Tracing


COUNTED = 5.0
"""Seconds between two times that what keys have used is kept: a server that is killed forgets no more."""


@dataclass(slots=True)
class Service:
    """Everything behind the doors. One loop owns it.

    Args:
        settings: what the server was told.
        front: takes orders.
        patient: takes jobs.
        connection: the database; only used in the store's thread.
        untraced: sends the last spans.
        counting: keeps what keys have used.
        keeping: pictures whose clients have gone.
    """

    settings: Settings
    front: Front
    patient: Patient
    connection: sqlite3.Connection
    untraced: Callable[[], None]
    counting: asyncio.Task[None] | None = None
    keeping: set[asyncio.Task[None]] = field(default_factory=set)

    async def caller(self, token: str | None, address: str) -> Caller:
        """Who asks.

        Args:
            token: of the Authorization header, without "Bearer".
            address: of the client; only where no keys are needed.

        Raises:
            NotAllowed: a key is needed and there is none, or it is not known.
        """
        if not self.settings.keys:
            return anybody(self.settings.tiers, address)
        if not token:
            raise NotAllowed("a request without a key", allowed="Authorization: Bearer KEY", is_known=False)
        key = await self.patient.ask(find_key, self.connection, token)
        return caller_of(key, self.settings.tiers)

    async def keep(self, ticket: Ticket, closed: Closed) -> str:
        """Keep a picture that was drawn at the door; the name under which whoever knows it may see it.

        It is no request's id: those stand in logs.

        Raises:
            Refused: it cannot be written.
        """
        name = uuid4().hex
        with storing():
            await self.patient.ask(_keep, self.patient.store, name, ticket, closed, True)
        return name

    def keep_later(self, ticket: Ticket) -> None:
        """Keep a picture whose client has gone, once it is drawn: as a job of the same key, under the request's id."""
        task = asyncio.get_running_loop().create_task(self._kept(ticket))
        self.keeping.add(task)
        task.add_done_callback(self.keeping.discard)

    def open(self) -> None:
        """Start the workers, and go on with the jobs that were left."""
        self.front.meter.resume(read_usage(self.connection))
        self.front.open()
        self.patient.open()
        self.counting = asyncio.get_running_loop().create_task(self._count())

    async def close(self) -> None:
        """Take nothing more, end what was begun, and leave."""
        await self.front.drain(read_seconds(self.settings.drain))
        await asyncio.gather(*self.keeping, return_exceptions=True)
        if self.counting:
            self.counting.cancel()
            await self.patient.ask(write_usage, self.connection, self.front.meter.used)
        await self.patient.close()
        self.front.close()
        self.connection.close()
        self.untraced()

    async def _kept(self, ticket: Ticket) -> None:
        closed = await ticket.end()
        if closed.outcome == "drawn":
            with going_on(f"picture {ticket.id} is not kept"):
                await self.patient.ask(_keep, self.patient.store, ticket.id, ticket, closed, False)

    async def _count(self) -> None:
        kept = self.front.meter.used
        while True:
            await asyncio.sleep(COUNTED)
            if (used := self.front.meter.used) != kept:
                with going_on("what keys have used is not kept"):
                    await self.patient.ask(write_usage, self.connection, used)
                    kept = used


def service_of(settings: Settings, cache: Path | None = None, broken: Callable[[str], None] | None = None) -> Service:
    """A service that was told this, not yet open.

    Args:
        settings: what it is told.
        cache: directory of compiled networks.
        broken: called when a worker cannot open a pipeline.

    Raises:
        UnknownModel, PipelineError: a tier's pipeline that cannot be served.
        InvalidRequest: the data directory cannot be used.
        RuntimeMissing: spans are wanted, and nothing is installed that sends them.
    """
    front = front_of(settings, cache, **({"broken": broken} if broken else {}))
    spans = _spans() if settings.tracing else None
    if spans:
        front.traced = spans.picture
    data = Path(settings.data)
    connection = connect(data)
    store = JobStore(connection, data)
    store.sweep()
    keep, kept = read_seconds(settings.keep), read_bytes(settings.kept)
    patient = Patient(front, store, keep, kept)
    return Service(settings, front, patient, connection, spans.close if spans else lambda: None)


def _keep(store: JobStore, name: str, ticket: Ticket, closed: Closed, by_address: bool) -> None:
    """In one go, so that nobody finds it waiting in between, and draws it again."""
    order = ticket.order
    store.add(name, order.caller.key, ticket.job.tier.name, ticket.request, order.format)
    store.end(name, "drawn", closed.content, told={**told_of(ticket, closed), BY_ADDRESS: by_address})


def _spans() -> "Tracing":
    try:
        module = import_module("stillhouse.serve.tracing")
    except ModuleNotFoundError as error:
        raise RuntimeMissing(f"{error.name} is not installed", fix="pip install 'stillhouse[telemetry]'") from error
    found: Tracing = module.tracing()
    return found
