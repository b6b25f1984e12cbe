"""Step grids: subsets of each other, a uniform last grid, and shortest possible steps."""

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


def unevenness(schedule: Schedule, grid: TimestepGrid) -> float:
    """Return the largest distance of a level from trailing spacing, in timesteps."""
    even = make_grid(schedule, grid.steps)
    return float(np.abs(grid.timesteps - even.timesteps).max())


@given(counts=COUNTS.filter(lambda counts: counts[0] > 1), schedule=st.sampled_from(SCHEDULES))
def test_every_students_grid_is_a_subset_of_its_teachers_and_the_last_is_uniform(
    counts: list[int], schedule: Schedule
) -> None:
    pairs = plan_grid_pairs(schedule, counts)
    assert [pair.teacher.steps for pair in pairs] == counts[:-1]
    assert [pair.student.steps for pair in pairs] == counts[1:]
    assert all(before.student == after.teacher for before, after in pairwise(pairs))
    for pair in pairs:
        assert set(pair.student.levels) <= set(pair.teacher.levels)
        assert sum(pair.strides) == pair.teacher.steps and min(pair.strides) >= 1
    assert pairs[-1].student == make_grid(schedule, counts[-1])


@given(coarse=st.integers(1, 60), more=st.integers(0, 100))
def test_a_refined_grid_has_the_shortest_possible_longest_step(coarse: int, more: int) -> None:
    """Any other distribution of the steps has a longest step that is at least as long, up to rounding."""
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
def test_grids_of_usual_chains_are_nearly_uniform(counts: tuple[int, ...], most: float) -> None:
    """Up to whole timesteps. 35 steps that contain 18 uniform ones leave one undivided: off by 500 / 18."""
    schedule = Schedule()
    for pair in plan_grid_pairs(schedule, counts):
        assert unevenness(schedule, pair.teacher) <= (most if pair.teacher.steps == counts[0] else 1)
        assert unevenness(schedule, pair.student) <= 1


def test_equal_step_counts_have_one_grid() -> None:
    (pair,) = plan_grid_pairs(Schedule(), (9, 9))
    assert pair.teacher == pair.student and set(pair.strides) == {1}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((3, 9), "none larger than the one before"),
        ((35,), "two step counts or more"),
        ((1, 1), "a teacher of one step"),
        ((35, 0), "a step count is 0"),
        ((2000, 3), "a step count is 2000"),
    ],
)
def test_invalid_step_counts_are_refused(counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        plan_grid_pairs(Schedule(), counts)


def test_a_student_with_levels_outside_its_teachers_grid_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="timesteps of its teacher"):
        GridPair(make_grid(Schedule(), 4), make_grid(Schedule(), 3))


def test_every_grid_ends_at_the_clean_picture() -> None:
    for pair in plan_grid_pairs(Schedule(), (35, 18, 9, 3)):
        assert pair.student.levels[-1] == pair.teacher.levels[-1] == CLEAN
        assert pair.positions[-1] == pair.teacher.steps


@given(
    count=st.integers(1, 6),
    fine=st.integers(6, 40),
    strengths=st.lists(st.floats(0.2, 0.99), min_size=1, max_size=9, unique=True),
    flow=st.booleans(),
)
def test_edits_of_every_strength_have_all_steps_at_levels_of_their_own(
    count: int, fine: int, strengths: list[float], flow: bool
) -> None:
    schedule = Schedule("flow") if flow else Schedule(zero_terminal_snr=True)
    edits = plan_edit_grids(schedule, fine, make_grid(schedule, count), strengths)
    levels = make_grid(schedule, count).timesteps.tolist()
    for strength in strengths:
        pair = edits[strength]
        assert pair.student.steps == count and pair.teacher.steps >= count
        assert pair.student.timesteps[0] == pytest.approx(1000 * strength, abs=2 + len(strengths) * count)
        levels += pair.student.timesteps.tolist()
    assert len(set(levels)) == len(levels), "the level is the only input besides the latents"


@pytest.mark.parametrize("strengths", [(0.0,), (1.0,), (0.002,), (0.0041, 0.0042, 0.0043)])
def test_strengths_without_levels_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(InvalidRequest, match="strength"):
        plan_edit_grids(Schedule(), 36, make_grid(Schedule(), 3), strengths)


@given(counts=COUNTS.filter(lambda counts: counts[0] > 1), schedule=st.sampled_from(SCHEDULES))
def test_students_of_a_distilled_teacher_have_subsets_of_its_grid(counts: list[int], schedule: Schedule) -> None:
    grid = make_grid(schedule, counts[0])
    pairs = plan_grid_pairs(schedule, counts, grid)
    assert pairs[0].teacher == grid
    for pair in pairs:
        assert set(pair.student.levels) <= set(grid.levels) and pair.student.levels[0] == grid.levels[0]
