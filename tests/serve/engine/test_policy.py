"""Policies: what every one keeps, and what the default promises: short before long, fair, and nobody for ever."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.serve.engine.arrivals import Arrival, poisson_arrivals
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.job import Job, Tier
from stillhouse.serve.engine.policy import POLICIES, Policy, SlackPolicy, select_batch
from stillhouse.serve.engine.simulate import NO_REQUEST, SimulatedJob, VirtualExecutor, make_virtual_engine, simulate
from tests.serve.engine.arrivals import FLAT, FREE, GAINING, KINDS, PRO, arrivals, make_arrival, percentile

EVERY = [pytest.param(policy, id=name) for name, policy in POLICIES.items()]
COSTS = st.sampled_from((FLAT, GAINING))
SLACK = POLICIES["slack"]


def submit(engine: Engine, device: VirtualExecutor, asked: Arrival) -> Job:
    """The arrival's job, submitted at its moment, or now if that is over."""
    device.now = max(device.now, asked.time)
    job = Job(
        f"{len(engine.jobs)} {device.now} {asked.key}",
        asked.tier,
        asked.key,
        asked.batch_key,
        asked.step_plan,
        NO_REQUEST,
    )
    engine.submit(job)
    return job


def waiting(asked: list[Arrival], cost: CostModel, ticks: int, policy: Policy = SLACK) -> tuple[list[Job], float]:
    """The jobs that are left after some ticks when all have arrived, and what time it is."""
    engine, device = make_virtual_engine(policy, cost)
    for one in asked:
        submit(engine, device, one)
    for _ in range(ticks):
        engine.step()
    return list(engine.jobs.values()), device.now


@pytest.mark.parametrize("policy", EVERY)
@given(asked=arrivals(), cost=COSTS, ticks=st.integers(0, 30))
def test_a_batch_is_of_one_group_and_within_its_cap(
    policy: Policy, asked: list[Arrival], cost: CostModel, ticks: int
) -> None:
    jobs, now = waiting(asked, cost, ticks, policy)
    picked = select_batch(policy, jobs, now, cost)
    assert bool(picked) == bool(jobs)
    if picked:
        assert len({job.batch_key for job in picked}) == 1
        assert len(set(picked)) == len(picked) and set(picked) <= set(jobs)
        assert len(picked) == 1 or sum(job.rows for job in picked) <= cost.saturation_rows(picked[0].batch_key)


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.0}, 4),  # five would take as long as eight: 1.7 rows a second, four make 2.5
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.1}, 5),  # all sizes take nearly as long
    ],
)
def test_where_a_batch_is_filled_up_the_last_stay_out_if_more_is_done_without_them(
    seconds: dict[int, float], rows: int
) -> None:
    asked = [make_arrival(0.0, FREE, steps=3, rows=1) for _ in range(5)]
    cost = CostModel({asked[0].batch_key: LatencyCurve(seconds, is_bucketed=True)})
    jobs, now = waiting(asked, cost, 0)
    assert sum(job.rows for job in select_batch(SLACK, jobs, now, cost)) == rows
    assert (
        sum(job.rows for job in select_batch(SLACK, jobs, now, CostModel({asked[0].batch_key: LatencyCurve(seconds)})))
        == 5
    )


@pytest.mark.parametrize("policy", EVERY)
@given(asked=arrivals(), cost=COSTS, ticks=st.integers(0, 30))
def test_the_same_jobs_at_the_same_moment_give_the_same_batch(
    policy: Policy, asked: list[Arrival], cost: CostModel, ticks: int
) -> None:
    jobs, now = waiting(asked, cost, ticks, policy)
    before = [(job.index, job.steps_skipped, job.tag) for job in jobs]
    first = select_batch(policy, jobs, now, cost)
    assert select_batch(policy, jobs, now, cost) == first
    assert [(job.index, job.steps_skipped, job.tag) for job in jobs] == before


@pytest.mark.parametrize("policy", EVERY)
@given(asked=arrivals(), cost=COSTS)
def test_everyone_is_served_and_the_device_is_never_idle_while_someone_waits(
    policy: Policy, asked: list[Arrival], cost: CostModel
) -> None:
    ended = simulate(asked, policy, cost)
    assert sorted(one.job.arrived for one in ended) == [one.time for one in asked]
    work = sum(cost.isolated_seconds(one.batch_key, one.step_plan) for one in asked)
    assert max(one.finished for one in ended) <= asked[-1].time + work + 1e-6


@given(
    asked=arrivals(most=40), cost=COSTS, turn=st.integers(2, 9), spare=st.integers(1, 9), overdue=st.floats(1.0, 3.0)
)
def test_nobody_starves(asked: list[Arrival], cost: CostModel, turn: int, spare: int, overdue: float) -> None:
    """From when it is overdue, a job ends within `turn` times the ticks that it and those before it still need."""
    engine, device = make_virtual_engine(SlackPolicy(overdue, spare, overdue_interval=turn), cost)
    due: dict[Job, int] = {}
    ticks, coming = 0, list(asked)
    while coming or engine.jobs:
        if not engine.jobs:
            submit(engine, device, coming.pop(0))
        while coming and coming[0].time <= device.now:
            submit(engine, device, coming.pop(0))
        jobs = list(engine.jobs.values())
        for place, job in enumerate(jobs):
            if job not in due and device.now - job.arrived > overdue * job.tier.slo * job.isolated_seconds:
                due[job] = ticks + turn * sum(len(one.step_plan.rows) - one.index for one in jobs[: place + 1])
        ticks += 1
        for job in engine.step().finished:
            assert ticks <= due.get(job, ticks)


@given(left=st.integers(1, 34), steps=st.integers(1, 34))
def test_a_shorter_job_preempts_a_longer_one_at_the_next_step(left: int, steps: int) -> None:
    engine, device = make_virtual_engine(SLACK, FLAT)
    submit(engine, device, make_arrival(0.0, PRO))
    for _ in range(35 - left):
        engine.step()
    submit(engine, device, make_arrival(0.0, FREE, steps=steps))
    (first,) = engine.step().jobs
    assert first.tier is (FREE if steps < left else PRO)


@pytest.mark.parametrize(("weight", "first"), [(1.0, FREE), (10.0, FREE), (12.0, PRO)])
def test_weight_makes_a_job_as_short_as_if_it_had_so_much_less_to_do(weight: float, first: Tier) -> None:
    heavy = replace(make_arrival(0.0, PRO), tier=replace(PRO, weight=weight))
    jobs, _ = waiting([heavy, make_arrival(0.0, FREE)], FLAT, ticks=0)
    (picked,) = select_batch(SLACK, jobs, 0.0, FLAT)
    assert picked.tier.name == first.name


def test_a_job_that_cannot_be_in_time_lets_those_pass_that_can() -> None:
    late, early = make_arrival(0.0, PRO, "late", steps=10), make_arrival(25.0, PRO, "early", steps=20)
    jobs, now = waiting([late, early], FLAT, ticks=0)
    assert [job.key for job in select_batch(SLACK, jobs, now, FLAT)] == ["early"]
    assert [job.key for job in select_batch(SLACK, jobs, 40.1, FLAT)] == ["late"]


@pytest.mark.parametrize(
    ("now", "waited", "passed", "first"),
    [
        (45.0, 3.0, 1, "late"),
        (45.0, 3.0, 0, "quick"),
        (45.0, 4.0, 1, "quick"),
        (100.0, 3.0, 1, "late"),
        (100.0, 3.0, 0, "quick"),
        (100.0, 4.0, 1, "quick"),
        (100.0, 6.5, 1, "late"),
    ],
)
def test_a_job_that_cannot_be_in_time_takes_the_slack_of_others_but_breaks_no_promise_that_can_be_kept(
    now: float, waited: float, passed: int, first: str
) -> None:
    """Three evaluations of a second, promised within nine, let six pass before they begin: one is the tick's, and one
    and a half are the margin."""
    late, quick = make_arrival(0.0, PRO, "late", steps=20), make_arrival(now, FREE, "quick", steps=3)
    (one, other), _ = waiting([late, quick], FLAT, ticks=0)
    one.steps_skipped, other.arrived = passed, now - waited
    assert [job.key for job in select_batch(SLACK, [one, other], now, FLAT)] == [first]


def test_a_key_that_asks_for_much_does_not_make_another_one_wait() -> None:
    flood = [make_arrival(0.0, PRO, "flood") for _ in range(20)]
    ended = simulate([*flood, make_arrival(10.0, PRO, "single")], SLACK, FLAT)
    (single,) = [one for one in ended if one.job.key == "single"]
    assert single.seconds <= 2 * single.job.isolated_seconds


def p99(ended: list[SimulatedJob], tier: object) -> float:
    return percentile([one.seconds for one in ended if one.job.tier is tier], 0.99)


@pytest.mark.parametrize("load", [0.55, 0.78, 0.95])
def test_free_pictures_are_ten_times_as_quick_as_first_come_first_served_and_full_ones_little_slower(
    load: float,
) -> None:
    """The trace of the capacity studies: four of five pictures take 3 steps, the others 35; no gain from batches."""
    trace = [poisson_arrivals(KINDS, load, 1500, FLAT, seed=seed) for seed in range(3)]
    ours, fcfs = (
        [one for asked in trace for one in simulate(asked, POLICIES[name], FLAT)] for name in ("slack", "fcfs")
    )
    assert p99(ours, FREE) <= p99(fcfs, FREE) / 10
    assert p99(ours, PRO) <= 1.5 * p99(fcfs, PRO)
    kept, before = (sum(one.is_in_time for one in ended) / len(ended) for ended in (ours, fcfs))
    assert kept >= before + 0.3
