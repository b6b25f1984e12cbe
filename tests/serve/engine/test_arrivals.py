"""Arrivals: the requested load, deterministic for a seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import InvalidRequest
from stillhouse.serve.engine.arrivals import add_flood, poisson_arrivals
from tests.serve.engine.arrivals import FLAT, KINDS, PRO


@pytest.mark.parametrize("load", [0.3, 0.95, 3.0])
def test_arriving_work_equals_the_load(load: float) -> None:
    trace = poisson_arrivals(KINDS, load, 20_000, FLAT)
    work = sum(FLAT.isolated_seconds(arrival.batch_key, arrival.step_plan) for arrival in trace)
    assert work / trace[-1].time == pytest.approx(load, rel=0.03)
    assert sum(arrival.tier is PRO for arrival in trace) / len(trace) == pytest.approx(0.2, abs=0.01)


@given(seed=st.integers(0, 1000), keys=st.integers(1, 5))
def test_arrivals_are_deterministic_and_sorted(seed: int, keys: int) -> None:
    trace = poisson_arrivals(KINDS, 0.5, 50, FLAT, seed=seed, keys=keys)
    assert trace == poisson_arrivals(KINDS, 0.5, 50, FLAT, seed=seed, keys=keys)
    assert [arrival.time for arrival in trace] == sorted(arrival.time for arrival in trace)
    assert {arrival.key for arrival in trace} <= {f"key {number}" for number in range(keys)}


def test_flood_keeps_other_arrivals() -> None:
    calm = poisson_arrivals(KINDS, 0.5, 50, FLAT)
    trace = add_flood(calm, KINDS[1], calm[20].time, 7)
    assert [arrival for arrival in trace if arrival.key != "flood"] == calm
    assert [arrival.time for arrival in trace if arrival.key == "flood"] == [calm[20].time] * 7
    assert [arrival.time for arrival in trace] == sorted(arrival.time for arrival in trace)


@pytest.mark.parametrize("burst", [2, 7])
def test_bursts_keep_the_load_at_fewer_times(burst: int) -> None:
    trace = poisson_arrivals(KINDS, 0.5, 14_000, FLAT, burst=burst)
    moments = [trace[first].time for first in range(0, len(trace), burst)]
    assert [arrival.time for arrival in trace] == [at for at in moments for _ in range(burst)]
    assert len(set(moments)) == len(moments)
    assert sum(FLAT.isolated_seconds(arrival.batch_key, arrival.step_plan) for arrival in trace) / trace[
        -1
    ].time == pytest.approx(0.5, rel=0.1)


def test_invalid_shares_and_load_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="shares"):
        poisson_arrivals(KINDS[:1], 0.5, 10, FLAT)
    with pytest.raises(InvalidRequest, match="load"):
        poisson_arrivals(KINDS, 0.0, 10, FLAT)
