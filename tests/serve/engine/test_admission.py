"""Admission: whoever is taken can be served in time, and whoever is sent away comes back to find room."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stillhouse.serve.engine.admission import AdmissionLimits, check_admission, predict_finish_times
from stillhouse.serve.engine.arrivals import Arrival
from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.engine.simulate import NO_REQUEST, VirtualExecutor, make_virtual_engine
from tests.serve.engine.arrivals import FLAT, FREE, GAINING, PRO, SERIAL, arrivals, make_arrival

FCFS, SLACK = POLICIES["fcfs"], POLICIES["slack"]


def engine_with(asked: list[Arrival], cost: CostModel = FLAT, policy: str = "slack") -> tuple[Engine, VirtualExecutor]:
    """An engine to which all of these have come at once."""
    engine, device = make_virtual_engine(POLICIES[policy], cost)
    for number, one in enumerate(asked):
        engine.submit(job_of(one, str(number)))
    return engine, device


def job_of(asked: Arrival, name: str = "new") -> Job:
    job = Job(name, asked.tier, asked.key, asked.batch_key, asked.step_plan, NO_REQUEST)
    job.isolated_seconds = FLAT.isolated_seconds(asked.batch_key, asked.step_plan)
    return job


@given(asked=arrivals(), ticks=st.integers(0, 20), number=st.integers(0, 100))
def test_first_come_first_served_ends_exactly_when_it_was_forecast(
    asked: list[Arrival], ticks: int, number: int
) -> None:
    engine, device = engine_with(asked, SERIAL, "fcfs")
    for _ in range(ticks):
        engine.step()
    jobs = list(engine.jobs.values())
    assume(jobs)
    job = jobs[number % len(jobs)]
    told = device.now + predict_finish_times(jobs, FCFS, device.now, SERIAL)[job]
    while job.id in engine.jobs:
        engine.step()
    assert device.now == pytest.approx(told)


@given(asked=arrivals(), policy=st.sampled_from(sorted(POLICIES)))
def test_a_forecast_is_no_less_than_what_it_takes_alone(asked: list[Arrival], policy: str) -> None:
    engine, device = engine_with(asked, GAINING, policy)
    jobs = list(engine.jobs.values())
    told = predict_finish_times(jobs, POLICIES[policy], device.now, GAINING)
    assert list(told) == POLICIES[policy].order(jobs, device.now, GAINING)
    assert all(seconds >= GAINING.remaining_seconds(job) * (1 - 1e-9) for job, seconds in told.items())


@pytest.mark.parametrize("waiting", range(5))
def test_a_tier_is_refused_when_its_promise_cannot_be_kept_and_told_when_it_could(waiting: int) -> None:
    engine, device = engine_with([make_arrival(0.0, PRO, f"key {number}") for number in range(waiting)])
    jobs = list(engine.jobs.values())
    new = job_of(make_arrival(0.0, PRO, "new"))
    refused = check_admission(new, jobs, SLACK, device.now, FLAT)
    if waiting < 3:  # it may take three times its 35 seconds
        assert refused is None
        return
    assert refused is not None and refused.reason == "deadline"
    assert refused.retry_after == pytest.approx(35.0 * (waiting - 2))
    while device.now < refused.retry_after:
        engine.step()
    new.arrived = device.now
    assert check_admission(new, list(engine.jobs.values()), SLACK, device.now, FLAT) is None


def test_a_margin_is_held_back_of_what_is_promised() -> None:
    engine, device = engine_with([make_arrival(0.0, PRO, f"key {number}") for number in range(2)])
    jobs, new = list(engine.jobs.values()), job_of(make_arrival(0.0, PRO, "new"))
    assert check_admission(new, jobs, SLACK, device.now, FLAT, AdmissionLimits()) is None
    refused = check_admission(new, jobs, SLACK, device.now, FLAT, AdmissionLimits(margin=0.5))
    assert refused is not None and refused.retry_after == pytest.approx(0.5 * 35.0)
    assert check_admission(new, [], SLACK, device.now, FLAT, AdmissionLimits(max_lateness=1 / 3, margin=0.5)) is None, (
        "nobody waits"
    )


def test_a_short_job_is_taken_where_a_long_one_is_not() -> None:
    engine, device = engine_with([make_arrival(0.0, PRO, f"key {number}") for number in range(4)])
    jobs = list(engine.jobs.values())
    assert check_admission(job_of(make_arrival(0.0, FREE)), jobs, SLACK, device.now, FLAT) is None
    assert check_admission(job_of(make_arrival(0.0, PRO, "new")), jobs, SLACK, device.now, FLAT) is not None


def test_a_full_queue_refuses_everyone_until_the_first_has_ended() -> None:
    engine, device = engine_with([make_arrival(0.0, FREE, steps=steps) for steps in (7, 4, 9)])
    jobs, limits = list(engine.jobs.values()), AdmissionLimits(max_jobs=3, max_lateness=float("inf"))
    refused = check_admission(job_of(make_arrival(0.0, FREE)), jobs, FCFS, device.now, FLAT, limits)
    assert refused is not None and (refused.reason, refused.retry_after) == ("queue", 7.0)
    for _ in range(7):
        engine.step()
    assert (
        check_admission(job_of(make_arrival(0.0, FREE)), list(engine.jobs.values()), FCFS, device.now, FLAT, limits)
        is None
    )
