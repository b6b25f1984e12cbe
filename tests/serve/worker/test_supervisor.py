"""A worker process is started, spoken to, and started again when it has died."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import read_manifest
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey
from stillhouse.serve.worker.locate_pipeline import PipelineReference, pipeline_id
from stillhouse.serve.worker.messages import Event, Opening, Ready, WorkerConfig, WorkerFailed
from stillhouse.serve.worker.supervisor import ProcessSupervisor

SHAPES = pipeline_id(read_manifest(EMBEDDED["shapes"]))
CURVES = [(BatchKey("shapes", 64, 64), LatencyCurve({1: 1.0}))]
LIMIT = 90.0


@asynccontextmanager
async def supervised(config: WorkerConfig) -> AsyncIterator[tuple[ProcessSupervisor, list[Event | None]]]:
    """A supervisor, and what happened: its events, and None for each death. `Opening` is noted once in a row."""
    events: list[Event | None] = []

    def note(event: Event) -> None:
        if not isinstance(event, Opening) or not events or not isinstance(events[-1], Opening):
            events.append(event)

    supervisor = ProcessSupervisor(config, note, lambda: events.append(None))
    supervisor.start()
    try:
        yield supervisor, events
    finally:
        supervisor.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


def make_config(checksum: str = SHAPES) -> WorkerConfig:
    return WorkerConfig({"shapes": PipelineReference(checksum, "shapes")}, "slack", 1 << 40, curves=CURVES)


def test_a_worker_that_died_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    opened = [Opening(), Ready(CURVES)]

    async def run() -> None:
        async with supervised(make_config()) as (supervisor, events):
            await wait_until(lambda: events == opened)
            supervisor.mark_ready()
            assert supervisor._process is not None
            os.kill(supervisor._process.pid, signal.SIGSEGV)
            await wait_until(lambda: events == [*opened, None, *opened])
            supervisor.kill()
            await wait_until(lambda: len(events) == 6)
            process = supervisor._process
        assert not process.is_alive
        await asyncio.sleep(0.1)
        assert events[:6] == [*opened, None, *opened, None] and None not in events[6:], (
            "a closed one is not started again"
        )

    with caplog.at_level(logging.WARNING, logger="stillhouse.serve"):  # a library may have raised the root's level
        asyncio.run(run())
    deaths = [record.__dict__ for record in caplog.records if record.getMessage() == "worker died"]
    assert [death["reason"] for death in deaths] == [
        f"its process was ended by {name}" for name in ("SIGSEGV", "SIGKILL")
    ]
    assert [death["restart_in"] for death in deaths] == [0.0, 0.25]


def test_a_worker_refuses_a_pipeline_that_is_not_the_servers() -> None:
    async def run() -> None:
        config = WorkerConfig({"shapes": PipelineReference("shapes@0", "shapes")}, "slack", 1 << 40)
        async with supervised(config) as (_, events):
            await wait_until(lambda: len(events) > 1)
            _, failed = events[:2]
            assert isinstance(failed, WorkerFailed) and "allowed: shapes@0" in failed.error

    asyncio.run(run())
