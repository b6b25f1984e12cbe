"""Background jobs: dispatched while there is capacity, ended once, never lost to disk errors."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core import ImageRequest
from stillhouse.errors import Refused
from stillhouse.serve import job_queue as module
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.job_queue import JobQueue
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.store.api_keys import add_key, list_keys, revoke_key
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.job_store import JobStore
from tests.serve.test_dispatcher import ANYBODY, TIERS, FakeWorker, make_dispatcher_with_worker

ASKED = ImageRequest("a red circle", seed=1)


@asynccontextmanager
async def open_job_queue(folder: Path, queue: int = 64) -> AsyncIterator[tuple[JobQueue, FakeWorker]]:
    dispatcher, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=queue))
    connection = await asyncio.get_running_loop().run_in_executor(None, connect, folder)
    made = JobQueue(dispatcher, JobStore(connection, folder), 1e6, 1 << 30)
    made.open()
    try:
        yield made, worker
    finally:
        await made.close()
        connection.close()


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(what(), 20.0))


async def until(holds: Callable[[], Any], jobs: JobQueue) -> None:
    while not holds():
        await jobs.wait_for_change(0.02)


async def state(jobs: JobQueue, name: str) -> str:
    record = await jobs.run_in_store(jobs.store.get, name)
    assert record is not None
    return record.state


def test_job_is_dispatched_when_there_is_capacity(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_job_queue(tmp_path) as (jobs, worker):
            await jobs.submit("one", ANYBODY, "free", ASKED, "png")
            await until(lambda: worker.submitted, jobs)
            worker.on_event(RequestOutput("one", "finished", b"picture"))
            await until(lambda: not jobs.handles, jobs)
            assert await state(jobs, "one") == "completed"

    run(body)


def test_job_cancelled_during_dispatch_does_not_run(tmp_path: Path) -> None:
    """The job is cancelled while its request is being loaded."""

    async def body() -> None:
        async with open_job_queue(tmp_path) as (jobs, worker):
            original, cancelled = jobs.store.load_request, asyncio.Event()
            loop = asyncio.get_running_loop()

            def slowly(record: Any) -> ImageRequest:
                loop.call_soon_threadsafe(cancelled.set)
                return original(record)

            jobs.store = WatchedStore(jobs.store, slowly)  # type: ignore[assignment]
            await jobs.submit("one", ANYBODY, "free", ASKED, "png")
            await cancelled.wait()
            assert await jobs.cancel("one")
            await jobs.wait_for_change(1.5 * module.POLL_SECONDS)
            assert not worker.submitted and await state(jobs, "one") == "cancelled"

    run(body)


class WatchedStore:
    """Store with a replaced `load_request`."""

    def __init__(self, store: JobStore, request: Callable[[Any], ImageRequest]) -> None:
        self._store, self.load_request = store, request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_job_whose_result_cannot_be_stored_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    refusals = 3

    async def body() -> None:
        async with open_job_queue(tmp_path) as (jobs, worker):
            await jobs.submit("one", ANYBODY, "free", ASKED, "png")
            await until(lambda: worker.submitted, jobs)
            original = JobStore.finish

            def end(store: JobStore, *arguments: Any) -> bool:
                nonlocal refusals
                if refusals:
                    refusals -= 1
                    raise sqlite3.OperationalError("database or disk is full")
                return original(store, *arguments)

            monkeypatch.setattr(JobStore, "finish", end)
            worker.on_event(RequestOutput("one", "finished", b"picture"))
            worker.commands = []
            await until(lambda: not jobs.handles, jobs)
            assert refusals == 0 and await state(jobs, "one") == "completed" and not worker.submitted

    run(body)


def test_disk_error_does_not_stop_dispatching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    refusals = 2

    async def body() -> None:
        nonlocal refusals
        original = JobStore.list_queued

        def queued(store: JobStore, *arguments: Any) -> Any:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise OSError(5, "Input/output error")
            return original(store, *arguments)

        monkeypatch.setattr(JobStore, "list_queued", queued)
        async with open_job_queue(tmp_path) as (jobs, worker):
            await jobs.submit("one", ANYBODY, "free", ASKED, "png")
            await until(lambda: worker.submitted, jobs)
            assert refusals == 0

    run(body)


def test_jobs_of_a_revoked_key_fail(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_job_queue(tmp_path) as (jobs, worker):
            worker.die()  # nothing is fed while nobody draws
            await jobs.run_in_store(add_key, jobs.store.connection, "free")
            (key,) = await jobs.run_in_store(list_keys, jobs.store.connection)
            await jobs.submit("one", replace(ANYBODY, key=key.name), "free", ASKED, "png")
            await jobs.run_in_store(revoke_key, jobs.store.connection, key.name)
            worker.report_ready()
            while await state(jobs, "one") == "queued":
                await jobs.wait_for_change(0.05)
            record = await jobs.run_in_store(jobs.store.get, "one")
            assert (
                record is not None and record.state == "failed" and "revoked" in record.error and not worker.submitted
            )

    run(body)


def test_full_disk_is_rejected_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def body() -> None:
        async with open_job_queue(tmp_path) as (jobs, _):
            monkeypatch.setattr(JobStore, "add", full)
            with pytest.raises(Refused, match="the job store is not writable") as refused:
                await jobs.submit("one", ANYBODY, "free", ASKED, "png")
            assert refused.value.reason == "storage"
            counted = jobs.dispatcher.metrics.exposition().decode()
            assert 'stillhouse_rejected_total{reason="storage",tier="free"} 1.0' in counted

    run(body)
