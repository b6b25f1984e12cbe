"""Distillation methods: paths over levels, and targets."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.diffusion import CLEAN, Schedule, make_grid
from stillhouse.distill.training.methods import (
    DistillationMethod,
    GuidanceDistillation,
    PhasedConsistency,
    ProgressiveDistillation,
)
from stillhouse.distill.training.step_grids import plan_edit_grids, plan_grid_pairs
from stillhouse.distill.training.targets import Levels

SCHEDULE = Schedule(zero_terminal_snr=True)
FIRST, _, LAST = plan_grid_pairs(SCHEDULE, (35, 18, 9, 3))
METHODS: list[DistillationMethod] = [
    GuidanceDistillation(SCHEDULE),
    ProgressiveDistillation(FIRST),
    ProgressiveDistillation(LAST),
    PhasedConsistency(LAST),
]


def half(z: Tensor, levels: Levels) -> Tensor:
    return 0.5 * z


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_paths_decrease_in_noise_and_start_at_every_level(
    method: DistillationMethod,
) -> None:
    paths = method.sample_paths(np.random.default_rng(0), 20_000)
    assert paths.dtype == torch.int64 and (paths[:, 0] < len(method.level_table.alphas) - 1).all()
    assert (paths.diff(dim=1) >= 0).all() and paths.max() <= len(method.level_table.alphas) - 1
    expected = (
        range(len(method.level_table.alphas) - 1)
        if not isinstance(method, ProgressiveDistillation)
        else method.grid_pair.positions[:-1]
    )
    assert set(paths[:, 0].tolist()) == set(expected)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_same_generator_gives_the_same_paths(method: DistillationMethod) -> None:
    first, second = (method.sample_paths(np.random.default_rng(7), 50) for _ in range(2))
    assert torch.equal(first, second)


def test_progressive_paths_end_at_the_students_step_and_trivial_ones_are_rare() -> None:
    method = ProgressiveDistillation(FIRST)
    paths = method.sample_paths(np.random.default_rng(0), 20_000)
    ends = dict(zip(FIRST.positions[:-1], FIRST.positions[1:], strict=True))
    assert all(ends[begin] == end for begin, end in paths[:, [0, -1]].tolist())
    single = [begin for begin, stride in zip(FIRST.positions, FIRST.strides, strict=False) if stride == 1]
    assert len(single) == 1
    share = (paths[:, 0] == single[0]).float().mean().item()
    assert share == pytest.approx(0.2 / 17.2, rel=0.3)


def test_consistency_paths_end_at_the_end_of_the_phase() -> None:
    method = PhasedConsistency(LAST)
    paths = method.sample_paths(np.random.default_rng(0), 1000).tolist()
    for start, after, edge in paths:
        assert after == start + 1 and edge == min(position for position in LAST.positions if position > start)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_targets_have_the_shape_and_the_dtype_of_pictures(method: DistillationMethod) -> None:
    z = torch.randn(16, 4, 8, 8)
    target = method.target(half, half, z, method.sample_paths(np.random.default_rng(0), 16))
    assert target.shape == z.shape and target.dtype == z.dtype and target.isfinite().all()


def test_the_target_of_guidance_is_the_teachers_prediction() -> None:
    method = METHODS[0]
    z = torch.randn(4, 1, 2, 2)
    assert torch.equal(method.target(half, half, z, method.sample_paths(np.random.default_rng(0), 4)), 0.5 * z)


def test_edits_have_grids_of_their_own_besides_the_one_from_noise() -> None:
    edits = plan_edit_grids(SCHEDULE, 36, make_grid(SCHEDULE, 3), (0.3, 0.7))
    (whole,) = plan_grid_pairs(SCHEDULE, (36, 3))
    method = ProgressiveDistillation(whole, edits)
    paths = method.sample_paths(np.random.default_rng(0), 20_000)
    starts = method.level_table.timesteps[paths[:, 0]]
    expected = {time for pair in (whole, *edits.values()) for time in pair.student.timesteps.tolist()}
    assert set(starts.tolist()) == expected and len(expected) == 9
    for begin, end in paths[:, [0, -1]].unique(dim=0).tolist():  # type: ignore[no-untyped-call]
        student = next(
            pair.student
            for pair in (whole, *edits.values())
            if float(method.level_table.timesteps[begin]) in pair.student.timesteps.tolist()
        )
        after = [*student.timesteps.tolist(), CLEAN.timestep]
        position = after.index(float(method.level_table.timesteps[begin]))
        assert float(method.level_table.timesteps[end]) == after[position + 1]


def test_targets_of_a_perfect_teacher_of_edits_are_exact() -> None:
    """For a single data point the clean picture is known at every level, and every step ends on it."""
    edits = plan_edit_grids(SCHEDULE, 36, make_grid(SCHEDULE, 3), (0.3, 0.7))
    (whole,) = plan_grid_pairs(SCHEDULE, (36, 3))
    method = ProgressiveDistillation(whole, edits)
    truth = torch.full((64, 1, 2, 2), 0.7, dtype=torch.float64)

    def denoise(z: Tensor, levels: Levels) -> Tensor:
        return truth

    paths = method.sample_paths(np.random.default_rng(0), 64)
    levels = method.level_table.at(paths[:, 0])
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in (levels.alpha, levels.sigma))
    z = alpha * truth + sigma * torch.randn(64, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(method.target(denoise, denoise, z, paths), truth, atol=1e-9, rtol=1e-9)
