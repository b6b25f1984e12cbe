"""Timestep grids of a chain of students: the noise levels of each student are a subset of its teacher's.

One student step replaces one or more teacher steps and ends at the same noise level as the last of them. A student is
trained at the levels of its grid only, so it can teach the next student at these levels only. The grids are therefore
planned backwards: the last student's grid is uniform, and levels are added to each grid to get its teacher's grid. The
first teacher may be evaluated at every level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stillhouse.check import check_integer, check_number
from stillhouse.diffusion import CLEAN, NoiseLevel, Schedule, TimestepGrid, grid_from_timesteps, make_grid
from stillhouse.errors import InvalidRequest

MAX_STEPS = 1000


@dataclass(frozen=True, slots=True)
class GridPair:
    """Timestep grids of a teacher and its student; the student's noise levels are a subset of the teacher's.

    Raises:
        InvalidRequest: the teacher's grid lacks a level of the student's grid, or the two grids start at different
            levels.

    >>> GridPair(make_grid(Schedule(), 4), make_grid(Schedule(), 2)).strides
    (2, 2)
    """

    teacher: TimestepGrid
    student: TimestepGrid

    def __post_init__(self) -> None:
        missing = [level.timestep for level in self.student.levels if level not in self.teacher.levels]
        if missing or self.student.levels[0] != self.teacher.levels[0]:
            timesteps = [level.timestep for level in self.student.levels[:-1]]
            raise InvalidRequest(
                f"the student's timesteps {timesteps} are not a subset of its teacher's with the same first timestep",
                allowed=f"timesteps of its teacher, the first included: {self.teacher.timesteps.tolist()}",
            )

    @property
    def positions(self) -> tuple[int, ...]:
        """Index of each student level among the teacher's levels, from the noisiest level to the clean picture."""
        return tuple(self.teacher.levels.index(level) for level in self.student.levels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Number of teacher steps that each student step replaces, in the order of sampling."""
        return tuple(end - start for start, end in pairwise(self.positions))


def plan_grid_pairs(
    schedule: Schedule, counts: Sequence[int], teacher_grid: TimestepGrid | None = None
) -> tuple[GridPair, ...]:
    """Plan the timestep grids of a chain in which each student is the teacher of the next.

    Args:
        schedule: noise schedule of the students.
        counts: number of sampling steps of the first teacher, then of each student; not increasing.
        teacher_grid: the only timesteps at which a distilled first teacher may be sampled. Each student's grid is then
            the most uniform subset of the preceding grid. None: the first teacher may be sampled at any timesteps. The
            last student's grid is then uniform, and its levels are in all grids.

    Returns:
        one pair of grids (teacher, student) for each student, in the order of training.

    Raises:
        InvalidRequest: there are fewer than two counts, a count increases or is outside its range, the first teacher
            has one step, or the first count differs from the number of steps of `teacher_grid`.

    >>> first, *_, last = plan_grid_pairs(Schedule(), (36, 18, 9, 3))
    >>> first.strides == (2,) * 18, last.student.timesteps.tolist()
    (True, [999.0, 666.0, 332.0])
    """
    for count in counts:
        check_integer("a step count", count, 1, min(MAX_STEPS, schedule.train_steps))
    if len(counts) < 2 or any(next_count > count for count, next_count in pairwise(counts)):
        raise InvalidRequest(
            f"step_counts is {', '.join(map(str, counts))}",
            allowed="two step counts or more, none larger than the one before, such as 36,18,9,3",
        )
    if counts[0] == 1:
        raise InvalidRequest(
            "step_counts starts with a teacher of one step, so no student can have fewer",
            allowed="2 steps or more for the teacher",
            fix="choose a teacher of more steps",
        )
    if teacher_grid is None:
        grids = [make_grid(schedule, counts[-1])]
        for count in reversed(counts[:-1]):
            grids.append(refine(schedule, grids[-1], count))
        grids.reverse()
    else:
        if teacher_grid.steps != counts[0]:
            raise InvalidRequest(
                f"step_counts starts with {counts[0]}, which is not the teacher's number of steps",
                allowed=f"{teacher_grid.steps}, the steps that the teacher was distilled to",
            )
        grids = [teacher_grid]
        for count in counts[1:]:
            grids.append(coarsen(grids[-1], count))
    return tuple(GridPair(teacher, student) for teacher, student in pairwise(grids))


def refine(schedule: Schedule, coarse: TimestepGrid, steps: int) -> TimestepGrid:
    """Return a timestep grid of `steps` steps that keeps all levels of a coarse grid and splits its longest steps.

    Among equally long steps the step at the lowest noise is split first: low noise levels decide outlines, and two
    fifths of the timesteps of Stable Diffusion's schedule are nearly pure noise.

    Args:
        schedule: noise schedule of the new levels.
        coarse: grid whose steps are split.
        steps: number of steps of the result.

    Raises:
        InvalidRequest: `steps` is below the coarse grid's number of steps, or above the schedule's number of timesteps.

    >>> refine(Schedule(), make_grid(Schedule(), 2), 3).timesteps.tolist()
    [999.0, 499.0, 249.0]
    """
    check_integer("steps", steps, coarse.steps, schedule.train_steps)
    end = 0.0 if schedule.is_flow else -1.0
    edges = [*coarse.timesteps.tolist(), end]
    lengths = np.array([start - stop for start, stop in pairwise(edges)])
    parts = np.ones(coarse.steps, int)
    for _ in range(steps - coarse.steps):
        longest = (lengths / parts)[::-1]
        parts[coarse.steps - 1 - int(np.argmax(longest.round(6)))] += 1
    levels: list[NoiseLevel] = []
    for level, (start, stop), count in zip(coarse.levels, pairwise(edges), parts.tolist(), strict=False):
        between = [start + (stop - start) * part / count for part in range(1, count)]
        levels.append(level)
        if between:
            levels += grid_from_timesteps(schedule, between if schedule.is_flow else [*map(round, between)]).levels[:-1]
    return TimestepGrid((*levels, CLEAN))


def plan_edit_grids(
    schedule: Schedule, teacher_steps: int, student_grid: TimestepGrid, strengths: Sequence[float]
) -> Mapping[float, GridPair]:
    """Plan the timestep grids of teacher and student for image-to-image (edits), one pair for each strength.

    The student takes all of its steps at every strength, so the time of an edit does not depend on the strength. In
    an edit, the teacher's steps are as long as from pure noise. No noise level may belong to two student grids, because
    the network is told the level, but not the grid. A level that another grid uses is moved by one timestep or more.

    Args:
        schedule: noise schedule of a teacher that may be evaluated at every level.
        teacher_steps: number of steps of the teacher from pure noise.
        student_grid: timestep grid of the student from pure noise.
        strengths: shares of the noise schedule that an edit denoises, above 0 and below 1.

    Returns:
        the pair of grids of each strength.

    Raises:
        InvalidRequest: a strength is outside its range, or too small for the number of steps.

    >>> edits = plan_edit_grids(Schedule(), 36, make_grid(Schedule(), 3), (0.5,))
    >>> edits[0.5].student.timesteps.tolist()
    [499.0, 331.0, 166.0]
    """
    count, used = student_grid.steps, set(student_grid.timesteps.tolist())
    pairs: dict[float, GridPair] = {}
    for strength in strengths:
        check_number("strength", strength, 1e-6, 1 - 1e-6)
        length = schedule.train_steps * strength
        steps: list[float] = []
        for part in range(count):
            target = length * (1 - part / count)
            level = target if schedule.is_flow else float(round(target) - 1)
            while level in used or (steps and level >= steps[-1]):
                level -= 1
            if level < 0:
                problem = f"strength {strength:g} is too small for {count} steps at timesteps that no other grid uses"
                raise InvalidRequest(problem, allowed="larger strengths, or fewer strengths")
            steps.append(level)
            used.add(level)
        coarse = grid_from_timesteps(schedule, steps)
        pairs[strength] = GridPair(refine(schedule, coarse, max(count, round(teacher_steps * strength))), coarse)
    return pairs


def coarsen(fine: TimestepGrid, steps: int) -> TimestepGrid:
    """Return the most uniform subset of a timestep grid that has `steps` steps and the same first level.

    Raises:
        InvalidRequest: `steps` is below 1, or above the grid's number of steps.

    >>> coarsen(make_grid(Schedule(), 9), 3).timesteps.tolist()
    [999.0, 666.0, 332.0]
    """
    check_integer("steps", steps, 1, fine.steps)
    timesteps = fine.timesteps
    positions = [0]
    for part in range(1, steps):
        target = timesteps[0] * (1 - part / steps)
        free = np.arange(positions[-1] + 1, fine.steps - (steps - 1 - part))
        positions.append(int(free[np.abs(timesteps[free] - target).argmin()]))
    return TimestepGrid((*(fine.levels[position] for position in positions), CLEAN))
