"""One served picture is resolved once and planned once, from the dispatcher to the worker's trajectory."""

import asyncio
import os
import socket
import time
from collections import Counter
from threading import Thread
from typing import Any

import pytest

import stillhouse.pipelines.pipeline
import stillhouse.pipelines.resolve
import stillhouse.serve.dispatcher
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.executor import PipelineCache, PipelineExecutor
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.worker.engine_process import Worker
from stillhouse.serve.worker.messages import Command, Event, Submit, WorkerConfig
from stillhouse.workers.channel import Channel, SocketTransport
from tests.diffusion.plans import count_plans
from tests.serve.test_dispatcher import CURVE, GROUP, make_dispatcher_with_worker, make_request

RESOLVERS = (stillhouse.pipelines.resolve, stillhouse.pipelines.pipeline, stillhouse.serve.dispatcher)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a request is resolved, and how often a family says its guidance, its schedule and its batch key."""
    counted: Counter[str] = Counter()

    def count(place: Any, name: str) -> None:
        call = getattr(place, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return call(*arguments, **options)

        monkeypatch.setattr(place, name, noted)

    for module in RESOLVERS:
        count(module, "resolve")
    for name in ("guidance", "schedule", "batch_key"):
        count(type(find_family("stable-diffusion")), name)
    return counted


def submit_to_dispatcher(*counters: Any) -> Submit:
    """Return the message that the dispatcher sends to its worker for one request.

    Counters begin with that request: a new dispatcher resolves each tier's defaults, to check its settings.
    """

    async def submit() -> Submit:
        dispatcher, worker, _ = make_dispatcher_with_worker()
        for counter in counters:
            counter.clear()
        handle = dispatcher.submit(make_request(steps=2, guidance=3.0))
        return worker.submitted[handle.id]

    return asyncio.run(submit())


def generate_in_worker(pipeline: Pipeline, submit: Submit) -> RequestOutput:
    """Send a message to a worker's loop in another thread, and return the picture's end."""
    pipelines = PipelineCache(lambda name: pipeline, (submit.batch_key.pipeline,), 1 << 40, os.getpid)
    engine = Engine(
        PipelineExecutor(pipelines),
        POLICIES["slack"],
        CostModel({GROUP: CURVE}),
        time.monotonic,
    )
    ours, theirs = map(SocketTransport, socket.socketpair())
    server: Channel[Command, Event] = Channel(ours, Event)
    thread = Thread(target=Worker(Channel(theirs, WorkerConfig | Command), engine, pipelines).run, daemon=True)
    thread.start()
    server.send(submit)
    event = server.receive()
    while not isinstance(event, RequestOutput):
        event = server.receive()
    ours.close()
    thread.join(timeout=10)
    return event


def test_a_picture_is_resolved_and_planned_once(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load("shapes", threads=1)
    plans = count_plans(monkeypatch)
    submit = submit_to_dispatcher(calls, plans)
    assert (submit.resolved.plan.rows, submit.resolved.batch_key) == ((2, 2), (64, 64))
    event = generate_in_worker(pipeline, submit)
    assert event.finish_reason == "finished" and event.content.startswith(b"\x89PNG")
    assert dict(calls) == {"resolve": 1, "guidance": 1, "schedule": 1, "batch_key": 1}
    assert len(plans) == 1


def test_the_trajectory_has_the_plan_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, started = load("shapes", threads=1), list[Any]()
    start = Pipeline.start

    def noted(self: Pipeline, *arguments: Any, **options: Any) -> Any:
        started.append(start(self, *arguments, **options))
        return started[-1]

    monkeypatch.setattr(Pipeline, "start", noted)
    submit = submit_to_dispatcher()
    generate_in_worker(pipeline, submit)
    (trajectory,) = started
    assert trajectory.plan == submit.resolved.plan and trajectory.is_done
