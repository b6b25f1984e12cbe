"""Rounds: the grids of a chain of students, each a part of its teacher's.

One step of a student crosses one or more of its teacher's steps and ends where they end. So a perfect chain ends where
the walk of the first teacher does, whatever the counts are; and a student of any count is exact only if its grid is a
part of its teacher's, since a student knows no levels but its own. Hence the grids are laid out backwards: the one that
will be served is even, and each is refined into the one of its teacher. The first teacher is defined at every level.
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
    """One student and its teacher, by the grids that they walk; the student's is a part of the teacher's.

    Raises:
        InvalidRequest: a level of the student that its teacher does not visit, or another first level.

    >>> Round(grid(Schedule(), 4), grid(Schedule(), 2)).strides
    (2, 2)
    """

    teacher: TimestepGrid
    student: TimestepGrid

    def __post_init__(self) -> None:
        missing = [point.timestep for point in self.student.levels if point not in self.teacher.levels]
        if missing or self.student.levels[0] != self.teacher.levels[0]:
            raise InvalidRequest(
                f"a student that visits {[point.timestep for point in self.student.levels[:-1]]}",
                allowed=f"levels of its teacher, from the first on: {self.teacher.timesteps.tolist()}",
            )

    @property
    def positions(self) -> tuple[int, ...]:
        """Where the student's points, CLEAN included, stand among the teacher's."""
        return tuple(self.teacher.levels.index(point) for point in self.student.levels)

    @property
    def strides(self) -> tuple[int, ...]:
        """The teacher's steps in each of the student's."""
        return tuple(after - before for before, after in pairwise(self.positions))


def plan_grid_pairs(
    schedule: Schedule, counts: Sequence[int], teacher_grid: TimestepGrid | None = None
) -> tuple[GridPair, ...]:
    """The rounds of a chain, the first teacher's first.

    Args:
        schedule: what the first teacher was trained with.
        counts: steps of the first teacher, and of each student after it; none more than the one before.
        begin: the only grid that the first teacher walks, if it was distilled to one. Grids are then laid out
            forwards, each the part of the one before that is the most even.

    Raises:
        InvalidRequest: fewer than two counts, one that is larger than the one before, a teacher of one step, or a first
            count that is not the teacher's.

    >>> first, *_, last = plan_rounds(Schedule(), (36, 18, 9, 3))
    >>> first.strides == (2,) * 18, last.student.timesteps.tolist()
    (True, [999.0, 666.0, 332.0])
    """
    for count in counts:
        check_integer("a count of steps", count, 1, min(MAX_STEPS, schedule.train_steps))
    if len(counts) < 2 or any(after > before for before, after in pairwise(counts)):
        raise InvalidRequest(
            f"rounds {', '.join(map(str, counts))}",
            allowed="two counts of steps or more, none larger than the one before: 35,18,9,3",
        )
    if counts[0] == 1:
        raise InvalidRequest(
            "a teacher that takes one step", allowed="2 steps and more", fix="there is nothing to halve"
        )
    if teacher_grid is None:
        grids = [make_grid(schedule, counts[-1])]
        for count in reversed(counts[:-1]):
            grids.append(refine(schedule, grids[-1], count))
        grids.reverse()
    else:
        if teacher_grid.steps != counts[0]:
            raise InvalidRequest(
                f"rounds that begin with {counts[0]} steps",
                allowed=f"{teacher_grid.steps}, which the teacher was distilled to",
            )
        grids = [teacher_grid]
        for count in counts[1:]:
            grids.append(coarsen(grids[-1], count))
    return tuple(GridPair(teacher, student) for teacher, student in pairwise(grids))


def refine(schedule: Schedule, coarse: TimestepGrid, steps: int) -> TimestepGrid:
    """A grid of so many steps that visits every level of a coarser one, its longest step as short as can be.

    The longest step is split until there are enough; of equal ones the cleanest first, because outlines are decided
    there, and a Stable Diffusion schedule spends two fifths of its timesteps where nearly all is noise.

    Raises:
        InvalidRequest: fewer steps than the coarse grid has, or more than there are timesteps.

    >>> refined(Schedule(), grid(Schedule(), 2), 3).timesteps.tolist()
    [999.0, 499.0, 249.0]
    """
    check_integer("steps", steps, coarse.steps, schedule.train_steps)
    end = 0.0 if schedule.is_flow else -1.0
    edges = [*coarse.timesteps.tolist(), end]
    lengths = np.array([before - after for before, after in pairwise(edges)])
    parts = np.ones(coarse.steps, int)
    for _ in range(steps - coarse.steps):
        longest = (lengths / parts)[::-1]
        parts[coarse.steps - 1 - int(np.argmax(longest.round(6)))] += 1
    points: list[NoiseLevel] = []
    for first, (begin, after), count in zip(coarse.levels, pairwise(edges), parts.tolist(), strict=False):
        between = [begin + (after - begin) * part / count for part in range(1, count)]
        points.append(first)
        if between:
            points += grid_from_timesteps(schedule, between if schedule.is_flow else [*map(round, between)]).levels[:-1]
    return TimestepGrid((*points, CLEAN))


def plan_edit_grids(
    schedule: Schedule, teacher_steps: int, student_grid: TimestepGrid, strengths: Sequence[float]
) -> Mapping[float, GridPair]:
    """For pictures that begin from another one: a round by strength, of as many of the student's steps as from noise.

    So an edit takes the same time whatever its strength. The teacher's steps are as long as they are from noise. A
    student is told the level only, so every grid has levels of its own: those that another one has already are moved by
    a timestep or some.

    Args:
        schedule: of the teacher, which is defined at every level.
        fine: steps of the teacher from pure noise.
        served: what the student walks from there.
        strengths: above 0 and below 1: the share of the schedule that an edit walks.

    Raises:
        InvalidRequest: a strength outside its range, or so small that there are not enough levels.

    >>> edits = plan_edits(Schedule(), 36, grid(Schedule(), 3), (0.5,))
    >>> edits[0.5].student.timesteps.tolist()
    [499.0, 331.0, 166.0]
    """
    count, used = student_grid.steps, set(student_grid.timesteps.tolist())
    found: dict[float, GridPair] = {}
    for strength in strengths:
        check_number("strength", strength, 1e-6, 1 - 1e-6)
        length = schedule.train_steps * strength
        steps: list[float] = []
        for part in range(count):
            wanted = length * (1 - part / count)
            level = wanted if schedule.is_flow else float(round(wanted) - 1)
            while level in used or (steps and level >= steps[-1]):
                level -= 1
            if level < 0:
                raise InvalidRequest(f"strength {strength:g} in {count} steps", allowed="larger and fewer strengths")
            steps.append(level)
            used.add(level)
        coarse = grid_from_timesteps(schedule, steps)
        found[strength] = GridPair(refine(schedule, coarse, max(count, round(teacher_steps * strength))), coarse)
    return found


def coarsen(fine: TimestepGrid, steps: int) -> TimestepGrid:
    """So many levels of a grid, the first among them, each the nearest to where an even one would have it.

    Raises:
        InvalidRequest: more steps than there are.

    >>> thinned(grid(Schedule(), 9), 3).timesteps.tolist()
    [999.0, 666.0, 332.0]
    """
    check_integer("steps", steps, 1, fine.steps)
    timesteps = fine.timesteps
    places = [0]
    for part in range(1, steps):
        wanted = timesteps[0] * (1 - part / steps)
        free = np.arange(places[-1] + 1, fine.steps - (steps - 1 - part))
        places.append(int(free[np.abs(timesteps[free] - wanted).argmin()]))
    return TimestepGrid((*(fine.levels[place] for place in places), CLEAN))
