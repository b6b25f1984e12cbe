"""The front: every ticket has exactly one end, whatever the workers do; nobody is taken who cannot be served."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest, NotAllowed, Refused
from stillhouse.serve.client import Client
from stillhouse.serve.dispatcher import Dispatcher, make_dispatcher
from stillhouse.serve.engine.cost import LatencyCurve
from stillhouse.serve.engine.job import BatchKey
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.logs import extra_fields
from stillhouse.serve.request_handle import GenerationRequest, RequestHandle
from stillhouse.serve.settings import ServerSettings, TierSettings
from stillhouse.serve.worker.messages import (
    Cancel,
    Command,
    Event,
    Ready,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
)
from stillhouse.serve.worker_handle import MAX_ATTEMPTS

GROUP = BatchKey("shapes", 64, 64)
CURVE = LatencyCurve({1: 1.0, 2: 1.0})
TIERS = {
    "free": TierSettings("shapes", steps=3),
    "pro": TierSettings("shapes", steps=10, also=("free",), degrade=("free",)),
}
ANYBODY = Client("anonymous", "free", frozenset(TIERS))


@dataclass
class FakeWorker:
    """A worker that does what the test says: it writes down what it was asked."""

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
        """What it has to draw, as far as it knows."""
        found: dict[str, Submit] = {}
        for one in self.commands:
            if isinstance(one, Submit):
                assert one.id not in found, "asked twice for the same"
                found[one.id] = one
        return found


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def make_dispatcher_with_worker(settings: ServerSettings | None = None) -> tuple[Dispatcher, FakeWorker, FakeClock]:
    """A front with a worker that is ready; in a loop that is running."""
    time = FakeClock()
    front = make_dispatcher(settings or ServerSettings(TIERS), clock=time, make_supervisor=FakeWorker)
    worker = front.add_worker().supervisor
    assert isinstance(worker, FakeWorker)
    worker.report_ready()
    return front, worker, time


def make_request(tier: str | None = None, **fields: Any) -> GenerationRequest:
    known = {name: fields.pop(name) for name in ("client", "queue_timeout", "is_background", "id") if name in fields}
    return GenerationRequest(
        ImageRequest(fields.pop("prompt", "a red circle"), **fields), known.pop("client", ANYBODY), tier, **known
    )


class DispatcherMachine(RuleBasedStateMachine):
    """Orders come, are cancelled, are drawn; workers die whenever they like, and start again."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.front, self.worker, self.time = make_dispatcher_with_worker()
        self.tickets: list[RequestHandle] = []
        self.is_ready = True

    @rule(tier=st.sampled_from(("free", "pro")), key=st.sampled_from("ab"))
    def submit(self, tier: str, key: str) -> None:
        try:
            ticket = self.front.submit(make_request(tier, client=replace(ANYBODY, key=key)))
        except Refused:
            return
        self.tickets.append(ticket)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        if self.tickets:
            ticket = self.tickets[number % len(self.tickets)]
            assert self.front.cancel(ticket.id) == (ticket.output is None) or ticket.is_cancelled

    @precondition(lambda self: self.is_ready)
    @rule()
    def step_worker(self) -> None:
        """The worker does what it was asked: it cancels, or moves the first picture that it has."""
        cancelled = [one.id for one in self.worker.commands if isinstance(one, Cancel)]
        for name in self.worker.submitted:
            if name in cancelled:
                self.worker.on_event(RequestOutput(name, "cancelled"))
                self.forget(name)
                return
        for name in self.worker.submitted:
            ticket = next(ticket for ticket in self.tickets if ticket.id == name)
            if ticket.job.is_done:
                self.worker.on_event(RequestOutput(name, "finished", b"picture"))
                self.forget(name)
            else:
                self.time.now += 1.0
                self.worker.on_event(StepReport([StepStats([name], GROUP, 1, 1.0, 1.0)]))
            return

    def forget(self, name: str) -> None:
        self.worker.commands = [one for one in self.worker.commands if one.id != name]

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
        for ticket in self.tickets:
            is_open = self.front.get(ticket.id) is not None
            assert is_open == (ticket.output is None)
            assert ticket.attempts <= MAX_ATTEMPTS

    @invariant()
    def the_worker_has_what_is_open_and_nothing_else(self) -> None:
        if self.is_ready:
            assert set(self.worker.submitted) == {ticket.id for ticket in self.front.handles}

    @invariant()
    def who_died_too_often_is_told(self) -> None:
        for ticket in self.tickets:
            if ticket.output and ticket.output.finish_reason == "failed":
                assert ticket.output.error_type == "WorkerDied" and ticket.attempts == MAX_ATTEMPTS

    def teardown(self) -> None:
        if not hasattr(self, "front"):
            return
        if not self.is_ready:
            self.ready()
        for _ in range(20 * len(self.tickets) + 1):
            self.step_worker()
        assert all(ticket.output for ticket in self.tickets)
        assert not list(self.front.handles) and not self.front.workers[0].pool.jobs
        self.runner.close()


TestFront = DispatcherMachine.TestCase


def charged_pixel_steps(front: Dispatcher) -> float:
    """Pixel-steps of the only key that has a day's portion."""
    return sum(amount for _, amount in front.rate_limiter.daily_usage.values())


def test_the_log_tells_where_a_job_failed(caplog: pytest.LogCaptureFixture) -> None:
    front, worker, _ = make_dispatcher_with_worker()
    ticket = front.submit(make_request())
    worker.on_event(
        RequestOutput(
            ticket.id, "failed", error="no", error_type="BackendFailed", traceback_summary="models/png.py:7 read"
        )
    )
    (told,) = (record for record in caplog.records if record.getMessage() == "request failed")
    assert extra_fields(told)["traceback_summary"] == "models/png.py:7 read"


COUNTED = replace(ANYBODY, daily=1e9)


def test_a_picture_that_failed_or_never_began_is_paid_back_and_one_of_fewer_steps_costs_less() -> None:
    front, worker, _ = make_dispatcher_with_worker()
    ticket = front.submit(make_request(client=COUNTED))
    assert charged_pixel_steps(front) == 64 * 64 * 3
    worker.on_event(RequestOutput(ticket.id, "failed", error="no", error_type="BackendFailed"))
    assert charged_pixel_steps(front) == 0
    worker.on_event(RequestOutput(front.submit(make_request(client=COUNTED)).id, "expired"))
    assert charged_pixel_steps(front) == 0
    late = {**TIERS, "pro": replace(TIERS["pro"], max_lateness=1.0)}
    front, worker, _ = make_dispatcher_with_worker(ServerSettings(late))
    for key in "ab":
        front.submit(make_request("pro", client=replace(ANYBODY, key=key)))
    ticket = front.submit(make_request("pro", client=replace(COUNTED, key="c")))
    assert ticket.degraded_to == "free" and charged_pixel_steps(front) == 64 * 64 * 3, (
        "and not for the ten that it asked for"
    )


def test_every_device_has_a_worker_that_sees_no_other_and_a_picture_goes_to_the_one_with_less_to_do() -> None:
    front = make_dispatcher(ServerSettings(TIERS, devices=("0", "3")), clock=FakeClock(), make_supervisor=FakeWorker)

    async def life() -> list[FakeWorker]:
        front.open()
        workers = [station.supervisor for station in front.workers]
        assert all(isinstance(worker, FakeWorker) for worker in workers)
        for worker in workers:
            worker.report_ready()  # type: ignore[attr-defined]
        for _ in range(4):
            front.submit(make_request())
        front.close()
        return workers  # type: ignore[return-value]

    workers = asyncio.run(life())
    assert [worker.config.device for worker in workers] == ["0", "3"]
    assert [len(worker.submitted) for worker in workers] == [2, 2]
    with pytest.raises(InvalidRequest, match="devices 0, 0; allowed: each once"):
        ServerSettings(TIERS, devices=("0", "0"))


def test_patient_pictures_do_not_count_for_promises() -> None:
    front, worker, time = make_dispatcher_with_worker()
    for is_patient in (True, False, False):
        ticket = front.submit(make_request(is_background=is_patient))
        time.now += 1000.0 * is_patient
        worker.on_event(RequestOutput(ticket.id, "finished", b"picture"))
    told = front.metrics.exposition().decode()
    assert 'stillhouse_images_total{pipeline="shapes",tier="free"} 3.0' in told
    assert 'stillhouse_images_in_time_total{tier="free"} 2.0' in told
    assert 'stillhouse_goodput_ratio{tier="free"} 1.0' in told


@pytest.fixture
def front() -> tuple[Dispatcher, FakeWorker, FakeClock]:
    return make_dispatcher_with_worker()


def test_a_request_is_filled_in_as_its_tier_says(front: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    ticket = front[0].submit(make_request("pro"))
    assert (ticket.request.steps, ticket.job.tier.name, ticket.effective_tier) == (10, "pro", "pro")
    assert front[0].submit(make_request("pro", steps=4)).request.steps == 4
    assert front[0].submit(make_request()).request.steps == 3


def test_what_a_pipeline_cannot_do_or_the_settings_forbid_is_refused_at_the_door(
    front: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    with pytest.raises(InvalidRequest, match="multiples of"):
        front[0].submit(make_request(width=65, height=64))
    with pytest.raises(InvalidRequest, match="up to 150 for model 'free'"):
        front[0].submit(make_request(steps=151))
    with pytest.raises(InvalidRequest, match="did you mean 'free'"):
        front[0].submit(make_request("fre"))
    with pytest.raises(NotAllowed, match="allowed: free"):
        front[0].submit(make_request("pro", client=replace(ANYBODY, tiers=frozenset({"free"}))))
    limited, _, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_pixels=64 * 64))
    with pytest.raises(InvalidRequest, match="up to 4,096 pixels"):
        limited.submit(make_request(width=128, height=64))
    assert not list(front[0].handles)


def test_a_full_queue_says_when_to_come_back() -> None:
    front, _, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=2))
    front.submit(make_request())
    front.submit(make_request())
    with pytest.raises(Refused) as refused:
        front.submit(make_request())
    assert (refused.value.reason, refused.value.retry_after) == ("queue", 3.0)


def test_who_would_be_too_late_is_refused_or_drawn_with_less_where_the_tier_allows_it() -> None:
    tiers = {name: replace(tier, max_lateness=1.0) for name, tier in TIERS.items()}
    front, _, _ = make_dispatcher_with_worker(ServerSettings(tiers))
    for key in "ab":
        assert front.submit(make_request("pro", client=replace(ANYBODY, key=key))).effective_tier == "pro"
    less = front.submit(make_request("pro", client=replace(ANYBODY, key="c")))  # it would end when its promise does
    assert (less.effective_tier, less.request.steps, less.job.tier.name) == ("free", 3, "pro")
    with pytest.raises(Refused) as refused:
        for _ in range(50):
            front.submit(make_request("free"))
    assert refused.value.reason == "deadline" and refused.value.retry_after > 0


def test_several_pictures_are_taken_together_or_not_at_all() -> None:
    front, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=2))
    with pytest.raises(Refused):
        front.submit_all([make_request() for _ in range(3)])
    assert {one.id for one in worker.commands if isinstance(one, Cancel)} == set(worker.submitted)


def test_a_key_that_has_used_its_portion_is_refused_and_loses_nothing_by_being_refused() -> None:
    slow = replace(ANYBODY, rate=3 * 64 * 64.0, burst=3 * 64 * 64.0)
    front, _, _ = make_dispatcher_with_worker()
    front.rate_limiter.clock = lambda: 0.0
    front.submit(make_request(client=slow))
    with pytest.raises(Refused) as refused:
        front.submit(make_request(client=slow))
    assert (refused.value.reason, refused.value.retry_after) == ("rate", 1.0)
    front.rate_limiter.clock = lambda: 1.0
    front.submit(make_request(client=slow))


def test_nothing_is_taken_before_a_worker_is_ready_and_while_the_server_leaves() -> None:
    front, worker, _time = make_dispatcher_with_worker()
    worker.die()
    assert not front.is_ready
    with pytest.raises(Refused) as refused:
        front.submit(make_request())
    assert refused.value.reason == "starting" and refused.value.retry_after >= 1
    worker.report_ready()
    assert front.is_ready
    with asyncio.Runner() as runner:
        runner.run(front.drain(0.0))
    with pytest.raises(Refused) as refused:
        front.submit(make_request())
    assert refused.value.reason == "draining"


def test_a_picture_is_drawn_again_once_from_its_beginning_with_the_same_seed(
    front: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    ticket = front[0].submit(make_request(seed=7))
    worker = front[1]
    worker.on_event(StepReport([StepStats([ticket.id], GROUP, 2, 1.0, 1.0)]))
    assert ticket.job.index == 1
    worker.die()
    worker.report_ready()
    assert ticket.job.index == 0 and worker.submitted[ticket.id].resolved.request.seed == 7
    worker.die()
    assert ticket.output and ticket.output.error_type == "WorkerDied"


def test_deadlines_are_sent_as_seconds_left(front: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    dispatcher, worker, time = front
    handle = dispatcher.submit(make_request(queue_timeout=10.0))
    assert worker.submitted[handle.id].expires_in == 10.0
    time.now += 4.0
    worker.die()
    worker.report_ready()
    assert worker.submitted[handle.id].expires_in == 6.0


def test_what_a_worker_measured_is_not_measured_again_by_the_next(
    front: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    assert front[1].config.curves == [(GROUP, CURVE)]


def test_what_ticks_take_of_late_counts_for_those_who_come(front: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    ticket = front[0].submit(make_request())
    front[1].on_event(StepReport([StepStats([ticket.id], GROUP, 2, 2.0, 2.0)]))
    assert front[0].submit(make_request()).job.isolated_seconds == pytest.approx(6.0)


def test_a_worker_that_gives_no_sign_of_life_is_ended_and_who_waits_too_long_is_told(
    front: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    front_, worker, time = front
    (station,) = front_.workers
    ticket = front_.submit(make_request())
    time.now += 100
    station.check_health(120.0)
    assert front_.is_ready
    time.now += 100
    station.check_health(120.0)
    assert not front_.is_ready and worker.starts == 2 and ticket.output is None
    time.now += 121
    station.check_health(120.0)
    assert ticket.output and ticket.output.error_type == "WorkerDied"
    worker.report_ready()
    assert not worker.submitted


def test_a_worker_that_had_nothing_to_do_for_long_is_not_ended_when_it_has(
    front: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    front_, worker, time = front
    (station,) = front_.workers
    time.now += 1000
    front_.submit(make_request())
    station.check_health(120.0)
    assert front_.is_ready and worker.starts == 1
    time.now += 121
    station.check_health(120.0)
    assert worker.starts == 2


def test_pictures_that_are_being_decoded_fill_the_queue_as_well() -> None:
    front, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=2))
    for _ in range(2):
        ticket = front.submit(make_request(steps=1))
        worker.on_event(StepReport([StepStats([ticket.id], GROUP, 2, 1.0, 1.0)]))
    assert not front.workers[0].pool.jobs
    with pytest.raises(Refused) as refused:
        front.submit(make_request())
    assert refused.value.reason == "queue" and refused.value.retry_after > 0


def test_several_pictures_are_charged_together_and_cost_nothing_where_they_are_refused() -> None:
    step = 64 * 64.0
    slow = replace(ANYBODY, rate=step, burst=6 * step)
    front, worker, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=3))
    now = 0.0
    front.rate_limiter.clock = lambda: now
    with pytest.raises(Refused) as refused:
        front.submit_all([make_request(client=slow) for _ in range(4)])
    assert refused.value.reason == "queue"
    for name in worker.submitted:
        worker.on_event(RequestOutput(name, "cancelled"))
    front.submit_all([make_request(client=slow, steps=1) for _ in range(3)])
    with pytest.raises(Refused) as refused:
        front.submit_all([make_request(client=slow) for _ in range(3)])
    assert (refused.value.reason, refused.value.retry_after) == ("rate", 3.0)


def test_more_than_a_bucket_at_once_is_drawn_when_the_server_said_that_it_would_be() -> None:
    step = 64 * 64.0
    slow = replace(ANYBODY, rate=step, burst=6 * step)
    front, _, _ = make_dispatcher_with_worker()
    now = 0.0
    front.rate_limiter.clock = lambda: now
    front.submit(make_request(client=slow, steps=2))
    with pytest.raises(Refused) as refused:
        front.submit_all([make_request(client=slow) for _ in range(3)])
    now = refused.value.retry_after
    assert len(front.submit_all([make_request(client=slow) for _ in range(3)])) == 3


def test_a_tier_that_cannot_draw_what_is_asked_for_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tiers = {name: replace(tier, max_lateness=1.0) for name, tier in TIERS.items()}
    front, _, _ = make_dispatcher_with_worker(ServerSettings(tiers))
    known = front._make_job

    def picky(asked: GenerationRequest, tier: str, drawn_as: str) -> Any:
        if drawn_as == "free":
            raise InvalidRequest("guidance is 9 for a student")
        return known(asked, tier, drawn_as)

    monkeypatch.setattr(Dispatcher, "_make_job", lambda self, *asked: picky(*asked))
    slow = replace(ANYBODY, rate=1e9, burst=1e9)
    with pytest.raises(Refused) as refused:
        for number in range(9):
            front.submit(make_request("pro", client=replace(slow, key=str(number))))
    assert refused.value.reason == "deadline"


def test_a_prompt_that_is_a_book_is_refused_before_it_is_read(front: tuple[Dispatcher, FakeWorker, FakeClock]) -> None:
    with pytest.raises(InvalidRequest, match="the prompt has 10,001 characters; allowed: up to 10,000"):
        front[0].submit(make_request(prompt="a" * 10_001))


def test_a_patient_order_that_finds_no_room_is_not_counted_as_refused() -> None:
    front, _, _ = make_dispatcher_with_worker(ServerSettings(TIERS, max_queue=1))
    front.submit(make_request())
    for is_patient in (True, False):
        with pytest.raises(Refused):
            front.submit(make_request(is_background=is_patient))
    samples = [one for metric in front.metrics.rejected.collect() for one in metric.samples]
    assert [one.value for one in samples if one.name.endswith("_total")] == [1.0]


def test_a_job_larger_than_a_whole_day_is_refused_and_not_kept_for_ever(
    front: tuple[Dispatcher, FakeWorker, FakeClock],
) -> None:
    poor = replace(ANYBODY, daily=2 * 64 * 64.0)
    front[0].validate(make_request(client=poor, steps=2))
    with pytest.raises(InvalidRequest, match="12,288 pixel-steps; allowed: 8,192 pixel-steps a day"):
        front[0].validate(make_request(client=poor))


@pytest.mark.parametrize("wrong", [{"sampler": "dpmpp"}, {"steps": 2000}, {"guidance": -3.0}])
def test_a_tier_that_could_never_draw_is_told_before_the_server_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="tier 'free' is invalid"):
        make_dispatcher(ServerSettings({"free": TierSettings("shapes", **wrong)}))
