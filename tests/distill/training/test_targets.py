"""Targets, compared with closed forms for pictures of independent normal pixels.

For pixels with standard deviation s, the ideal denoiser is linear: E[x | z] = alpha s^2 / (alpha^2 s^2 + sigma^2) z.
Its DDIM steps and the ideal student that takes several of them at once are linear, too. All in float64.
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
from stillhouse.distill.training.distillation_stage import full_rollout
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
"""Relative tolerance; float64 loses 1e-16 over the shortest interval, squared where the SNR is low."""


def perfect_denoiser(spread: float) -> DenoiseFn:
    """Return the ideal denoiser: the mean of the clean pictures given z."""

    def denoise(z: Tensor, levels: Levels) -> Tensor:
        weight = levels.alpha * spread**2 / (levels.alpha**2 * spread**2 + levels.sigma**2)
        return weight.view(-1, 1, 1, 1) * z

    return denoise


def rollout_factor(grid: TimestepGrid, path: tuple[int, ...], spread: float) -> float:
    """Return the factor by which the ideal denoiser's DDIM steps over a path multiply the latents, in Python floats."""
    product = 1.0
    for before, after in pairwise(grid.levels[index] for index in path):
        clean = before.alpha * spread**2 / (before.alpha**2 * spread**2 + before.sigma**2)
        z_weight = after.sigma / before.sigma
        product *= z_weight + (after.alpha - before.alpha * z_weight) * clean
    return product


def noise(count: int) -> Tensor:
    return torch.randn(count, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(schedule=SCHEDULES, steps=st.integers(2, 40), spread=SPREADS, data=st.data())
def test_the_target_of_the_ideal_denoiser_has_its_closed_form(
    schedule: Schedule, steps: int, spread: float, data: st.DataObject
) -> None:
    grid = make_grid(schedule, steps)
    begin = data.draw(st.integers(0, steps - 1))
    end = data.draw(st.integers(begin + 1, min(begin + 4, steps)))
    path = tuple(range(begin, end + 1))
    first, last = grid.levels[begin], grid.levels[end]
    z_weight = last.sigma / first.sigma
    weight = (rollout_factor(grid, path, spread) - z_weight) / (last.alpha - first.alpha * z_weight)
    z = noise(3)
    actual = progressive_target(perfect_denoiser(spread), z, make_level_table(grid), torch.tensor([path] * 3))
    torch.testing.assert_close(actual, weight * z, rtol=EXACT, atol=EXACT)


@given(schedule=SCHEDULES, steps=st.integers(1, 40), spread=SPREADS, data=st.data())
def test_the_target_of_one_teacher_step_is_the_teachers_prediction(
    schedule: Schedule, steps: int, spread: float, data: st.DataObject
) -> None:
    table = make_level_table(make_grid(schedule, steps))
    start = data.draw(st.integers(0, steps - 1))
    z, path = noise(2), torch.tensor([[start, start + 1]] * 2)
    predicted = perfect_denoiser(spread)(z, table.at(path[:, 0]))
    torch.testing.assert_close(
        progressive_target(perfect_denoiser(spread), z, table, path), predicted, rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("counts", [(35, 18, 9, 3), (35, 18, 9, 5, 3, 1), (128, 36, 18, 9, 3), (7, 7)])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_a_chain_of_perfect_students_ends_where_the_teacher_ends(counts: tuple[int, ...], spread: float) -> None:
    pairs = plan_grid_pairs(Schedule(zero_terminal_snr=True), counts)
    z, denoise = noise(2), perfect_denoiser(spread)
    expected = full_rollout(denoise, z, make_level_table(pairs[0].teacher))
    for pair in pairs:
        denoise = perfect_student(denoise, pair)
        torch.testing.assert_close(
            full_rollout(denoise, z, make_level_table(pair.student)), expected, rtol=EXACT, atol=EXACT
        )


def perfect_student(teacher: DenoiseFn, pair: GridPair) -> DenoiseFn:
    """Return the student that predicts its target at each of its levels."""
    table, positions = make_level_table(pair.teacher), pair.positions
    paths = {pair.teacher.levels[begin].timestep: list(range(begin, end + 1)) for begin, end in pairwise(positions)}

    def denoise(z: Tensor, levels: Levels) -> Tensor:
        (timestep,) = set(levels.timestep.tolist())
        return progressive_target(teacher, z, table, torch.tensor([paths[timestep]] * len(z)))

    return denoise


@given(spread=SPREADS, phases=st.integers(1, 6), data=st.data())
def test_a_perfect_jump_is_its_own_consistency_target(spread: float, phases: int, data: st.DataObject) -> None:
    schedule = Schedule(zero_terminal_snr=True)
    (pair,) = plan_grid_pairs(schedule, (24, phases))
    table, teacher = make_level_table(pair.teacher), perfect_denoiser(spread)
    start = data.draw(st.integers(0, 23))
    edge = min(edge for edge in pair.positions if edge > start)

    def jump(z: Tensor, levels: Levels) -> Tensor:
        (timestep,) = set(levels.timestep.tolist())
        begin = pair.teacher.timesteps.tolist().index(timestep)
        return progressive_target(teacher, z, table, torch.tensor([list(range(begin, edge + 1))] * len(z)))

    z, path = noise(2), torch.tensor([[start, start + 1, edge]] * 2)
    actual = consistency_target(teacher, jump, z, table, path)
    torch.testing.assert_close(actual, jump(z, table.at(path[:, 0])), rtol=EXACT, atol=EXACT)


@given(schedule=SCHEDULES, steps=st.integers(2, 50), data=st.data())
def test_a_step_is_the_samplers_ddim_and_can_be_inverted(schedule: Schedule, steps: int, data: st.DataObject) -> None:
    grid = make_grid(schedule, steps)
    begin = data.draw(st.integers(0, steps - 1))
    end = data.draw(st.integers(begin + 1, steps))
    step = ddim_coefficients(grid.levels[begin], grid.levels[end])
    table = make_level_table(grid)
    start, stop = table.at(torch.tensor([begin])), table.at(torch.tensor([end]))
    z, clean = noise(1), noise(1).flip(-1)
    moved = ddim_step(z, clean, start, stop)
    torch.testing.assert_close(moved, step.z * z + step.x0 * clean, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(invert_ddim(z, moved, start, stop), clean, rtol=EXACT, atol=EXACT)


def test_the_target_in_angles_is_equal() -> None:
    """v = (cos(d) z - y) / sin(d) with the angle d between the levels: the same rotation, derived without x."""
    grid = make_grid(Schedule(zero_terminal_snr=True), 12)
    start, end = grid.levels[2], grid.levels[6]
    angle = math.atan2(start.sigma, start.alpha) - math.atan2(end.sigma, end.alpha)
    z, z_end = noise(1), noise(1).flip(-1)
    velocity = (math.cos(angle) * z - z_end) / math.sin(angle)
    table = make_level_table(grid)
    actual = invert_ddim(z, z_end, table.at(torch.tensor([2])), table.at(torch.tensor([6])))
    torch.testing.assert_close(actual, start.alpha * z - start.sigma * velocity, rtol=EXACT, atol=EXACT)


def test_paths_of_different_lengths_are_batched() -> None:
    grid = make_grid(Schedule(zero_terminal_snr=True), 6)
    table, denoise = make_level_table(grid), perfect_denoiser(0.7)
    paths = torch.tensor([[0, 1, 2, 3], [3, 4, 4, 4], [4, 5, 6, 6]])
    z = noise(3)
    together = ddim_rollout(denoise, z, table, paths)
    for row, path in enumerate(([0, 1, 2, 3], [3, 4], [4, 5, 6])):
        alone = ddim_rollout(denoise, z[row : row + 1], table, torch.tensor([path]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=0)
    assert grid.levels[-1] == CLEAN
