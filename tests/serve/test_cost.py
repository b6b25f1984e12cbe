"""Cost: measured seconds by rows, the batch that is worth it, and what is left of a job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import InvalidRequest
from stillhouse.serve.cost import NEARLY, Cost, Curve
from stillhouse.serve.job import Group, Job, Tier, Walk
from stillhouse.serve.simulate import NO_REQUEST

SECONDS = st.dictionaries(st.integers(1, 32), st.floats(1e-4, 100.0), min_size=1, max_size=6)
ROWS = st.lists(st.sampled_from((1, 2)), min_size=1, max_size=50)
GROUP = Group("model", 64, 64)


@given(SECONDS)
def test_what_was_measured_is_told_as_it_was(seconds: dict[int, float]) -> None:
    curve = Curve(seconds)
    assert {rows: curve.of(rows) for rows in seconds} == seconds


@given(SECONDS, st.integers(1, 100))
def test_between_and_beyond_it_lies_on_lines_that_never_fall_below_what_fewer_rows_took(
    seconds: dict[int, float], rows: int
) -> None:
    fewer = [count for count in seconds if count <= rows] or [min(seconds)]
    more = [count for count in seconds if count >= rows]
    told = Curve(seconds).of(rows)
    assert told >= min(seconds[max(fewer)], *(seconds[min(more)],) if more else (told,)) * (1 - 1e-9)
    if more:
        assert told <= max(seconds[max(fewer)], seconds[min(more)]) * (1 + 1e-9)


@given(SECONDS)
def test_the_cap_is_the_smallest_batch_that_is_nearly_as_good_as_the_best(seconds: dict[int, float]) -> None:
    cap = Curve(seconds).cap
    best = max(rows / taken for rows, taken in seconds.items())
    assert cap / seconds[cap] >= NEARLY * best
    assert all(rows / seconds[rows] < NEARLY * best for rows in seconds if rows < cap)


def test_a_device_without_gain_is_given_one_row_at_a_time() -> None:
    assert Curve({1: 1.0, 2: 2.0, 4: 4.1}).cap == 1


@pytest.mark.parametrize("seconds", [{}, {0: 1.0}, {1: 0.0}, {1: -1.0}])
def test_a_curve_that_was_not_measured_is_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(InvalidRequest, match="seconds above 0"):
        Curve(seconds)


@given(ROWS, st.data())
def test_what_is_left_of_a_walk_is_what_it_has_not_walked(rows: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(rows)))
    single, paired = Walk(tuple(rows)).left(index)
    assert (single, paired) == (rows[index:].count(1), rows[index:].count(2))


@given(ROWS, st.data())
def test_a_job_has_left_what_it_takes_alone_less_what_was_done(rows: list[int], data: st.DataObject) -> None:
    curve = Curve({1: 2.0, 2: 3.0}, begin=0.5, finish=0.25)
    cost, walk = Cost({GROUP: curve}), Walk(tuple(rows))
    index = data.draw(st.integers(0, len(rows)))
    job = Job("id", Tier("free"), "key", GROUP, walk, NO_REQUEST, alone=cost.alone(GROUP, walk), index=index)
    done = sum({1: 2.0, 2: 3.0}[count] for count in rows[:index])
    begun = 0.5 if index else 0.0
    assert cost.left(job) == pytest.approx(job.alone - done - begun)
