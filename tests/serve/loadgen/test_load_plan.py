"""Load plans: the requested load, bounded, deterministic for a seed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import InvalidRequest
from stillhouse.serve.loadgen.load_plan import LoadPlan, ScheduledRequest, mean_seconds, schedule_requests
from stillhouse.serve.loadgen.request_class import Flood, RequestClass
from stillhouse.shapes.caption import random_captions

KINDS = (RequestClass("free", 0.8, "free"), RequestClass("pro", 0.2, "pro"))
ALONE = {"free": 0.05, "pro": 0.5}


def planned(course: LoadPlan, flood: Flood | None = None) -> list[ScheduledRequest]:
    return schedule_requests(KINDS, ALONE, course, flood, ("a circle", "a square"))


def test_mean_latency_is_weighted_by_shares() -> None:
    assert mean_seconds(KINDS, ALONE) == pytest.approx(0.8 * 0.05 + 0.2 * 0.5)


@pytest.mark.parametrize("burst", [1, 5])
def test_arrivals_have_the_rate_and_the_shares(burst: int) -> None:
    shots = planned(LoadPlan(20.0, seconds=1000.0, burst=burst))
    assert len(shots) / 1000.0 == pytest.approx(20.0, rel=0.05)
    assert sum(shot.request_class.name == "pro" for shot in shots) / len(shots) == pytest.approx(0.2, abs=0.02)
    assert {shot.client for shot in shots} == set(range(20))


@given(seed=st.integers(0, 2**63 - 1), rate=st.floats(0.1, 50), seconds=st.floats(0.1, 20), burst=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_plan_is_deterministic_sorted_and_bounded(seed: int, rate: float, seconds: float, burst: int) -> None:
    course = LoadPlan(rate, None, seconds, burst, seed=seed)
    shots = planned(course)
    assert shots == planned(course)
    assert [shot.time for shot in shots] == sorted(shot.time for shot in shots)
    assert all(0 <= shot.time <= seconds for shot in shots)
    assert len(shots) < course.max_requests


def test_longer_plan_extends_the_shorter_one() -> None:
    short, long = planned(LoadPlan(9.0, seconds=10.0)), planned(LoadPlan(9.0, seconds=20.0))
    assert long[: len(short)] == short


def test_count_is_exact() -> None:
    assert len(planned(LoadPlan(3.0, count=17, seconds=None))) == 17
    assert len(planned(LoadPlan(3.0, count=17, seconds=1e-3))) == 0


def test_flood_has_its_own_client_and_row() -> None:
    calm = planned(LoadPlan(10.0, seconds=10.0, clients=3))
    shots = planned(LoadPlan(10.0, seconds=10.0, clients=3), Flood(7, 5.0, "pro"))
    flood = [shot for shot in shots if shot.report_row == "pro, flood"]
    assert [(shot.time, shot.client, shot.request_class.name) for shot in flood] == [(5.0, 3, "pro")] * 7
    others = [shot for shot in shots if shot.report_row != "pro, flood"]
    assert [(request.time, request.client, request.report_row) for request in others] == [
        (request.time, request.client, request.report_row) for request in calm
    ]


def test_prompts_are_used_in_turn_and_default_to_captions() -> None:
    assert [shot.prompt for shot in planned(LoadPlan(3.0, count=3, seconds=None))] == [
        "a circle",
        "a square",
        "a circle",
    ]
    shots = schedule_requests(KINDS, ALONE, LoadPlan(3.0, count=3, seconds=None))
    assert [shot.prompt for shot in shots] == random_captions(3, seed=0)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1e5}, "rate"),
        ({"count": 0}, "count"),
        ({"count": 100_001}, "count"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": 1e6}, "seconds"),
        ({"count": None, "seconds": None}, "seconds"),
        ({"burst": 0}, "burst"),
        ({"clients": 0}, "clients"),
        ({"seed": -1}, "seed"),
        ({"rate": 100.0, "seconds": 3600.0}, "number of requests"),
    ],
)
def test_endless_or_invalid_plan_is_refused(message: dict[str, float], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        LoadPlan(**{"rate": 1.0, **message})  # type: ignore[arg-type]
