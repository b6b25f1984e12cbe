"""Methods: paths that their teacher can walk, and targets that are what they say."""

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


def half(z: Tensor, at: Levels) -> Tensor:
    return 0.5 * z


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_paths_go_from_noise_to_picture_over_levels_that_exist_and_reach_every_level(
    method: DistillationMethod,
) -> None:
    paths = method.sample_paths(np.random.default_rng(0), 20_000)
    assert paths.dtype == torch.int64 and (paths[:, 0] < len(method.level_table.alphas) - 1).all()
    assert (paths.diff(dim=1) >= 0).all() and paths.max() <= len(method.level_table.alphas) - 1
    wanted = (
        range(len(method.level_table.alphas) - 1)
        if not isinstance(method, ProgressiveDistillation)
        else method.grid_pair.positions[:-1]
    )
    assert set(paths[:, 0].tolist()) == set(wanted)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_same_generator_gives_the_same_paths(method: DistillationMethod) -> None:
    first, second = (method.sample_paths(np.random.default_rng(7), 50) for _ in range(2))
    assert torch.equal(first, second)


def test_progressive_paths_end_where_the_students_step_does_and_known_intervals_are_seldom() -> None:
    method = ProgressiveDistillation(FIRST)
    paths = method.sample_paths(np.random.default_rng(0), 20_000)
    ends = dict(zip(FIRST.positions[:-1], FIRST.positions[1:], strict=True))
    assert all(ends[begin] == end for begin, end in paths[:, [0, -1]].tolist())
    single = [begin for begin, stride in zip(FIRST.positions, FIRST.strides, strict=False) if stride == 1]
    assert len(single) == 1
    share = (paths[:, 0] == single[0]).float().mean().item()
    assert share == pytest.approx(0.2 / 17.2, rel=0.3)


def test_consistency_paths_end_at_the_next_edge() -> None:
    method = PhasedConsistency(LAST)
    paths = method.sample_paths(np.random.default_rng(0), 1000).tolist()
    for place, after, edge in paths:
        assert after == place + 1 and edge == min(one for one in LAST.positions if one > place)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_targets_have_the_shape_and_the_dtype_of_pictures(method: DistillationMethod) -> None:
    z = torch.randn(16, 4, 8, 8)
    target = method.target(half, half, z, method.sample_paths(np.random.default_rng(0), 16))
    assert target.shape == z.shape and target.dtype == z.dtype and target.isfinite().all()


def test_guidance_asks_for_what_the_teacher_sees() -> None:
    method = METHODS[0]
    z = torch.randn(4, 1, 2, 2)
    assert torch.equal(method.target(half, half, z, method.sample_paths(np.random.default_rng(0), 4)), 0.5 * z)


def test_edits_are_taught_on_grids_of_their_own_beside_the_whole_one() -> None:
    edits = plan_edit_grids(SCHEDULE, 36, make_grid(SCHEDULE, 3), (0.3, 0.7))
    (whole,) = plan_grid_pairs(SCHEDULE, (36, 3))
    method = ProgressiveDistillation(whole, edits)
    paths = method.sample_paths(np.random.default_rng(0), 20_000)
    starts = method.level_table.timesteps[paths[:, 0]]
    wanted = {time for one in (whole, *edits.values()) for time in one.student.timesteps.tolist()}
    assert set(starts.tolist()) == wanted and len(wanted) == 9
    for begin, end in paths[:, [0, -1]].unique(dim=0).tolist():  # type: ignore[no-untyped-call]
        student = next(
            one.student
            for one in (whole, *edits.values())
            if float(method.level_table.timesteps[begin]) in one.student.timesteps.tolist()
        )
        after = [*student.timesteps.tolist(), CLEAN.timestep]
        place = after.index(float(method.level_table.timesteps[begin]))
        assert float(method.level_table.timesteps[end]) == after[place + 1]


def test_a_perfect_teacher_of_edits_is_crossed_exactly() -> None:
    """Of data that is one picture, the clean picture is known at every level: every step of every length ends on it."""
    edits = plan_edit_grids(SCHEDULE, 36, make_grid(SCHEDULE, 3), (0.3, 0.7))
    (whole,) = plan_grid_pairs(SCHEDULE, (36, 3))
    method = ProgressiveDistillation(whole, edits)
    truth = torch.full((64, 1, 2, 2), 0.7, dtype=torch.float64)

    def known(z: Tensor, at: Levels) -> Tensor:
        return truth

    paths = method.sample_paths(np.random.default_rng(0), 64)
    at = method.level_table.at(paths[:, 0])
    z = at.alpha.view(-1, 1, 1, 1) * truth + at.sigma.view(-1, 1, 1, 1) * torch.randn(64, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(method.target(known, known, z, paths), truth, atol=1e-9, rtol=1e-9)
