"""Engine: every job ends exactly once, whatever happens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stillhouse.core import ImageRequest
from stillhouse.errors import BackendFailed, InvalidRequest
from stillhouse.serve.engine.engine import Engine, StepOutput
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan
from stillhouse.serve.engine.output import RequestOutput
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.engine.simulate import NO_REQUEST, VirtualExecutor
from tests.serve.engine.arrivals import FLAT, FREE, FULL, GAINING, PRO, QUICK, SERIAL

FAULTS = ("begin", "advance", "finish")


@dataclass
class FaultyExecutor(VirtualExecutor):
    """Virtual executor that fails for some jobs at some stage and records started and advanced jobs."""

    faulty: dict[str, str] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    moved: Counter[str] = field(default_factory=Counter)

    def refuse(self, stage: str, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self.faulty.get(job.id) == stage:
                raise ZeroDivisionError("a bug") if stage == "advance" else BackendFailed("a fault")

    def begin(self, job: Job) -> None:
        self.refuse("begin", [job])
        self.begun.append(job.id)
        VirtualExecutor.begin(self, job)

    def advance(self, jobs: Sequence[Job]) -> None:
        self.refuse("advance", jobs)
        self.moved.update(job.id for job in jobs)
        VirtualExecutor.advance(self, jobs)

    def finish(self, job: Job) -> None:
        self.refuse("finish", [job])
        VirtualExecutor.finish(self, job)


class EngineMachine(RuleBasedStateMachine):
    """Jobs of all kinds arrive, are cancelled, expire, fail and finish."""

    @initialize(policy=st.sampled_from(sorted(POLICIES)), cost=st.sampled_from((FLAT, GAINING)))
    def start(self, policy: str, cost: object) -> None:
        self.device = FaultyExecutor(cost)  # type: ignore[arg-type]
        self.engine = Engine(self.device, POLICIES[policy], self.device.cost_model, self.device.clock)
        self.taken: list[Job] = []
        self.finished: list[Job] = []
        self.ends: list[RequestOutput] = []

    @rule(
        tier=st.sampled_from((FREE, PRO)),
        batch_key=st.sampled_from((QUICK, FULL)),
        key=st.sampled_from("ab"),
        rows=st.lists(st.sampled_from((1, 2)), min_size=1, max_size=6),
        timeout=st.sampled_from((0.0, 3.0, float("inf"))),
        fault=st.sampled_from((None, None, None, *FAULTS)),
    )
    def submit(
        self, tier: object, batch_key: BatchKey, key: str, rows: list[int], timeout: float, fault: str | None
    ) -> None:
        name = f"job {len(self.taken)}"
        if fault:
            self.device.faulty[name] = fault
        job = Job(name, tier, key, batch_key, StepPlan(tuple(rows)), ImageRequest(name))  # type: ignore[arg-type]
        job.expires = self.device.now + timeout
        self.engine.submit(job)
        self.taken.append(job)

    @rule(number=st.integers(0, 30))
    def cancel(self, number: int) -> None:
        if self.taken:
            job = self.taken[number % len(self.taken)]
            over = job.id not in self.engine.jobs
            end = self.engine.cancel(job.id)
            assert (end is None) == over
            self.ends += [end] if end else []

    @rule()
    def step(self) -> None:
        self.note(self.engine.step())

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.device.now += seconds

    def note(self, tick: StepOutput) -> None:
        over = {end.id for end in self.ends} | {job.id for job in self.finished}
        assert not over & {job.id for job in tick.jobs}
        self.finished += tick.finished
        self.ends += tick.outputs

    @invariant()
    def each_job_waits_or_has_one_end(self) -> None:
        counts = Counter([*(end.id for end in self.ends), *(job.id for job in self.finished)])
        for job in self.taken:
            assert counts[job.id] + (job.id in self.engine.jobs) == 1

    @invariant()
    def an_end_is_what_happened(self) -> None:
        for job in self.finished:
            assert job.id not in self.device.faulty and job.id in self.device.finish_times
            assert self.device.moved[job.id] == len(job.step_plan.rows)
        for end in self.ends:
            assert end.finish_reason in ("failed", "expired", "cancelled")
            if end.finish_reason == "failed":
                assert end.id in self.device.faulty and end.error
            elif end.finish_reason == "expired":
                assert end.id not in self.device.begun

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(10 * sum(len(job.step_plan.rows) for job in self.taken) + 1):
            if not self.engine.jobs:
                break
            self.note(self.engine.step())
        assert not self.engine.jobs
        self.each_job_waits_or_has_one_end()
        self.an_end_is_what_happened()


TestEngine = EngineMachine.TestCase


def job(name: str, group: BatchKey = FULL, steps: int = 2) -> Job:
    return Job(name, PRO, "someone", group, StepPlan((1,) * steps), NO_REQUEST)


def engine_of(device: FaultyExecutor) -> Engine:
    return Engine(device, POLICIES["fcfs"], device.cost_model, device.clock)


def test_faulty_job_fails_and_its_batch_continues() -> None:
    device = FaultyExecutor(GAINING, faulty={"two": "advance"})
    engine = engine_of(device)
    for name in ("one", "two", "three"):
        engine.submit(job(name))
    tick = engine.step()
    assert [moved.id for moved in tick.jobs] == ["one", "three"]
    (end,) = tick.outputs
    assert (end.id, end.finish_reason, end.error_type) == ("two", "failed", "BackendFailed")
    assert "ZeroDivisionError: a bug" in end.error
    assert end.traceback_summary.startswith("engine/test_engine.py:"), "the log can tell where it was"


def test_cancelled_job_is_in_no_later_batch() -> None:
    engine = engine_of(FaultyExecutor(GAINING))
    engine.submit(job("one"))
    engine.submit(job("two"))
    engine.step()
    end = engine.cancel("one")
    assert end and end.finish_reason == "cancelled"
    assert [moved.id for moved in engine.step().jobs] == ["two"]
    assert engine.cancel("one") is None


def test_expired_job_never_starts_and_started_job_never_expires() -> None:
    device = FaultyExecutor(SERIAL)
    engine = engine_of(device)
    begun, late = job("begun", steps=3), job("late")
    begun.expires = late.expires = 0.5
    engine.submit(begun)
    engine.submit(late)
    engine.step()
    (end,) = engine.step().outputs
    assert (end.id, end.finish_reason) == ("late", "expired")
    assert device.begun == ["begun"]
    assert engine.step().finished == (begun,)


def test_a_job_that_must_run_alone_waits_for_those_in_progress_and_holds_back_all_others() -> None:
    begun: list[str] = []
    engine = engine_of(FaultyExecutor(GAINING))
    engine.on_begin = lambda begins: begun.append(begins.id)
    suspects = [job(name) for name in ("suspect", "another")]
    for suspect in suspects:
        suspect.is_alone = True
    engine.submit(job("first"))
    engine.step()
    for waiting in (job("second"), *suspects, job("third")):
        engine.submit(waiting)
    batches = [[moved.id for moved in engine.step().jobs] for _ in range(7)]
    assert batches == [
        ["first"],
        *[["suspect"]] * 2,
        *[["another"]] * 2,
        *[["second", "third"]] * 2,
    ]
    assert begun == ["first", "suspect", "another", "second", "third"]


def test_a_job_is_told_of_before_anything_is_computed_for_it() -> None:
    device = FaultyExecutor(SERIAL)
    engine = engine_of(device)
    seen: list[tuple[str, list[str]]] = []
    engine.on_begin = lambda begins: seen.append((begins.id, list(device.begun)))
    engine.submit(job("one"))
    engine.step()
    assert seen == [("one", [])] and device.begun == ["one"]


def test_step_without_jobs_does_nothing() -> None:
    assert engine_of(FaultyExecutor(FLAT)).step() == StepOutput()


def test_job_ids_are_unique_and_costs_are_required() -> None:
    engine = engine_of(FaultyExecutor(FLAT))
    engine.submit(job("one"))
    with pytest.raises(InvalidRequest, match="the job id 'one' is in use"):
        engine.submit(job("one"))
    with pytest.raises(InvalidRequest, match="unknown"):
        engine.submit(job("two", BatchKey("unknown", 64, 64)))
