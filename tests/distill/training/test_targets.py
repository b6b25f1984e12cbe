"""Targets, against the one world where every answer is known: pictures of independent normal pixels.

There the network that cannot be bettered is linear, E[x | z] = alpha s^2 / (alpha^2 s^2 + sigma^2) z for pixels of
spread s, so are its DDIM steps, and so is the student that takes several of them at once. All in float64.
"""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.diffusion import CLEAN, Schedule, TimestepGrid, make_grid
from stillhouse.diffusion.samplers import ddim_coefficients
from stillhouse.distill.training.stage import full_rollout
from stillhouse.distill.training.step_grids import GridPair, plan_grid_pairs
from stillhouse.distill.training.targets import (
    DenoiseFn,
    Levels,
    consistency_target,
    ddim_rollout,
    ddim_step,
    invert_ddim,
    make_level_table,
    progressive_target,
)

SCHEDULES = st.sampled_from((Schedule(zero_terminal_snr=True), Schedule(), Schedule("flow")))
SPREADS = st.floats(0.05, 3.0)
EXACT = 1e-9
"""Relative; float64 loses 1e-16 over the shortest interval, a thousandth of a turn, squared where SNR is low."""


def perfect_denoiser(spread: float) -> DenoiseFn:
    """The network that sees the mean of all pictures that z may come from."""

    def sees(z: Tensor, at: Levels) -> Tensor:
        weight = at.alpha * spread**2 / (at.alpha**2 * spread**2 + at.sigma**2)
        return weight.view(-1, 1, 1, 1) * z

    return sees


def rollout_factor(points: TimestepGrid, places: tuple[int, ...], spread: float) -> float:
    """By how much the perfect network's walk over these places multiplies a picture, in Python floats."""
    product = 1.0
    for before, after in pairwise(points.levels[place] for place in places):
        seen = before.alpha * spread**2 / (before.alpha**2 * spread**2 + before.sigma**2)
        kept = after.sigma / before.sigma
        product *= kept + (after.alpha - before.alpha * kept) * seen
    return product


def noise(count: int) -> Tensor:
    return torch.randn(count, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(schedule=SCHEDULES, steps=st.integers(2, 40), spread=SPREADS, data=st.data())
def test_the_target_is_the_perfect_students_in_closed_form(
    schedule: Schedule, steps: int, spread: float, data: st.DataObject
) -> None:
    points = make_grid(schedule, steps)
    begin = data.draw(st.integers(0, steps - 1))
    end = data.draw(st.integers(begin + 1, min(begin + 4, steps)))
    path = tuple(range(begin, end + 1))
    first, last = points.levels[begin], points.levels[end]
    kept = last.sigma / first.sigma
    weight = (rollout_factor(points, path, spread) - kept) / (last.alpha - first.alpha * kept)
    z = noise(3)
    found = progressive_target(perfect_denoiser(spread), z, make_level_table(points), torch.tensor([path] * 3))
    torch.testing.assert_close(found, weight * z, rtol=EXACT, atol=EXACT)


@given(schedule=SCHEDULES, steps=st.integers(1, 40), spread=SPREADS, data=st.data())
def test_over_one_step_of_the_teacher_the_target_is_what_the_teacher_sees(
    schedule: Schedule, steps: int, spread: float, data: st.DataObject
) -> None:
    walk = make_level_table(make_grid(schedule, steps))
    place = data.draw(st.integers(0, steps - 1))
    z, path = noise(2), torch.tensor([[place, place + 1]] * 2)
    seen = perfect_denoiser(spread)(z, walk.at(path[:, 0]))
    torch.testing.assert_close(
        progressive_target(perfect_denoiser(spread), z, walk, path), seen, rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("counts", [(35, 18, 9, 3), (35, 18, 9, 5, 3, 1), (128, 36, 18, 9, 3), (7, 7)])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_a_chain_of_perfect_students_ends_where_the_first_teacher_does(counts: tuple[int, ...], spread: float) -> None:
    rounds = plan_grid_pairs(Schedule(zero_terminal_snr=True), counts)
    z, sees = noise(2), perfect_denoiser(spread)
    wanted = full_rollout(sees, z, make_level_table(rounds[0].teacher))
    for one in rounds:
        sees = perfect_student(sees, one)
        torch.testing.assert_close(full_rollout(sees, z, make_level_table(one.student)), wanted, rtol=EXACT, atol=EXACT)


def perfect_student(teacher: DenoiseFn, pair: GridPair) -> DenoiseFn:
    """Sees its target, at the levels that it knows."""
    walk, places = make_level_table(pair.teacher), pair.positions
    paths = {pair.teacher.levels[begin].timestep: list(range(begin, end + 1)) for begin, end in pairwise(places)}

    def sees(z: Tensor, at: Levels) -> Tensor:
        (timestep,) = set(at.timestep.tolist())
        return progressive_target(teacher, z, walk, torch.tensor([paths[timestep]] * len(z)))

    return sees


@given(spread=SPREADS, phases=st.integers(1, 6), data=st.data())
def test_a_perfect_jump_to_the_edge_is_its_own_consistency_target(
    spread: float, phases: int, data: st.DataObject
) -> None:
    schedule = Schedule(zero_terminal_snr=True)
    ((one),) = plan_grid_pairs(schedule, (24, phases))
    walk, teacher = make_level_table(one.teacher), perfect_denoiser(spread)
    place = data.draw(st.integers(0, 23))
    edge = min(edge for edge in one.positions if edge > place)

    def jump(z: Tensor, at: Levels) -> Tensor:
        (timestep,) = set(at.timestep.tolist())
        begin = one.teacher.timesteps.tolist().index(timestep)
        return progressive_target(teacher, z, walk, torch.tensor([list(range(begin, edge + 1))] * len(z)))

    z, path = noise(2), torch.tensor([[place, place + 1, edge]] * 2)
    found = consistency_target(teacher, jump, z, walk, path)
    torch.testing.assert_close(found, jump(z, walk.at(path[:, 0])), rtol=EXACT, atol=EXACT)


@given(schedule=SCHEDULES, steps=st.integers(2, 50), data=st.data())
def test_a_step_is_the_samplers_ddim_and_landing_is_its_inverse(
    schedule: Schedule, steps: int, data: st.DataObject
) -> None:
    points = make_grid(schedule, steps)
    begin = data.draw(st.integers(0, steps - 1))
    end = data.draw(st.integers(begin + 1, steps))
    move = ddim_coefficients(points.levels[begin], points.levels[end])
    walk = make_level_table(points)
    start, stop = walk.at(torch.tensor([begin])), walk.at(torch.tensor([end]))
    z, clean = noise(1), noise(1).flip(-1)
    moved = ddim_step(z, clean, start, stop)
    torch.testing.assert_close(moved, move.z * z + move.x0 * clean, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(invert_ddim(z, moved, start, stop), clean, rtol=EXACT, atol=EXACT)


def test_the_target_in_angles_is_the_same() -> None:
    """v = (cos(d) z - y) / sin(d), d the angle between the levels: the same rotation, derived without x."""
    points = make_grid(Schedule(zero_terminal_snr=True), 12)
    start, end = points.levels[2], points.levels[6]
    angle = math.atan2(start.sigma, start.alpha) - math.atan2(end.sigma, end.alpha)
    z, reached = noise(1), noise(1).flip(-1)
    velocity = (math.cos(angle) * z - reached) / math.sin(angle)
    walk = make_level_table(points)
    found = invert_ddim(z, reached, walk.at(torch.tensor([2])), walk.at(torch.tensor([6])))
    torch.testing.assert_close(found, start.alpha * z - start.sigma * velocity, rtol=EXACT, atol=EXACT)


def test_paths_of_several_lengths_go_together() -> None:
    points = make_grid(Schedule(zero_terminal_snr=True), 6)
    walk, sees = make_level_table(points), perfect_denoiser(0.7)
    paths = torch.tensor([[0, 1, 2, 3], [3, 4, 4, 4], [4, 5, 6, 6]])
    z = noise(3)
    together = ddim_rollout(sees, z, walk, paths)
    for row, path in enumerate(([0, 1, 2, 3], [3, 4], [4, 5, 6])):
        alone = ddim_rollout(sees, z[row : row + 1], walk, torch.tensor([path]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=0)
    assert points.levels[-1] == CLEAN
