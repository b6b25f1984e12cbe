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
from stillhouse.serve.client import Client
from stillhouse.serve.dispatcher import Dispatcher, make_dispatcher
from stillhouse.serve.job_queue import JobQueue, log_store_errors, refuse_on_store_error, result_fields
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.store.api_keys import find_key, make_anonymous_client, make_client
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.job_store import HAS_PUBLIC_URL, JobStore
from stillhouse.serve.store.usage import read_usage, write_usage
from stillhouse.serve.worker.messages import RequestOutput
from stillhouse.units import parse_duration, parse_size

if TYPE_CHECKING:
    from stillhouse.serve.tracing import RequestTracer


USAGE_SECONDS = 5.0
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

    settings: ServerSettings
    dispatcher: Dispatcher
    job_queue: JobQueue
    connection: sqlite3.Connection
    close_tracing: Callable[[], None]
    usage_task: asyncio.Task[None] | None = None
    store_tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def authenticate(self, token: str | None, address: str) -> Client:
        """Who asks.

        Args:
            token: of the Authorization header, without "Bearer".
            address: of the client; only where no keys are needed.

        Raises:
            NotAllowed: a key is needed and there is none, or it is not known.
        """
        if not self.settings.keys:
            return make_anonymous_client(self.settings.tiers, address)
        if not token:
            raise NotAllowed("a request without a key", allowed="Authorization: Bearer KEY", is_known=False)
        key = await self.job_queue.run_in_store(find_key, self.connection, token)
        return make_client(key, self.settings.tiers)

    async def store_image(self, handle: RequestHandle, output: RequestOutput) -> str:
        """Keep a picture that was drawn at the door; the name under which whoever knows it may see it.

        It is no request's id: those stand in logs.

        Raises:
            Refused: it cannot be written.
        """
        name = uuid4().hex
        with refuse_on_store_error():
            await self.job_queue.run_in_store(_store_image, self.job_queue.store, name, handle, output, True)
        return name

    def store_when_finished(self, handle: RequestHandle) -> None:
        """Keep a picture whose client has gone, once it is drawn: as a job of the same key, under the request's id."""
        task = asyncio.get_running_loop().create_task(self._store_when_finished(handle))
        self.store_tasks.add(task)
        task.add_done_callback(self.store_tasks.discard)

    def open(self) -> None:
        """Start the workers, and go on with the jobs that were left."""
        self.dispatcher.rate_limiter.restore(read_usage(self.connection))
        self.dispatcher.open()
        self.job_queue.open()
        self.usage_task = asyncio.get_running_loop().create_task(self._save_usage())

    async def close(self) -> None:
        """Take nothing more, end what was begun, and leave."""
        await self.dispatcher.drain(parse_duration(self.settings.drain))
        await asyncio.gather(*self.store_tasks, return_exceptions=True)
        if self.usage_task:
            self.usage_task.cancel()
            await self.job_queue.run_in_store(write_usage, self.connection, self.dispatcher.rate_limiter.daily_usage)
        await self.job_queue.close()
        self.dispatcher.close()
        self.connection.close()
        self.close_tracing()

    async def _store_when_finished(self, handle: RequestHandle) -> None:
        closed = await handle.result()
        if closed.finish_reason == "drawn":
            with log_store_errors(f"picture {handle.id} is not kept"):
                await self.job_queue.run_in_store(_store_image, self.job_queue.store, handle.id, handle, closed, False)

    async def _save_usage(self) -> None:
        kept = self.dispatcher.rate_limiter.daily_usage
        while True:
            await asyncio.sleep(USAGE_SECONDS)
            if (used := self.dispatcher.rate_limiter.daily_usage) != kept:
                with log_store_errors("what keys have used is not kept"):
                    await self.job_queue.run_in_store(write_usage, self.connection, used)
                    kept = used


def make_service(
    settings: ServerSettings, cache: Path | None = None, on_broken: Callable[[str], None] | None = None
) -> Service:
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
    front = make_dispatcher(settings, cache, **({"broken": on_broken} if on_broken else {}))
    spans = _load_tracer() if settings.tracing else None
    if spans:
        front.trace_request = spans.record_request
    data = Path(settings.data)
    connection = connect(data)
    store = JobStore(connection, data)
    store.delete_orphans()
    keep, kept = parse_duration(settings.keep), parse_size(settings.keep_bytes)
    patient = JobQueue(front, store, keep, kept)
    return Service(settings, front, patient, connection, spans.close if spans else lambda: None)


def _store_image(
    store: JobStore, job_id: str, handle: RequestHandle, output: RequestOutput, has_public_url: bool
) -> None:
    """In one go, so that nobody finds it waiting in between, and draws it again."""
    order = handle.generation_request
    store.add(job_id, order.client.key, handle.job.tier.name, handle.request, order.format)
    store.finish(
        job_id, "drawn", output.content, result={**result_fields(handle, output), HAS_PUBLIC_URL: has_public_url}
    )


def _load_tracer() -> "RequestTracer":
    try:
        module = import_module("stillhouse.serve.tracing")
    except ModuleNotFoundError as error:
        raise RuntimeMissing(f"{error.name} is not installed", fix="pip install 'stillhouse[telemetry]'") from error
    found: RequestTracer = module.tracing()
    return found
