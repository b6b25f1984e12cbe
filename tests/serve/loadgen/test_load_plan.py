"""Plans: as busy as they were asked to be, bounded, and the same for the same seed."""

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


def test_the_mean_request_is_as_long_as_the_shares_say() -> None:
    assert mean_seconds(KINDS, ALONE) == pytest.approx(0.8 * 0.05 + 0.2 * 0.5)


@pytest.mark.parametrize("burst", [1, 5])
def test_requests_come_at_the_rate_and_in_the_shares_that_were_asked_for(burst: int) -> None:
    shots = planned(LoadPlan(20.0, seconds=1000.0, burst=burst))
    assert len(shots) / 1000.0 == pytest.approx(20.0, rel=0.05)
    assert sum(shot.request_class.name == "pro" for shot in shots) / len(shots) == pytest.approx(0.2, abs=0.02)
    assert {shot.client for shot in shots} == set(range(20))


@given(seed=st.integers(0, 2**63 - 1), rate=st.floats(0.1, 50), seconds=st.floats(0.1, 20), burst=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_seed_is_a_plan_in_the_order_of_time_and_within_its_bounds(
    seed: int, rate: float, seconds: float, burst: int
) -> None:
    course = LoadPlan(rate, None, seconds, burst, seed=seed)
    shots = planned(course)
    assert shots == planned(course)
    assert [shot.time for shot in shots] == sorted(shot.time for shot in shots)
    assert all(0 <= shot.time <= seconds for shot in shots)
    assert len(shots) < course.max_requests


def test_more_seconds_are_the_same_plan_with_more_at_its_end() -> None:
    short, long = planned(LoadPlan(9.0, seconds=10.0)), planned(LoadPlan(9.0, seconds=20.0))
    assert long[: len(short)] == short


def test_a_count_is_a_count() -> None:
    assert len(planned(LoadPlan(3.0, count=17, seconds=None))) == 17
    assert len(planned(LoadPlan(3.0, count=17, seconds=1e-3))) == 0


def test_a_flood_is_somebody_elses_and_has_a_row_of_its_own() -> None:
    calm = planned(LoadPlan(10.0, seconds=10.0, clients=3))
    shots = planned(LoadPlan(10.0, seconds=10.0, clients=3), Flood(7, 5.0, "pro"))
    flood = [shot for shot in shots if shot.report_row == "pro, flood"]
    assert [(shot.time, shot.client, shot.request_class.name) for shot in flood] == [(5.0, 3, "pro")] * 7
    others = [shot for shot in shots if shot.report_row != "pro, flood"]
    assert [(one.time, one.client, one.report_row) for one in others] == [
        (one.time, one.client, one.report_row) for one in calm
    ]


def test_prompts_are_taken_in_turn_and_are_captions_where_none_are_given() -> None:
    assert [shot.prompt for shot in planned(LoadPlan(3.0, count=3, seconds=None))] == [
        "a circle",
        "a square",
        "a circle",
    ]
    shots = schedule_requests(KINDS, ALONE, LoadPlan(3.0, count=3, seconds=None))
    assert [shot.prompt for shot in shots] == random_captions(3, seed=0)


@pytest.mark.parametrize(
    ("told", "word"),
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
def test_what_has_no_end_or_no_sense_is_refused(told: dict[str, float], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        LoadPlan(**{"rate": 1.0, **told})  # type: ignore[arg-type]
