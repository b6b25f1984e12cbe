"""Traces: as busy as they were asked to be, and the same for the same seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.arrivals import add_flood, poisson_arrivals
from tests.serve.engine.arrivals import FLAT, KINDS, PRO


@pytest.mark.parametrize("load", [0.3, 0.95, 3.0])
def test_the_work_that_arrives_is_the_load(load: float) -> None:
    trace = poisson_arrivals(KINDS, load, 20_000, FLAT)
    work = sum(FLAT.isolated_seconds(one.batch_key, one.step_plan) for one in trace)
    assert work / trace[-1].time == pytest.approx(load, rel=0.03)
    assert sum(one.tier is PRO for one in trace) / len(trace) == pytest.approx(0.2, abs=0.01)


@given(seed=st.integers(0, 1000), keys=st.integers(1, 5))
def test_a_seed_is_a_trace_in_the_order_of_time(seed: int, keys: int) -> None:
    trace = poisson_arrivals(KINDS, 0.5, 50, FLAT, seed=seed, keys=keys)
    assert trace == poisson_arrivals(KINDS, 0.5, 50, FLAT, seed=seed, keys=keys)
    assert [one.time for one in trace] == sorted(one.time for one in trace)
    assert {one.key for one in trace} <= {f"key {number}" for number in range(keys)}


def test_a_flood_comes_at_one_moment_and_leaves_the_others_where_they_were() -> None:
    calm = poisson_arrivals(KINDS, 0.5, 50, FLAT)
    trace = add_flood(calm, KINDS[1], calm[20].time, 7)
    assert [one for one in trace if one.key != "flood"] == calm
    assert [one.time for one in trace if one.key == "flood"] == [calm[20].time] * 7
    assert [one.time for one in trace] == sorted(one.time for one in trace)


@pytest.mark.parametrize("burst", [2, 7])
def test_bursts_bring_the_same_work_at_fewer_moments(burst: int) -> None:
    trace = poisson_arrivals(KINDS, 0.5, 14_000, FLAT, burst=burst)
    moments = [trace[first].time for first in range(0, len(trace), burst)]
    assert [one.time for one in trace] == [at for at in moments for _ in range(burst)]
    assert len(set(moments)) == len(moments)
    assert sum(FLAT.isolated_seconds(one.batch_key, one.step_plan) for one in trace) / trace[-1].time == pytest.approx(
        0.5, rel=0.1
    )


def test_shares_that_are_not_of_one_whole_and_no_load_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="shares"):
        poisson_arrivals(KINDS[:1], 0.5, 10, FLAT)
    with pytest.raises(InvalidRequest, match="load"):
        poisson_arrivals(KINDS, 0.0, 10, FLAT)
