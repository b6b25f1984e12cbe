"""The service behind all APIs: clients, dispatching and storage."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from stillhouse.errors import RuntimeMissing
from stillhouse.serve.client import Client, Clients
from stillhouse.serve.dispatcher import Dispatcher, make_dispatcher
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.job_queue import JobQueue, log_store_errors, refuse_on_store_error, result_fields
from stillhouse.serve.request_handle import RequestHandle
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.store.api_keys import find_key, make_client, read_usage, write_usage
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.job_store import HAS_PUBLIC_URL, JobStore
from stillhouse.units import parse_duration, parse_size

if TYPE_CHECKING:
    from stillhouse.serve.tracing import RequestTracer


USAGE_SECONDS = 5.0
"""Interval in seconds at which the usage of each API key is written to the database. A server that is killed loses at
most the usage of one interval."""


@dataclass(slots=True)
class Service:
    """Shared state of all APIs. Not thread-safe: use from one event loop.

    Args:
        settings: server settings.
        clients: clients that may send requests.
        dispatcher: admission and scheduling of requests.
        job_queue: queue of background jobs, with the thread that uses the database.
        connection: SQLite database; used only in the job queue's thread.
        close_tracing: called when the service closes, to export the trace spans that are not yet exported.
        usage_task: task that regularly stores the usage of API keys; None before `open`.
        store_tasks: running tasks that store images of disconnected clients.
    """

    settings: ServerSettings
    clients: Clients
    dispatcher: Dispatcher
    job_queue: JobQueue
    connection: sqlite3.Connection
    close_tracing: Callable[[], None]
    usage_task: asyncio.Task[None] | None = None
    store_tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def store_image(self, handle: RequestHandle, output: RequestOutput) -> str:
        """Store the image of a finished request for download by URL, and return the random name in the URL.

        Whoever knows the name can download the image. The name is therefore not the request id, which appears in logs.

        Raises:
            Refused: the image cannot be written to the disk.
        """
        name = uuid4().hex
        with refuse_on_store_error():
            await self.job_queue.run_in_store(_store_image, self.job_queue.store, name, handle, output, True)
        return name

    def store_when_finished(self, handle: RequestHandle) -> None:
        """Start a task that stores the image of a disconnected client when it is finished, and return at once.

        The image is stored as a completed job of the client's API key. The job's id is the request id.
        """
        task = asyncio.get_running_loop().create_task(self._store_when_finished(handle))
        self.store_tasks.add(task)
        task.add_done_callback(self.store_tasks.discard)

    def open(self) -> None:
        """Restore the stored usage of API keys, start the workers, and start dispatching queued jobs."""
        self.dispatcher.rate_limiter.restore(read_usage(self.connection))
        self.dispatcher.open()
        self.job_queue.open()
        self.usage_task = asyncio.get_running_loop().create_task(self._save_usage())

    async def close(self) -> None:
        """Let accepted requests finish, store their results, stop the workers and close the database.

        Requests that are unfinished after the setting `drain_timeout` fail.
        """
        await self.dispatcher.drain(parse_duration(self.settings.drain_timeout))
        await asyncio.gather(*self.store_tasks, return_exceptions=True)
        if self.usage_task:
            self.usage_task.cancel()
            await self.job_queue.run_in_store(write_usage, self.connection, self.dispatcher.rate_limiter.daily_usage)
        await self.job_queue.close()
        self.dispatcher.close()
        self.connection.close()
        self.close_tracing()

    async def _store_when_finished(self, handle: RequestHandle) -> None:
        output = await handle.result()
        if output.finish_reason == "finished":
            with log_store_errors(f"image {handle.id} is not stored"):
                await self.job_queue.run_in_store(_store_image, self.job_queue.store, handle.id, handle, output, False)

    async def _save_usage(self) -> None:
        stored = self.dispatcher.rate_limiter.daily_usage
        while True:
            await asyncio.sleep(USAGE_SECONDS)
            if (usage := self.dispatcher.rate_limiter.daily_usage) != stored:
                with log_store_errors("cannot store API key usage"):
                    await self.job_queue.run_in_store(write_usage, self.connection, usage)
                    stored = usage


def make_service(
    settings: ServerSettings, cache: Path | None = None, on_broken: Callable[[str], None] | None = None
) -> Service:
    """Return a service that `Service.open` starts.

    The database is opened, and created if it does not exist. Image files without a job are deleted.

    Args:
        settings: server settings.
        cache: directory of compiled networks; None disables the cache.
        on_broken: called with the error message when a worker cannot load a pipeline.

    Raises:
        UnknownModel, PipelineError: a tier's pipeline cannot be served.
        InvalidRequest: the data directory cannot be used.
        RuntimeMissing: tracing is enabled and OpenTelemetry is not installed.
    """
    dispatcher = make_dispatcher(settings, cache, **({"on_broken": on_broken} if on_broken else {}))
    tracer = _load_tracer() if settings.tracing else None
    if tracer:
        dispatcher.trace_request = tracer.record_request
    data = Path(settings.data)
    connection = connect(data)
    store = JobStore(connection, data)
    store.delete_orphans()
    job_queue = JobQueue(dispatcher, store, parse_duration(settings.keep), parse_size(settings.keep_bytes))

    async def find_client(token: str) -> Client:
        key = await job_queue.run_in_store(find_key, connection, token)
        return make_client(key, settings.tiers)

    clients = Clients(settings.tiers, find_client if settings.keys else None)
    return Service(settings, clients, dispatcher, job_queue, connection, tracer.close if tracer else lambda: None)


def _store_image(
    store: JobStore, job_id: str, handle: RequestHandle, output: RequestOutput, has_public_url: bool
) -> None:
    """Store an image as a new, completed job.

    The job is added and finished in one call of the store's thread, so that the job queue never dispatches it.

    Args:
        store: jobs in the database.
        job_id: id of the new job.
        handle: the finished request.
        output: result of the request, with the image.
        has_public_url: whether the image may be downloaded by URL without an API key.
    """
    request = handle.generation_request
    store.add(job_id, request.client.key, handle.job.tier.name, handle.request, request.format)
    store.finish(
        job_id, "completed", output.content, result={**result_fields(handle, output), HAS_PUBLIC_URL: has_public_url}
    )


def _load_tracer() -> "RequestTracer":
    try:
        module = import_module("stillhouse.serve.tracing")
    except ModuleNotFoundError as error:
        raise RuntimeMissing(f"{error.name} is not installed", fix="pip install 'stillhouse[telemetry]'") from error
    tracer: RequestTracer = module.make_tracer()
    return tracer
