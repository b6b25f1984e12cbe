"""Dispatcher: every request ends exactly once whatever the workers do; late requests are rejected."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest, NotAllowed, Refused
from stillhouse.serve import dispatcher as module
from stillhouse.serve.client import Client
from stillhouse.serve.dispatcher import Dispatcher, make_dispatcher
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.logs import extra_fields
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.settings import ServerSettings, TierSettings
from stillhouse.serve.worker.messages import (
    Begun,
    Cancel,
    Command,
    Event,
    Opening,
    Ready,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
)
from stillhouse.serve.worker_handle import MAX_ATTEMPTS, START_SECONDS, STEP_TOLERANCE

GROUP = BatchKey("shapes", 64, 64)
CURVE = LatencyCurve({1: 1.0, 2: 1.0})
TIERS = {
    "free": TierSettings("shapes", steps=3),
    "pro": TierSettings("shapes", steps=10, also=("free",), degrade=("free",)),
}
ANYBODY = Client("anonymous", "free", frozenset(TIERS))


@dataclass
class FakeWorker:
    """Worker controlled by the test; it records its commands."""

    config: WorkerConfig
    on_event: Callable[[Event], None]
    on_death: Callable[[], None]
    commands: list[Command] = field(default_factory=list)
    starts: int = 0

    def start(self) -> None:
        self.starts += 1
        self.commands = []

    def send(self, command: Command) -> None:
        self.commands.append(command)

    def mark_ready(self) -> None: ...

    def kill(self) -> None:
        self.die()

    def close(self) -> None: ...

    def report_ready(self) -> None:
        self.on_event(Ready([(GROUP, CURVE)]))

    def die(self) -> None:
        self.on_death()
        self.start()

    @property
    def submitted(self) -> dict[str, Submit]:
        """Return the submitted requests by id."""
        submitted: dict[str, Submit] = {}
        for command in self.commands:
            if isinstance(command, Submit):
                assert command.id not in submitted, "asked twice for the same"
                submitted[command.id] = command
        return submitted


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def make_dispatcher_with_worker(settings: ServerSettings | None = None) -> tuple[Dispatcher, FakeWorker, FakeClock]:
    """Return a dispatcher with a ready worker."""
    time = FakeClock()
    dispatcher = make_dispatcher(settings or ServerSettings(TIERS), clock=time, make_supervisor=FakeWorker)
    worker = dispatcher.add_worker().supervisor
    assert isinstance(worker, FakeWorker)
    worker.report_ready()
    return dispatcher, worker, time


def make_request(tier: str | None = None, **fields: Any) -> GenerationRequest:
    original = {name: fields.pop(name) for name in ("client", "queue_timeout", "is_background", "id") if name in fields}
    return GenerationRequest(
        ImageRequest(fields.pop("prompt", "a red circle"), **fields), original.pop("client", ANYBODY), tier, **original
    )


class DispatcherMachine(RuleBasedStateMachine):
    """Requests are submitted, cancelled and finished; workers die at any time and restart."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.dispatcher, self.worker, self.time = make_dispatcher_with_worker()
        self.handles: list[RequestHandle] = []
        self.begun: dict[str, int] = {}
        self.is_ready = True

    @rule(tier=st.sampled_from(("free", "pro")), key=st.sampled_from("ab"))
    def submit(self, tier: str, key: str) -> None:
        try:
            handle = self.dispatcher.submit(make_request(tier, client=replace(ANYBODY, key=key)))
        except Refused:
            return
        self.handles.append(handle)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        if self.handles:
            handle = self.handles[number % len(self.handles)]
            assert self.dispatcher.cancel(handle.id) == (handle.output is None) or handle.is_cancelled

    @precondition(lambda self: self.is_ready)
    @rule()
    def step_worker(self) -> None:
        """Confirm a cancellation, or advance the first submitted request."""
        cancelled = [command.id for command in self.worker.commands if isinstance(command, Cancel)]
        for name in self.worker.submitted:
            if name in cancelled:
                self.worker.on_event(RequestOutput(name, "cancelled"))
                self.forget(name)
                return
        for name in self.worker.submitted:
            handle = next(handle for handle in self.handles if handle.id == name)
            if handle.job.is_done:
                self.worker.on_event(RequestOutput(name, "finished", b"picture"))
                self.forget(name)
            else:
                if not handle.is_begun:
                    self.begun[name] = self.begun.get(name, 0) + 1
                    assert self.worker.submitted[name].is_alone == (self.begun[name] > 1)
                    self.worker.on_event(Begun(name))
                self.time.now += 1.0
                self.worker.on_event(StepReport([StepStats([name], GROUP, 1, 1.0, 1.0)]))
            return

    def forget(self, name: str) -> None:
        self.worker.commands = [command for command in self.worker.commands if command.id != name]

    @rule()
    def die(self) -> None:
        self.worker.die()
        self.is_ready = False

    @precondition(lambda self: not self.is_ready)
    @rule()
    def ready(self) -> None:
        self.worker.report_ready()
        self.is_ready = True

    @invariant()
    def each_ticket_is_open_or_has_ended(self) -> None:
        for handle in self.handles:
            is_open = self.dispatcher.get(handle.id) is not None
            assert is_open == (handle.output is None)
            assert handle.attempts <= MAX_ATTEMPTS

    @invariant()
    def the_worker_has_what_is_open_and_nothing_else(self) -> None:
        if self.is_ready:
            assert set(self.worker.submitted) == {handle.id for handle in self.dispatcher.handles}

    @invariant()
    def who_died_too_often_is_told(self) -> None:
        for handle in self.handles:
            if handle.output and handle.output.finish_reason == "failed":
                assert handle.output.error_type == "WorkerDied"
                assert handle.attempts == self.begun[handle.id] == MAX_ATTEMPTS

    def teardown(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        if not self.is_ready:
            self.ready()
        for _ in range(20 * len(self.handles) + 1):
            self.step_worker()
        assert all(handle.output for handle in self.handles)
        assert not list(self.dispatcher.handles) and not self.dispatcher.workers[0].pool.jobs
        self.runner.close()


TestFront = DispatcherMachine.TestCase


def charged_pixel_steps(dispatcher: Dispatcher) -> float:
    """Return the pixel-steps charged to the only key with a quota."""
    return sum(amount for _, amount in dispatcher.rate_limiter.daily_usage.values())


def test_failure_log_has_a_traceback_summary(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher, worker, _ = make_dispatcher_with_worker()
    handle = dispatcher.submit(make_request())
    failed = RequestOutput(
        handle.id, "failed", error="no", error_type="BackendFailed", traceback_summary="models/png.py:7 read"
    )
    with caplog.at_level(logging.WARNING, logger="stillhouse.serve"):  # a library may have raised the root's level
        worker.on_event(failed)
    (record,) = (record for record in caplog.records if record.getMessage() == "request failed")
    assert extra_fields(record)["traceback_summary"] == "models/png.py:7 read"


COUNTED = replace(ANYBODY, daily=1e9)


def test_a_picture_that_failed_or_never_began_is_paid_back_and_one_of_fewer_steps_costs_less() -> None:
    front, worker, _ = make_dispatcher_with_worker()
    handle = front.submit(make_request(client=COUNTED))
    assert charged_pixel_steps(front) == 64 * 64 * 3
    worker.on_event(RequestOutput(handle.id, "failed", error="no", error_type="BackendFailed"))
    assert charged_pixel_steps(front) == 0
    worker.on_event(RequestOutput(front.submit(make_request(client=COUNTED)).id, "expired"))
    assert charged_pixel_steps(front) == 0
    late = {**TIERS, "pro": replace(TIERS["pro"], max_lateness=1.0)}
    dispatcher, worker, _ = make_dispatcher_with_worker(ServerSettings(late))
    for key in "ab":
        dispatcher.submit(make_request("pro", client=replace(ANYBODY, key=key)))
    handle = dispatcher.submit(make_request("pro", client=replace(COUNTED, key="c")))
    assert handle.degraded_to == "free" and charged_pixel_steps(dispatcher) == 64 * 64 * 3, (
        "and not for the ten that it asked for"
    )


def test_one_worker_per_device_and_the_least_loaded_is_selected() -> None:
    dispatcher = make_dispatcher(
        ServerSettings(TIERS, devices=("0", "3")), clock=FakeClock(), make_supervisor=FakeWorker
    )

    async def life() -> list[FakeWorker]:
        dispatcher.open()
        workers = [worker_handle.supervisor for worker_handle in dispatcher.workers]
        assert all(isinstance(worker, FakeWorker) for worker in workers)
        for worker in workers:
            worker.report_ready()  # type: ignore[attr-defined]
        for _ in range(4):
            dispatcher.submit(make_request())
        dispatcher.close()
        return workers  # type: ignore[return-value]

    workers = asyncio.run(life())
    assert [worker.config.device for worker in workers] == ["0", "3"]
    assert [len(worker.submitted) for worker in workers] == [2, 2]
    with pytest.raises(InvalidRequest, match="devices 0, 0 name a device twice; allowed: each device once"):
        ServerSettings(TIERS, devices=("0", "0"))


def test_several_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: 7)

    def threads(settings: ServerSettings) -> list[int | None]:
        dispatcher = make_dispatcher(settings, clock=FakeClock(), make_supervisor=FakeWorker)

        async def life() -> None:
            dispatcher.open()
            dispatcher.close()

        asyncio.run(life())
        return [worker.config.threads for worker in dispatcher.workers]

    assert threads(ServerSettings(TIERS)) == [None]
    assert threads(ServerSettings(TIERS, workers=3)) == [2, 2, 2]
    assert threads(ServerSettings(TIERS, workers=2, threads=1)) == [1, 1]
    assert threads(ServerSettings(TIERS, workers=9)) == [1] * 9
    with pytest.raises(InvalidRequest, match="workers is 2, and devices 0 have one worker each; allowed: workers 1"):
        ServerSettings(TIERS, devices=("0",), workers=2)


def test_background_requests_do_not_count_in_goodput() -> None:
    dispatcher, worker, time = make_dispatcher_with_worker()
    for is_patient in (True, False, False):
        handle = dispatcher.submit(make_request(is_background=is_patient))
        time.now += 1000.0 * is_patient
        worker.on_event(RequestOutput(handle.id, "finished", b"picture"))
    record = dispatcher.metrics.exposition().decode()
    assert 'stillhouse_images_total{pipeline="shapes",tier="free"} 3.0' in record
    assert 'stillhouse_images_in_time_total{tier="free"} 2.0' in record
    assert 'stillhouse_goodput_ratio{tier="free"} 1.0' in record


@pytest.fixture
def dispatcher() -> tuple[Dispatcher, FakeWorker, FakeClock]:
    return make_dispatcher_with_worker()


def test_request_takes_the_defaults_of_its_tier(dispatcher: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    handle = dispatcher[0].submit(make_request("pro"))
    assert (handle.request.steps, handle.job.tier.name, handle.effective_tier) == (10, "pro", "pro")
    assert dispatcher[0].submit(make_request("pro", steps=4)).request.steps == 4
    assert dispatcher[0].submit(make_request()).request.steps == 3


def test_invalid_requests_are_refused_on_submission(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    with pytest.raises(InvalidRequest, match="multiples of"):
        dispatcher[0].submit(make_request(width=65, height=64))
    with pytest.raises(InvalidRequest, match="up to 150 for model 'free'"):
        dispatcher[0].submit(make_request(steps=151))
    with pytest.raises(InvalidRequest, match="did you mean 'free'"):
        dispatcher[0].submit(make_request("fre"))
    with pytest.raises(NotAllowed, match="allowed: free"):
        dispatcher[0].submit(make_request("pro", client=replace(ANYBODY, tiers=frozenset({"free"}))))
    limited, _, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_pixels=64 * 64))
    with pytest.raises(InvalidRequest, match="up to 4,096 pixels"):
        limited.submit(make_request(width=128, height=64))
    assert not list(dispatcher[0].handles)


def test_full_queue_has_retry_after() -> None:
    dispatcher, _, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=2))
    dispatcher.submit(make_request())
    dispatcher.submit(make_request())
    with pytest.raises(Refused) as refused:
        dispatcher.submit(make_request())
    assert (refused.value.reason, refused.value.retry_after) == ("queue", 3.0)


def test_late_request_is_degraded_or_rejected() -> None:
    tiers = {name: replace(tier, max_lateness=1.0) for name, tier in TIERS.items()}
    dispatcher, _, _ = make_dispatcher_with_worker(ServerSettings(tiers))
    for key in "ab":
        assert dispatcher.submit(make_request("pro", client=replace(ANYBODY, key=key))).effective_tier == "pro"
    less = dispatcher.submit(
        make_request("pro", client=replace(ANYBODY, key="c"))
    )  # it would end when its promise does
    assert (less.effective_tier, less.request.steps, less.job.tier.name) == ("free", 3, "pro")
    with pytest.raises(Refused) as refused:
        for _ in range(50):
            dispatcher.submit(make_request("free"))
    assert refused.value.reason == "deadline" and refused.value.retry_after > 0


def test_requests_are_admitted_together_or_not_at_all() -> None:
    dispatcher, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=2))
    with pytest.raises(Refused):
        dispatcher.submit_all([make_request() for _ in range(3)])
    assert {command.id for command in worker.commands if isinstance(command, Cancel)} == set(worker.submitted)


def test_rate_limited_request_is_rejected_without_charge() -> None:
    slow = replace(ANYBODY, rate=3 * 64 * 64.0, burst=3 * 64 * 64.0)
    dispatcher, _, _ = make_dispatcher_with_worker()
    dispatcher.rate_limiter.clock = lambda: 0.0
    dispatcher.submit(make_request(client=slow))
    with pytest.raises(Refused) as refused:
        dispatcher.submit(make_request(client=slow))
    assert (refused.value.reason, refused.value.retry_after) == ("rate", 1.0)
    dispatcher.rate_limiter.clock = lambda: 1.0
    dispatcher.submit(make_request(client=slow))


def test_requests_are_rejected_before_ready_and_while_draining() -> None:
    dispatcher, worker, _time = make_dispatcher_with_worker()
    worker.die()
    assert not dispatcher.is_ready
    with pytest.raises(Refused) as refused:
        dispatcher.submit(make_request())
    assert refused.value.reason == "starting" and refused.value.retry_after >= 1
    worker.report_ready()
    assert dispatcher.is_ready
    with asyncio.Runner() as runner:
        runner.run(dispatcher.drain(0.0))
    with pytest.raises(Refused) as refused:
        dispatcher.submit(make_request())
    assert refused.value.reason == "draining"


def test_a_request_that_was_begun_is_repeated_alone_with_the_same_seed_until_its_attempts_are_over(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    handle = dispatcher[0].submit(make_request(seed=7))
    worker = dispatcher[1]
    for attempt in range(MAX_ATTEMPTS):
        assert handle.job.index == 0 and handle.output is None
        assert worker.submitted[handle.id].resolved.request.seed == 7
        assert worker.submitted[handle.id].is_alone == (attempt > 0)
        worker.on_event(Begun(handle.id))
        worker.on_event(StepReport([StepStats([handle.id], GROUP, 2, 1.0, 1.0)]))
        assert handle.job.index == 1
        worker.die()
        worker.report_ready()
    assert handle.output and handle.output.error_type == "WorkerDied"
    assert handle.output.error == f"the worker died {MAX_ATTEMPTS} times while this image was generated"


def test_a_request_that_was_only_handed_over_survives_any_number_of_deaths(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    handle = dispatcher[0].submit(make_request())
    for _ in range(2 * MAX_ATTEMPTS):
        dispatcher[1].die()
        dispatcher[1].report_ready()
    assert handle.output is None and not dispatcher[1].submitted[handle.id].is_alone


def test_a_worker_that_is_silent_while_it_opens_is_restarted() -> None:
    time = FakeClock()
    dispatcher = make_dispatcher(ServerSettings(TIERS), clock=time, make_supervisor=FakeWorker)
    handle = dispatcher.add_worker()
    worker = handle.supervisor
    assert isinstance(worker, FakeWorker)
    time.now += START_SECONDS - 1
    handle.check_health(5.0, 60.0)
    assert worker.starts == 1, "it may import its libraries first"
    time.now += 2
    handle.check_health(5.0, 60.0)
    assert worker.starts == 2
    for _ in range(15):
        time.now += 4.0
        worker.on_event(Opening())
        handle.check_health(5.0, 60.0)
    assert worker.starts == 2
    time.now += 1.0
    handle.check_health(5.0, 60.0)
    assert worker.starts == 3, "it was alive, and not ready in time"
    worker.on_event(Opening())
    time.now += 6.0
    handle.check_health(5.0, 60.0)
    assert worker.starts == 4
    worker.report_ready()
    time.now += 1000.0
    handle.check_health(5.0, 60.0)
    assert worker.starts == 4 and dispatcher.is_ready, "an idle worker sends nothing"


def test_a_step_that_is_predicted_to_be_long_is_no_stall(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    dispatcher_, worker, time = dispatcher
    dispatcher_.submit(make_request(width=512, height=512))
    seconds = 512 * 512 / (64 * 64)
    time.now += STEP_TOLERANCE * seconds - 1
    dispatcher_.workers[0].check_health(5.0)
    assert worker.starts == 1
    time.now += 2
    dispatcher_.workers[0].check_health(5.0)
    assert worker.starts == 2


def test_deadlines_are_sent_as_seconds_left(dispatcher: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    dispatcher_, worker, time = dispatcher
    handle = dispatcher_.submit(make_request(queue_timeout=10.0))
    assert worker.submitted[handle.id].expires_in == 10.0
    time.now += 4.0
    worker.die()
    worker.report_ready()
    assert worker.submitted[handle.id].expires_in == 6.0


def test_latency_curves_are_passed_to_the_next_worker(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    assert dispatcher[1].config.curves == [(GROUP, CURVE)]


def test_slowdown_applies_to_new_requests(dispatcher: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    handle = dispatcher[0].submit(make_request())
    dispatcher[1].on_event(StepReport([StepStats([handle.id], GROUP, 2, 2.0, 2.0)]))
    assert dispatcher[0].submit(make_request()).job.isolated_seconds == pytest.approx(6.0)


def test_stalled_worker_is_killed_and_waiting_requests_fail(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    dispatcher_, worker, time = dispatcher
    (worker_handle,) = dispatcher_.workers
    handle = dispatcher_.submit(make_request())
    time.now += 100
    worker_handle.check_health(120.0)
    assert dispatcher_.is_ready
    time.now += 100
    worker_handle.check_health(120.0)
    assert not dispatcher_.is_ready and worker.starts == 2 and handle.output is None
    time.now += 121
    worker_handle.check_health(120.0)
    assert handle.output and handle.output.error_type == "WorkerDied"
    worker.report_ready()
    assert not worker.submitted


def test_idle_worker_is_not_stalled(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    dispatcher_, worker, time = dispatcher
    (worker_handle,) = dispatcher_.workers
    time.now += 1000
    dispatcher_.submit(make_request())
    worker_handle.check_health(120.0)
    assert dispatcher_.is_ready and worker.starts == 1
    time.now += 121
    worker_handle.check_health(120.0)
    assert worker.starts == 2


def test_requests_in_decoding_count_in_the_queue() -> None:
    dispatcher, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=2))
    for _ in range(2):
        handle = dispatcher.submit(make_request(steps=1))
        worker.on_event(StepReport([StepStats([handle.id], GROUP, 2, 1.0, 1.0)]))
    assert not dispatcher.workers[0].pool.jobs
    with pytest.raises(Refused) as refused:
        dispatcher.submit(make_request())
    assert refused.value.reason == "queue" and refused.value.retry_after > 0


def test_requests_are_charged_together_and_refunded_on_rejection() -> None:
    step = 64 * 64.0
    slow = replace(ANYBODY, rate=step, burst=6 * step)
    dispatcher, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=3))
    now = 0.0
    dispatcher.rate_limiter.clock = lambda: now
    with pytest.raises(Refused) as refused:
        dispatcher.submit_all([make_request(client=slow) for _ in range(4)])
    assert refused.value.reason == "queue"
    for name in worker.submitted:
        worker.on_event(RequestOutput(name, "cancelled"))
    dispatcher.submit_all([make_request(client=slow, steps=1) for _ in range(3)])
    with pytest.raises(Refused) as refused:
        dispatcher.submit_all([make_request(client=slow) for _ in range(3)])
    assert (refused.value.reason, refused.value.retry_after) == ("rate", 3.0)


def test_request_larger_than_the_bucket_is_accepted_after_retry_after() -> None:
    step = 64 * 64.0
    slow = replace(ANYBODY, rate=step, burst=6 * step)
    dispatcher, _, _ = make_dispatcher_with_worker()
    now = 0.0
    dispatcher.rate_limiter.clock = lambda: now
    dispatcher.submit(make_request(client=slow, steps=2))
    with pytest.raises(Refused) as refused:
        dispatcher.submit_all([make_request(client=slow) for _ in range(3)])
    now = refused.value.retry_after
    assert len(dispatcher.submit_all([make_request(client=slow) for _ in range(3)])) == 3


def test_degradation_skips_tiers_that_cannot_run_the_request() -> None:
    """The free tier's student refuses guidance beyond its range."""
    tiers = {name: replace(tier, max_lateness=1.0) for name, tier in TIERS.items()}
    tiers["free"] = replace(tiers["free"], pipeline="shapes-3", steps=None, sampler=None)
    dispatcher, _, _ = make_dispatcher_with_worker(ServerSettings(tiers))
    slow = replace(ANYBODY, rate=1e9, burst=1e9)
    with pytest.raises(InvalidRequest, match="guidance is 50"):
        dispatcher.submit(make_request("free", guidance=50.0, client=slow))
    with pytest.raises(Refused) as refused:
        for number in range(9):
            dispatcher.submit(make_request("pro", guidance=50.0, client=replace(slow, key=str(number))))
    assert refused.value.reason == "deadline"


def test_overlong_prompt_is_refused_before_tokenization(dispatcher: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    with pytest.raises(InvalidRequest, match="the prompt has 10,001 characters; allowed: up to 10,000"):
        dispatcher[0].submit(make_request(prompt="a" * 10_001))


def test_rejected_background_request_is_not_counted() -> None:
    dispatcher, _, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=1))
    dispatcher.submit(make_request())
    for is_patient in (True, False):
        with pytest.raises(Refused):
            dispatcher.submit(make_request(is_background=is_patient))
    samples = [command for metric in dispatcher.metrics.rejected.collect() for command in metric.samples]
    assert [command.value for command in samples if command.name.endswith("_total")] == [1.0]


def test_job_larger_than_the_daily_quota_is_refused(
    dispatcher: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    poor = replace(ANYBODY, daily=2 * 64 * 64.0)
    dispatcher[0].validate(make_request(client=poor, steps=2))
    message = r"12,288 pixel-steps \(pixels times evaluations\); allowed: up to 8,192 pixel-steps a day with this key"
    with pytest.raises(InvalidRequest, match=message):
        dispatcher[0].validate(make_request(client=poor))


@pytest.mark.parametrize("wrong", [{"sampler": "dpmpp"}, {"steps": 2000}, {"guidance": -3.0}])
def test_invalid_tier_is_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="tier 'free' is invalid"):
        make_dispatcher(ServerSettings({"free": TierSettings("shapes", **wrong)}))
