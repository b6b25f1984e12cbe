"""Matching: nothing pulls where two networks draw alike, and what a student draws too often is pushed away."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.distill.training.dmd import DistributionMatching, score_difference
from stillhouse.distill.training.networks import Denoiser
from tests.distill.training.test_trajectory_chain import SCHEDULE, random_trajectories, regression_stage, teacher

MEANS = st.floats(-3, 3)


def matching_stage(
    student: Denoiser, fake_score: Denoiser, weight: float = 1.0, kinds: int = 1
) -> DistributionMatching:
    walks = random_trajectories(kinds=kinds)
    return DistributionMatching(
        regression=regression_stage(walks, student),
        teacher=teacher(),
        fake_score=fake_score.unet,
        uncond={name: row.float() for name, row in walks.uncond.items()},
        weight=weight,
    )


def gradients(network: Denoiser, loss: Tensor) -> list[Tensor]:
    parameters = [one for one in network.unet.parameters() if one.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(parameters, found, strict=True)]


def trainable_denoiser() -> Denoiser:
    denoiser = teacher()
    return replace(denoiser, unet=denoiser.unet.requires_grad_(True).train())


@given(ours=MEANS, theirs=MEANS, spread=st.floats(0.1, 2), seed=st.integers(0, 99))
def test_of_gaussians_it_points_from_one_mean_to_the_other(
    ours: float, theirs: float, spread: float, seed: int
) -> None:
    """Of data N(m, s^2) the clean picture in z = a x + b e is m + a s^2 (z - a m) / (a^2 s^2 + b^2): what two networks
    see differs by (m_fake - m_teacher) b^2 / (a^2 s^2 + b^2) wherever they look."""
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(0.1, 0.9)
    variance = 1 - alpha**2
    x = ours + spread * torch.from_numpy(rng.standard_normal((4, 2, 3, 3)))
    z = alpha * x + variance**0.5 * torch.from_numpy(rng.standard_normal(x.shape))

    def sees(mean: float) -> Tensor:
        clean: Tensor = mean + alpha * spread**2 * (z - alpha * mean) / (alpha**2 * spread**2 + variance)
        return clean

    away = (x - sees(theirs)).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    wanted = (ours - theirs) * variance / (alpha**2 * spread**2 + variance) / away
    torch.testing.assert_close(score_difference(x, sees(ours), sees(theirs)), wanted.expand_as(x), rtol=1e-9, atol=1e-9)


def test_where_the_fake_sees_what_the_teacher_sees_nothing_is_matched() -> None:
    """The student's gradient is then that of its walks alone; with guidance 1 a teacher sees in one row what it does in
    two."""
    student, fake = trainable_denoiser(), trainable_denoiser()
    one = matching_stage(student, fake)
    walks = replace(one.regression, dataset=replace(one.regression.dataset, guidance=torch.ones(12)))
    one = replace(one, regression=walks)
    alone = replace(walks, end_to_end_fraction=1.0)
    rng = np.random.default_rng((0, 8, 5))
    ended = alone.rollout(alone.sample_indices(rng, 4))
    wanted = gradients(student, alone.weighted_error(ended.student, ended.teacher, ended.levels))
    found = gradients(student, one.loss(5))
    assert any(bool(grad.abs().sum() > 0) for grad in wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_fake_learns_from_pictures_and_leaves_the_student_alone() -> None:
    student, fake = trainable_denoiser(), trainable_denoiser()
    with torch.no_grad():
        fake.unet.conv_out.weight.mul_(1.5)
    one = matching_stage(student, fake, weight=0.0)
    ended = one.regression.rollout(one.regression.sample_indices(np.random.default_rng((0, 8, 2)), 4))
    wanted = gradients(student, one.regression.weighted_error(ended.student, ended.teacher, ended.levels))
    for ours, theirs in zip(gradients(student, one.loss(2)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    assert any(bool(grad.abs().sum() > 0) for grad in gradients(fake, one.loss(2)))
    pulled = replace(one, weight=1.0)
    assert any(
        not torch.allclose(ours, theirs, rtol=1e-3)
        for ours, theirs in zip(gradients(student, pulled.loss(2)), wanted, strict=True)
    )


def test_a_checkpoint_holds_both_networks() -> None:
    one = matching_stage(trainable_denoiser(), trainable_denoiser())
    names = {name.partition(".")[0] for name in one.network.state_dict()}
    assert names == {"student", "fake"} and one.student.unet is one.regression.unet
    assert one.evaluate() == one.regression.evaluate()


def test_levels_are_those_of_the_teachers_schedule() -> None:
    at = matching_stage(trainable_denoiser(), trainable_denoiser())._sample_levels(np.random.default_rng(0), 500)
    assert at.timestep.min() >= 0.02 * SCHEDULE.train_steps and at.timestep.max() < 0.98 * SCHEDULE.train_steps
    torch.testing.assert_close(at.alpha**2 + at.sigma**2, torch.ones(500, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_edits_are_not_matched(number: int) -> None:
    """A batch of nothing else has the loss of its walks."""
    student = trainable_denoiser()
    one = matching_stage(student, trainable_denoiser())
    kinds = torch.ones(12, dtype=torch.int64)
    walks = replace(
        one.regression,
        dataset=replace(one.regression.dataset, kinds=kinds),
        student_grids=[*one.regression.student_grids] * 2,
    )
    walks = replace(walks, stored_grids=walks.student_grids)
    ended = walks.rollout(walks.sample_indices(np.random.default_rng((0, 8, number)), 4))
    wanted = float(walks.weighted_error(ended.student, ended.teacher, ended.levels).detach())
    assert float(replace(one, regression=walks).loss(number).detach()) == pytest.approx(wanted, rel=1e-6)
