"""Rounds: grids that are parts of each other, the served one even, and no step longer than it must be."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.diffusion import CLEAN, Schedule, TimestepGrid, make_grid
from stillhouse.distill.training.step_grids import GridPair, plan_edit_grids, plan_grid_pairs, refine
from stillhouse.errors import InvalidRequest

SCHEDULES = (Schedule(), Schedule(zero_terminal_snr=True), Schedule("flow"))
COUNTS = st.lists(st.integers(1, 200), min_size=2, max_size=6).map(lambda counts: sorted(counts, reverse=True))


def unevenness(schedule: Schedule, grid_: TimestepGrid) -> float:
    """The farthest that a level lies from where trailing spacing would have it, in timesteps."""
    even = make_grid(schedule, grid_.steps)
    return float(np.abs(grid_.timesteps - even.timesteps).max())


@given(counts=COUNTS.filter(lambda counts: counts[0] > 1), schedule=st.sampled_from(SCHEDULES))
def test_every_student_walks_a_part_of_its_teachers_grid_and_the_last_one_is_even(
    counts: list[int], schedule: Schedule
) -> None:
    rounds = plan_grid_pairs(schedule, counts)
    assert [one.teacher.steps for one in rounds] == counts[:-1]
    assert [one.student.steps for one in rounds] == counts[1:]
    assert all(before.student == after.teacher for before, after in pairwise(rounds))
    for one in rounds:
        assert set(one.student.levels) <= set(one.teacher.levels)
        assert sum(one.strides) == one.teacher.steps and min(one.strides) >= 1
    assert rounds[-1].student == make_grid(schedule, counts[-1])


@given(coarse=st.integers(1, 60), more=st.integers(0, 100))
def test_a_refined_grid_has_no_step_that_is_longer_than_it_must_be(coarse: int, more: int) -> None:
    """However the steps are spread over the intervals, one of them is as long as the longest here, rounding aside."""
    schedule = Schedule()
    even = make_grid(schedule, coarse)
    fine = refine(schedule, even, coarse + more)
    longest = max(before - after for before, after in pairwise([*fine.timesteps, -1.0]))
    lengths = [before - after for before, after in pairwise([*even.timesteps, -1.0])]

    def steps_needed(limit: float) -> int:
        return sum(-int(-length // limit) for length in lengths)

    assert steps_needed(longest - 2) > coarse + more


@pytest.mark.parametrize(
    ("counts", "most"),
    [((36, 18, 9, 3), 1), ((32, 16, 8, 4, 2, 1), 1), ((35, 18, 9, 3), 28), ((35, 18, 9, 3, 1), 28)],
)
def test_grids_of_usual_chains_are_nearly_even(counts: tuple[int, ...], most: float) -> None:
    """To whole timesteps. 35 steps that hold 18 even ones leave one of those undivided: half of 1000 / 18 from even."""
    schedule = Schedule()
    for one in plan_grid_pairs(schedule, counts):
        assert unevenness(schedule, one.teacher) <= (most if one.teacher.steps == counts[0] else 1)
        assert unevenness(schedule, one.student) <= 1


def test_a_round_of_equal_counts_has_one_grid() -> None:
    (one,) = plan_grid_pairs(Schedule(), (9, 9))
    assert one.teacher == one.student and set(one.strides) == {1}


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((3, 9), "none larger than the one before"),
        ((35,), "two counts of steps or more"),
        ((1, 1), "a teacher that takes one step"),
        ((35, 0), "a count of steps is 0"),
        ((2000, 3), "a count of steps is 2000"),
    ],
)
def test_rounds_that_cannot_be_are_refused(counts: tuple[int, ...], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        plan_grid_pairs(Schedule(), counts)


def test_a_student_off_its_teachers_grid_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="levels of its teacher"):
        GridPair(make_grid(Schedule(), 4), make_grid(Schedule(), 3))


def test_every_grid_ends_at_the_clean_picture() -> None:
    for one in plan_grid_pairs(Schedule(), (35, 18, 9, 3)):
        assert one.student.levels[-1] == one.teacher.levels[-1] == CLEAN
        assert one.positions[-1] == one.teacher.steps


@given(
    count=st.integers(1, 6),
    fine=st.integers(6, 40),
    strengths=st.lists(st.floats(0.2, 0.99), min_size=1, max_size=9, unique=True),
    flow=st.booleans(),
)
def test_edits_of_every_strength_take_all_steps_over_levels_of_their_own(
    count: int, fine: int, strengths: list[float], flow: bool
) -> None:
    schedule = Schedule("flow") if flow else Schedule(zero_terminal_snr=True)
    edits = plan_edit_grids(schedule, fine, make_grid(schedule, count), strengths)
    seen = make_grid(schedule, count).timesteps.tolist()
    for strength in strengths:
        one = edits[strength]
        assert one.student.steps == count and one.teacher.steps >= count
        assert one.student.timesteps[0] == pytest.approx(1000 * strength, abs=2 + len(strengths) * count)
        seen += one.student.timesteps.tolist()
    assert len(set(seen)) == len(seen), "a student is told the level only"


@pytest.mark.parametrize("strengths", [(0.0,), (1.0,), (0.002,), (0.0041, 0.0042, 0.0043)])
def test_strengths_without_levels_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="strength"):
        plan_edit_grids(Schedule(), 36, make_grid(Schedule(), 3), strengths)


@given(counts=COUNTS.filter(lambda counts: counts[0] > 1), schedule=st.sampled_from(SCHEDULES))
def test_students_of_a_student_walk_parts_of_the_only_grid_that_it_knows(counts: list[int], schedule: Schedule) -> None:
    begin = make_grid(schedule, counts[0])
    rounds = plan_grid_pairs(schedule, counts, begin)
    assert rounds[0].teacher == begin
    for one in rounds:
        assert set(one.student.levels) <= set(begin.levels) and one.student.levels[0] == begin.levels[0]
