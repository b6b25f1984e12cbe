"""Accepted jobs end once under any schedule of deaths, and fail by attempts of their own only."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stillhouse.core import ImageRequest
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.job_queue import JobQueue
from stillhouse.serve.settings import ServerSettings
from stillhouse.serve.store.database import connect
from stillhouse.serve.store.job_store import JobStore
from stillhouse.serve.worker.messages import Begun
from stillhouse.serve.worker_handle import MAX_ATTEMPTS
from tests.serve.test_dispatcher import ANYBODY, TIERS, make_dispatcher_with_worker

STALL = 120.0


class DurableJobs(RuleBasedStateMachine):
    """Jobs are handed over, begun and finished; workers and servers are killed, do not come back, and drain.

    `interrupted` counts the attempts of each job that the death of a worker or of the server ended.
    """

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.interrupted: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.accepted: list[str] = []
        self.open_server()

    def open_server(self) -> None:
        self.runner = asyncio.Runner()
        self.runner.get_loop()
        self.dispatcher, self.worker, self.time = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=8))
        self.is_ready = True
        self.begun: list[str] = []
        self.connection = connect(Path(self.folder.name))
        self.jobs = JobQueue(self.dispatcher, JobStore(self.connection, Path(self.folder.name)), 1e9, 1 << 30)
        self.runner.run(self.open_queue())

    async def open_queue(self) -> None:
        self.jobs.open()
        await self.settle()

    async def settle(self) -> None:
        """Let the queue store and dispatch what it can."""
        for _ in range(2):
            await self.jobs._notify()
            for _ in range(8):
                await self.jobs.run_in_store(lambda: None)

    def run(self, event: Any = None) -> None:
        async def body() -> None:
            if event is not None:
                self.worker.on_event(event)
            await self.settle()

        self.runner.run(body())

    @property
    def startable(self) -> list[str]:
        """Ids of the jobs that the worker's engine may begin now."""
        waiting = [one for one in self.worker.submitted.values() if one.id not in self.begun]
        alone = [one.id for one in self.worker.submitted.values() if one.is_alone]
        if not alone:
            return [one.id for one in waiting]
        return [] if self.begun else alone[:1]

    @rule()
    def accept(self) -> None:
        name = f"job{len(self.accepted)}"

        async def body() -> None:
            await self.jobs.submit(name, ANYBODY, "free", ImageRequest("a red circle", seed=1), "png")
            await self.settle()

        self.runner.run(body())
        self.accepted.append(name)

    @precondition(lambda self: self.is_ready and self.startable)
    @rule(number=st.integers(0, 7))
    def begin(self, number: int) -> None:
        name = self.startable[number % len(self.startable)]
        self.begun.append(name)
        self.run(Begun(name))

    @precondition(lambda self: self.is_ready and self.begun)
    @rule(number=st.integers(0, 7))
    def finish(self, number: int) -> None:
        name = self.begun.pop(number % len(self.begun))
        self.worker.commands = [command for command in self.worker.commands if command.id != name]
        self.finished[name] += 1
        self.run(RequestOutput(name, "finished", b"picture"))

    @precondition(lambda self: self.is_ready)
    @rule()
    def kill_worker(self) -> None:
        self.interrupted.update(self.begun)
        self.begun, self.is_ready = [], False
        self.worker.die()
        self.run()

    @precondition(lambda self: not self.is_ready)
    @rule()
    def worker_is_back(self) -> None:
        self.worker.report_ready()
        self.is_ready = True
        self.run()

    @precondition(lambda self: not self.is_ready)
    @rule()
    def worker_is_not_back(self) -> None:
        self.time.now += STALL + 1
        self.dispatcher.workers[0].check_health(STALL)
        self.run()
        assert not self.jobs.handles, "its jobs wait in the store"

    @rule()
    def kill_server(self) -> None:
        """End the server without any clean-up, and its worker with it."""
        self.interrupted.update(self.begun)
        self.abandon()
        self.open_server()

    def abandon(self) -> None:
        async def body() -> None:
            for task in list(self.jobs._tasks):
                task.cancel()
            await asyncio.gather(*self.jobs._tasks, return_exceptions=True)

        self.runner.run(body())
        self.jobs._thread.shutdown()
        self.connection.close()
        self.runner.close()

    @rule()
    def drain_server(self) -> None:
        async def body() -> None:
            await self.dispatcher.drain(0.0)
            await self.jobs.close()

        self.runner.run(body())
        self.connection.close()
        self.runner.close()
        self.open_server()

    @invariant()
    def each_job_has_ended_or_is_queued(self) -> None:
        for name in getattr(self, "accepted", ()):
            record = self.record(name)
            if self.finished[name]:
                assert record.state == "completed" and self.finished[name] == 1
            elif self.interrupted[name] >= MAX_ATTEMPTS:
                assert record.state == "failed" or not self.is_ready
            else:
                assert record.state == "queued"
                assert record.attempts == self.interrupted[name] + (name in self.begun)

    def record(self, name: str) -> Any:
        record = self.runner.run(self.jobs.run_in_store(self.jobs.store.get, name))
        assert record is not None
        return record

    def teardown(self) -> None:
        if not hasattr(self, "accepted"):
            return
        if not self.is_ready:
            self.worker_is_back()
        for _ in range(4 * len(self.accepted)):
            if self.startable:
                self.begin(0)
            if self.begun:
                self.finish(0)
        ends = [self.record(name).state for name in self.accepted]
        assert all(end in ("completed", "failed") for end in ends), ends
        self.abandon()
        self.folder.cleanup()


DurableJobs.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestDurableJobs = DurableJobs.TestCase


@contextmanager
def machine(count: int) -> Iterator[DurableJobs]:
    """A server with so many accepted jobs, whose invariant is checked at the end."""
    opened = DurableJobs()
    opened.start()
    for _ in range(count):
        opened.accept()
    yield opened
    opened.each_job_has_ended_or_is_queued()
    opened.teardown()


def test_jobs_that_were_only_handed_over_survive_any_number_of_deaths() -> None:
    with machine(3) as server:
        for _ in range(2 * MAX_ATTEMPTS):
            server.kill_worker()
            server.worker_is_back()
        for _ in range(2 * MAX_ATTEMPTS):
            server.kill_server()
        assert not any(command.is_alone for command in server.worker.submitted.values())


def test_jobs_of_a_worker_that_is_not_back_wait_in_the_store() -> None:
    with machine(2) as server:
        server.begin(0)
        server.kill_worker()
        server.worker_is_not_back()
        server.worker_is_back()
        assert len(server.worker.submitted) == 2 and server.record("job0").attempts == 1


@pytest.mark.parametrize("kills_server", [False, True])
def test_a_job_that_ends_whatever_begins_it_fails_alone(kills_server: bool) -> None:
    def kill() -> None:
        if kills_server:
            server.kill_server()
        else:
            server.kill_worker()
            server.worker_is_back()

    with machine(3) as server:
        server.begin(0)
        server.begin(0)
        assert server.begun == ["job0", "job1"]
        kill()
        assert [server.worker.submitted[name].is_alone for name in ("job0", "job1", "job2")] == [True, True, False]
        for _ in range(MAX_ATTEMPTS - 1):
            assert server.startable == ["job0"]
            server.begin(0)
            kill()
        record = server.record("job0")
        assert record.state == "failed" and f"{MAX_ATTEMPTS} times while this image was generated" in record.error
        assert server.record("job1").state == server.record("job2").state == "queued"


def test_a_drain_counts_no_attempt() -> None:
    with machine(1) as server:
        for _ in range(MAX_ATTEMPTS + 1):
            server.begin(0)
            server.drain_server()
        assert server.record("job0").attempts == 0
