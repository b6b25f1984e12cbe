"""Admission: admitted jobs finish in time, and Retry-After is sufficient."""

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


def engine_with(
    requests: list[Arrival], cost: CostModel = FLAT, policy: str = "slack"
) -> tuple[Engine, VirtualExecutor]:
    """Return an engine with all these jobs submitted at once."""
    engine, device = make_virtual_engine(POLICIES[policy], cost)
    for number, job in enumerate(requests):
        engine.submit(job_of(job, str(number)))
    return engine, device


def job_of(requests: Arrival, name: str = "new") -> Job:
    job = Job(name, requests.tier, requests.key, requests.batch_key, requests.step_plan, NO_REQUEST)
    job.isolated_seconds = FLAT.isolated_seconds(requests.batch_key, requests.step_plan)
    return job


@given(requests=arrivals(), steps=st.integers(0, 20), number=st.integers(0, 100))
def test_fcfs_prediction_is_exact(requests: list[Arrival], steps: int, number: int) -> None:
    engine, device = engine_with(requests, SERIAL, "fcfs")
    for _ in range(steps):
        engine.step()
    jobs = list(engine.jobs.values())
    assume(jobs)
    job = jobs[number % len(jobs)]
    predicted = device.now + predict_finish_times(jobs, FCFS, device.now, SERIAL)[job]
    while job.id in engine.jobs:
        engine.step()
    assert device.now == pytest.approx(predicted)


@given(requests=arrivals(), policy=st.sampled_from(sorted(POLICIES)))
def test_prediction_is_at_least_the_isolated_latency(requests: list[Arrival], policy: str) -> None:
    engine, device = engine_with(requests, GAINING, policy)
    jobs = list(engine.jobs.values())
    predicted = predict_finish_times(jobs, POLICIES[policy], device.now, GAINING)
    assert list(predicted) == POLICIES[policy].order(jobs, device.now, GAINING)
    assert all(seconds >= GAINING.remaining_seconds(job) * (1 - 1e-9) for job, seconds in predicted.items())


@pytest.mark.parametrize("waiting", range(5))
def test_late_job_is_rejected_with_an_exact_retry_after(waiting: int) -> None:
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


def test_margin_reduces_the_allowed_latency() -> None:
    engine, device = engine_with([make_arrival(0.0, PRO, f"key {number}") for number in range(2)])
    jobs, new = list(engine.jobs.values()), job_of(make_arrival(0.0, PRO, "new"))
    assert check_admission(new, jobs, SLACK, device.now, FLAT, AdmissionLimits()) is None
    refused = check_admission(new, jobs, SLACK, device.now, FLAT, AdmissionLimits(margin=0.5))
    assert refused is not None and refused.retry_after == pytest.approx(0.5 * 35.0)
    assert check_admission(new, [], SLACK, device.now, FLAT, AdmissionLimits(max_lateness=1 / 3, margin=0.5)) is None, (
        "nobody waits"
    )


def test_short_job_is_admitted_where_a_long_one_is_rejected() -> None:
    engine, device = engine_with([make_arrival(0.0, PRO, f"key {number}") for number in range(4)])
    jobs = list(engine.jobs.values())
    assert check_admission(job_of(make_arrival(0.0, FREE)), jobs, SLACK, device.now, FLAT) is None
    assert check_admission(job_of(make_arrival(0.0, PRO, "new")), jobs, SLACK, device.now, FLAT) is not None


def test_full_queue_rejects_until_the_first_job_ends() -> None:
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
