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
from stillhouse.serve.client import Caller
from stillhouse.serve.dispatcher import Front, front_of
from stillhouse.serve.engine.cost import Curve
from stillhouse.serve.engine.job import Group
from stillhouse.serve.logs import extras
from stillhouse.serve.request_handle import Order, Ticket
from stillhouse.serve.settings import Settings, TierSettings
from stillhouse.serve.worker.messages import Asked, Cancel, Closed, Draw, Ended, Moved, Opening, Ready, Ticked, Told
from stillhouse.serve.worker_handle import RUNS

GROUP = Group("shapes", 64, 64)
CURVE = Curve({1: 1.0, 2: 1.0})
TIERS = {
    "free": TierSettings("shapes", steps=3),
    "pro": TierSettings("shapes", steps=10, also=("free",), degrade=("free",)),
}
ANYBODY = Caller("anybody", "free", frozenset(TIERS))


@dataclass
class Worker:
    """A worker that does what the test says: it writes down what it was asked."""

    opening: Opening
    heard: Callable[[Told], None]
    died: Callable[[], None]
    asked: list[Asked] = field(default_factory=list)
    starts: int = 0

    def start(self) -> None:
        self.starts += 1
        self.asked = []

    def ask(self, asked: Asked) -> None:
        self.asked.append(asked)

    def opened(self) -> None: ...

    def kill(self) -> None:
        self.die()

    def close(self) -> None: ...

    def tell_ready(self) -> None:
        self.heard(Ready([(GROUP, CURVE)]))

    def die(self) -> None:
        self.died()
        self.start()

    @property
    def has(self) -> dict[str, Draw]:
        """What it has to draw, as far as it knows."""
        found: dict[str, Draw] = {}
        for one in self.asked:
            if isinstance(one, Draw):
                assert one.id not in found, "asked twice for the same"
                found[one.id] = one
        return found


@dataclass
class Time:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def opened(settings: Settings | None = None) -> tuple[Front, Worker, Time]:
    """A front with a worker that is ready; in a loop that is running."""
    time = Time()
    front = front_of(settings or Settings(TIERS), clock=time, supervise=Worker)
    worker = front.hire().supervisor
    assert isinstance(worker, Worker)
    worker.tell_ready()
    return front, worker, time


def order(tier: str | None = None, **fields: Any) -> Order:
    known = {name: fields.pop(name) for name in ("caller", "patience", "is_patient", "id") if name in fields}
    return Order(
        ImageRequest(fields.pop("prompt", "a red circle"), **fields), known.pop("caller", ANYBODY), tier, **known
    )


class FrontMachine(RuleBasedStateMachine):
    """Orders come, are cancelled, are drawn; workers die whenever they like, and start again."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.front, self.worker, self.time = opened()
        self.tickets: list[Ticket] = []
        self.is_ready = True

    @rule(tier=st.sampled_from(("free", "pro")), key=st.sampled_from("ab"))
    def place(self, tier: str, key: str) -> None:
        try:
            ticket = self.front.place(order(tier, caller=replace(ANYBODY, key=key)))
        except Refused:
            return
        self.tickets.append(ticket)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        if self.tickets:
            ticket = self.tickets[number % len(self.tickets)]
            assert self.front.cancel(ticket.id) == (ticket.closed is None) or ticket.is_cancelled

    @precondition(lambda self: self.is_ready)
    @rule()
    def work(self) -> None:
        """The worker does what it was asked: it cancels, or moves the first picture that it has."""
        cancelled = [one.id for one in self.worker.asked if isinstance(one, Cancel)]
        for name in self.worker.has:
            if name in cancelled:
                self.worker.heard(Ended(name, Closed("cancelled")))
                self.forget(name)
                return
        for name in self.worker.has:
            ticket = next(ticket for ticket in self.tickets if ticket.id == name)
            if ticket.job.is_done:
                self.worker.heard(Ended(name, Closed("drawn", b"picture")))
                self.forget(name)
            else:
                self.time.now += 1.0
                self.worker.heard(Ticked([Moved([name], GROUP, 1, 1.0, 1.0)]))
            return

    def forget(self, name: str) -> None:
        self.worker.asked = [one for one in self.worker.asked if one.id != name]

    @rule()
    def die(self) -> None:
        self.worker.die()
        self.is_ready = False

    @precondition(lambda self: not self.is_ready)
    @rule()
    def ready(self) -> None:
        self.worker.tell_ready()
        self.is_ready = True

    @invariant()
    def each_ticket_is_open_or_has_ended(self) -> None:
        for ticket in self.tickets:
            is_open = self.front.find(ticket.id) is not None
            assert is_open == (ticket.closed is None)
            assert ticket.runs <= RUNS

    @invariant()
    def the_worker_has_what_is_open_and_nothing_else(self) -> None:
        if self.is_ready:
            assert set(self.worker.has) == {ticket.id for ticket in self.front.tickets}

    @invariant()
    def who_died_too_often_is_told(self) -> None:
        for ticket in self.tickets:
            if ticket.closed and ticket.closed.outcome == "failed":
                assert ticket.closed.fault == "WorkerDied" and ticket.runs == RUNS

    def teardown(self) -> None:
        if not hasattr(self, "front"):
            return
        if not self.is_ready:
            self.ready()
        for _ in range(20 * len(self.tickets) + 1):
            self.work()
        assert all(ticket.closed for ticket in self.tickets)
        assert not list(self.front.tickets) and not self.front.stations[0].roster.jobs
        self.runner.close()


TestFront = FrontMachine.TestCase


def charged(front: Front) -> float:
    """Pixel-steps of the only key that has a day's portion."""
    return sum(amount for _, amount in front.meter.used.values())


def test_the_log_tells_where_a_job_failed(caplog: pytest.LogCaptureFixture) -> None:
    front, worker, _ = opened()
    ticket = front.place(order())
    worker.heard(Ended(ticket.id, Closed("failed", error="no", fault="BackendFailed", way="models/png.py:7 read")))
    (told,) = (record for record in caplog.records if record.getMessage() == "a job failed")
    assert extras(told)["way"] == "models/png.py:7 read"


COUNTED = replace(ANYBODY, daily=1e9)


def test_a_picture_that_failed_or_never_began_is_paid_back_and_one_of_fewer_steps_costs_less() -> None:
    front, worker, _ = opened()
    ticket = front.place(order(caller=COUNTED))
    assert charged(front) == 64 * 64 * 3
    worker.heard(Ended(ticket.id, Closed("failed", error="no", fault="BackendFailed")))
    assert charged(front) == 0
    worker.heard(Ended(front.place(order(caller=COUNTED)).id, Closed("expired")))
    assert charged(front) == 0
    late = {**TIERS, "pro": replace(TIERS["pro"], lateness=1.0)}
    front, worker, _ = opened(Settings(late))
    for key in "ab":
        front.place(order("pro", caller=replace(ANYBODY, key=key)))
    ticket = front.place(order("pro", caller=replace(COUNTED, key="c")))
    assert ticket.degraded_to == "free" and charged(front) == 64 * 64 * 3, "and not for the ten that it asked for"


def test_every_device_has_a_worker_that_sees_no_other_and_a_picture_goes_to_the_one_with_less_to_do() -> None:
    front = front_of(Settings(TIERS, devices=("0", "3")), clock=Time(), supervise=Worker)

    async def life() -> list[Worker]:
        front.open()
        workers = [station.supervisor for station in front.stations]
        assert all(isinstance(worker, Worker) for worker in workers)
        for worker in workers:
            worker.tell_ready()  # type: ignore[attr-defined]
        for _ in range(4):
            front.place(order())
        front.close()
        return workers  # type: ignore[return-value]

    workers = asyncio.run(life())
    assert [worker.opening.device for worker in workers] == ["0", "3"]
    assert [len(worker.has) for worker in workers] == [2, 2]
    with pytest.raises(InvalidRequest, match="devices 0, 0; allowed: each once"):
        Settings(TIERS, devices=("0", "0"))


def test_patient_pictures_do_not_count_for_promises() -> None:
    front, worker, time = opened()
    for is_patient in (True, False, False):
        ticket = front.place(order(is_patient=is_patient))
        time.now += 1000.0 * is_patient
        worker.heard(Ended(ticket.id, Closed("drawn", b"picture")))
    told = front.metrics.exposition().decode()
    assert 'stillhouse_images_total{pipeline="shapes",tier="free"} 3.0' in told
    assert 'stillhouse_images_in_time_total{tier="free"} 2.0' in told
    assert 'stillhouse_goodput_ratio{tier="free"} 1.0' in told


@pytest.fixture
def front() -> tuple[Front, Worker, Time]:
    return opened()


def test_a_request_is_filled_in_as_its_tier_says(front: tuple[Front, Worker, Time]) -> None:
    ticket = front[0].place(order("pro"))
    assert (ticket.request.steps, ticket.job.tier.name, ticket.drawn_as) == (10, "pro", "pro")
    assert front[0].place(order("pro", steps=4)).request.steps == 4
    assert front[0].place(order()).request.steps == 3


def test_what_a_pipeline_cannot_do_or_the_settings_forbid_is_refused_at_the_door(
    front: tuple[Front, Worker, Time],
) -> None:
    with pytest.raises(InvalidRequest, match="multiples of"):
        front[0].place(order(width=65, height=64))
    with pytest.raises(InvalidRequest, match="up to 150 for model 'free'"):
        front[0].place(order(steps=151))
    with pytest.raises(InvalidRequest, match="did you mean 'free'"):
        front[0].place(order("fre"))
    with pytest.raises(NotAllowed, match="allowed: free"):
        front[0].place(order("pro", caller=replace(ANYBODY, tiers=frozenset({"free"}))))
    limited, _, _ = opened(Settings(TIERS, pixels=64 * 64))
    with pytest.raises(InvalidRequest, match="up to 4,096 pixels"):
        limited.place(order(width=128, height=64))
    assert not list(front[0].tickets)


def test_a_full_queue_says_when_to_come_back() -> None:
    front, _, _ = opened(Settings(TIERS, queue=2))
    front.place(order())
    front.place(order())
    with pytest.raises(Refused) as refused:
        front.place(order())
    assert (refused.value.reason, refused.value.retry_after) == ("queue", 3.0)


def test_who_would_be_too_late_is_refused_or_drawn_with_less_where_the_tier_allows_it() -> None:
    tiers = {name: replace(tier, lateness=1.0) for name, tier in TIERS.items()}
    front, _, _ = opened(Settings(tiers))
    for key in "ab":
        assert front.place(order("pro", caller=replace(ANYBODY, key=key))).drawn_as == "pro"
    less = front.place(order("pro", caller=replace(ANYBODY, key="c")))  # it would end when its promise does
    assert (less.drawn_as, less.request.steps, less.job.tier.name) == ("free", 3, "pro")
    with pytest.raises(Refused) as refused:
        for _ in range(50):
            front.place(order("free"))
    assert refused.value.reason == "deadline" and refused.value.retry_after > 0


def test_several_pictures_are_taken_together_or_not_at_all() -> None:
    front, worker, _ = opened(Settings(TIERS, queue=2))
    with pytest.raises(Refused):
        front.place_all([order() for _ in range(3)])
    assert {one.id for one in worker.asked if isinstance(one, Cancel)} == set(worker.has)


def test_a_key_that_has_used_its_portion_is_refused_and_loses_nothing_by_being_refused() -> None:
    slow = replace(ANYBODY, rate=3 * 64 * 64.0, burst=3 * 64 * 64.0)
    front, _, _ = opened()
    front.meter.clock = lambda: 0.0
    front.place(order(caller=slow))
    with pytest.raises(Refused) as refused:
        front.place(order(caller=slow))
    assert (refused.value.reason, refused.value.retry_after) == ("rate", 1.0)
    front.meter.clock = lambda: 1.0
    front.place(order(caller=slow))


def test_nothing_is_taken_before_a_worker_is_ready_and_while_the_server_leaves() -> None:
    front, worker, _time = opened()
    worker.die()
    assert not front.is_ready
    with pytest.raises(Refused) as refused:
        front.place(order())
    assert refused.value.reason == "starting" and refused.value.retry_after >= 1
    worker.tell_ready()
    assert front.is_ready
    with asyncio.Runner() as runner:
        runner.run(front.drain(0.0))
    with pytest.raises(Refused) as refused:
        front.place(order())
    assert refused.value.reason == "draining"


def test_a_picture_is_drawn_again_once_from_its_beginning_with_the_same_seed(
    front: tuple[Front, Worker, Time],
) -> None:
    ticket = front[0].place(order(seed=7))
    worker = front[1]
    worker.heard(Ticked([Moved([ticket.id], GROUP, 2, 1.0, 1.0)]))
    assert ticket.job.index == 1
    worker.die()
    worker.tell_ready()
    assert ticket.job.index == 0 and worker.has[ticket.id].request.seed == 7
    worker.die()
    assert ticket.closed and ticket.closed.fault == "WorkerDied"


def test_what_a_worker_measured_is_not_measured_again_by_the_next(front: tuple[Front, Worker, Time]) -> None:
    assert front[1].opening.curves == [(GROUP, CURVE)]


def test_what_ticks_take_of_late_counts_for_those_who_come(front: tuple[Front, Worker, Time]) -> None:
    ticket = front[0].place(order())
    front[1].heard(Ticked([Moved([ticket.id], GROUP, 2, 2.0, 2.0)]))
    assert front[0].place(order()).job.alone == pytest.approx(6.0)


def test_a_worker_that_gives_no_sign_of_life_is_ended_and_who_waits_too_long_is_told(
    front: tuple[Front, Worker, Time],
) -> None:
    front_, worker, time = front
    (station,) = front_.stations
    ticket = front_.place(order())
    time.now += 100
    station.look_after(120.0)
    assert front_.is_ready
    time.now += 100
    station.look_after(120.0)
    assert not front_.is_ready and worker.starts == 2 and ticket.closed is None
    time.now += 121
    station.look_after(120.0)
    assert ticket.closed and ticket.closed.fault == "WorkerDied"
    worker.tell_ready()
    assert not worker.has


def test_a_worker_that_had_nothing_to_do_for_long_is_not_ended_when_it_has(front: tuple[Front, Worker, Time]) -> None:
    front_, worker, time = front
    (station,) = front_.stations
    time.now += 1000
    front_.place(order())
    station.look_after(120.0)
    assert front_.is_ready and worker.starts == 1
    time.now += 121
    station.look_after(120.0)
    assert worker.starts == 2


def test_pictures_that_are_being_decoded_fill_the_queue_as_well() -> None:
    front, worker, _ = opened(Settings(TIERS, queue=2))
    for _ in range(2):
        ticket = front.place(order(steps=1))
        worker.heard(Ticked([Moved([ticket.id], GROUP, 2, 1.0, 1.0)]))
    assert not front.stations[0].roster.jobs
    with pytest.raises(Refused) as refused:
        front.place(order())
    assert refused.value.reason == "queue" and refused.value.retry_after > 0


def test_several_pictures_are_charged_together_and_cost_nothing_where_they_are_refused() -> None:
    step = 64 * 64.0
    slow = replace(ANYBODY, rate=step, burst=6 * step)
    front, worker, _ = opened(Settings(TIERS, queue=3))
    now = 0.0
    front.meter.clock = lambda: now
    with pytest.raises(Refused) as refused:
        front.place_all([order(caller=slow) for _ in range(4)])
    assert refused.value.reason == "queue"
    for name in worker.has:
        worker.heard(Ended(name, Closed("cancelled")))
    front.place_all([order(caller=slow, steps=1) for _ in range(3)])
    with pytest.raises(Refused) as refused:
        front.place_all([order(caller=slow) for _ in range(3)])
    assert (refused.value.reason, refused.value.retry_after) == ("rate", 3.0)


def test_more_than_a_bucket_at_once_is_drawn_when_the_server_said_that_it_would_be() -> None:
    step = 64 * 64.0
    slow = replace(ANYBODY, rate=step, burst=6 * step)
    front, _, _ = opened()
    now = 0.0
    front.meter.clock = lambda: now
    front.place(order(caller=slow, steps=2))
    with pytest.raises(Refused) as refused:
        front.place_all([order(caller=slow) for _ in range(3)])
    now = refused.value.retry_after
    assert len(front.place_all([order(caller=slow) for _ in range(3)])) == 3


def test_a_tier_that_cannot_draw_what_is_asked_for_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tiers = {name: replace(tier, lateness=1.0) for name, tier in TIERS.items()}
    front, _, _ = opened(Settings(tiers))
    known = front._job

    def picky(asked: Order, tier: str, drawn_as: str) -> Any:
        if drawn_as == "free":
            raise InvalidRequest("guidance is 9 for a student")
        return known(asked, tier, drawn_as)

    monkeypatch.setattr(Front, "_job", lambda self, *asked: picky(*asked))
    slow = replace(ANYBODY, rate=1e9, burst=1e9)
    with pytest.raises(Refused) as refused:
        for number in range(9):
            front.place(order("pro", caller=replace(slow, key=str(number))))
    assert refused.value.reason == "deadline"


def test_a_prompt_that_is_a_book_is_refused_before_it_is_read(front: tuple[Front, Worker, Time]) -> None:
    with pytest.raises(InvalidRequest, match="the prompt has 10,001 letters; allowed: up to 10,000"):
        front[0].place(order(prompt="a" * 10_001))


def test_a_patient_order_that_finds_no_room_is_not_counted_as_refused() -> None:
    front, _, _ = opened(Settings(TIERS, queue=1))
    front.place(order())
    for is_patient in (True, False):
        with pytest.raises(Refused):
            front.place(order(is_patient=is_patient))
    samples = [one for metric in front.metrics.rejected.collect() for one in metric.samples]
    assert [one.value for one in samples if one.name.endswith("_total")] == [1.0]


def test_a_job_larger_than_a_whole_day_is_refused_and_not_kept_for_ever(front: tuple[Front, Worker, Time]) -> None:
    poor = replace(ANYBODY, daily=2 * 64 * 64.0)
    front[0].review(order(caller=poor, steps=2))
    with pytest.raises(InvalidRequest, match="12,288 pixel-steps; allowed: 8,192 pixel-steps a day"):
        front[0].review(order(caller=poor))


@pytest.mark.parametrize("wrong", [{"sampler": "dpmpp"}, {"steps": 2000}, {"guidance": -3.0}])
def test_a_tier_that_could_never_draw_is_told_before_the_server_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="tier 'free' cannot draw"):
        front_of(Settings({"free": TierSettings("shapes", **wrong)}))
