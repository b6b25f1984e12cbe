"""Distribution matching: gradient, losses of student and fake score network, and edits."""

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
    dataset = random_trajectories(kinds=kinds)
    return DistributionMatching(
        regression=regression_stage(dataset, student),
        teacher=teacher(),
        fake_score=fake_score.network,
        uncond={name: row.float() for name, row in dataset.uncond.items()},
        weight=weight,
    )


def gradients(network: Denoiser, loss: Tensor) -> list[Tensor]:
    parameters = [parameter for parameter in network.network.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, grads, strict=True)
    return [torch.zeros_like(parameter) if grad is None else grad for parameter, grad in pairs]


def trainable_denoiser() -> Denoiser:
    denoiser = teacher()
    return replace(denoiser, network=denoiser.network.requires_grad_(True).train())


@given(student=MEANS, teacher_mean=MEANS, spread=st.floats(0.1, 2), seed=st.integers(0, 99))
def test_for_gaussians_the_gradient_points_from_one_mean_to_the_other(
    student: float, teacher_mean: float, spread: float, seed: int
) -> None:
    """For data N(m, s^2), the ideal prediction from z = a x + b e is m + a s^2 (z - a m) / (a^2 s^2 + b^2): two
    predictions differ by (m_fake - m_teacher) b^2 / (a^2 s^2 + b^2) at every z."""
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(0.1, 0.9)
    variance = 1 - alpha**2
    x = student + spread * torch.from_numpy(rng.standard_normal((4, 2, 3, 3)))
    z = alpha * x + variance**0.5 * torch.from_numpy(rng.standard_normal(x.shape))

    def predict(mean: float) -> Tensor:
        clean: Tensor = mean + alpha * spread**2 * (z - alpha * mean) / (alpha**2 * spread**2 + variance)
        return clean

    distance = (x - predict(teacher_mean)).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    expected = (student - teacher_mean) * variance / (alpha**2 * spread**2 + variance) / distance
    actual = score_difference(x, predict(student), predict(teacher_mean))
    torch.testing.assert_close(actual, expected.expand_as(x), rtol=1e-9, atol=1e-9)


def test_equal_predictions_of_both_networks_give_no_matching_gradient() -> None:
    """The student's gradient is that of the regression alone; guidance 1 makes the teacher's two rows equal one."""
    student, fake = trainable_denoiser(), trainable_denoiser()
    one = matching_stage(student, fake)
    regression = replace(one.regression, dataset=replace(one.regression.dataset, guidance=torch.ones(12)))
    one = replace(one, regression=regression)
    alone = replace(regression, end_to_end_fraction=1.0)
    rng = np.random.default_rng((0, 8, 5))
    rollout = alone.rollout(alone.sample_indices(rng, 4))
    expected = gradients(student, alone.weighted_error(rollout.student, rollout.teacher, rollout.levels))
    actual = gradients(student, one.loss(5))
    assert any(bool(grad.abs().sum() > 0) for grad in expected)
    for actual_grad, expected_grad in zip(actual, expected, strict=True):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-3, atol=1e-6)


def test_the_fake_scores_loss_has_no_gradient_in_the_student() -> None:
    student, fake = trainable_denoiser(), trainable_denoiser()
    with torch.no_grad():
        fake.network.conv_out.weight.mul_(1.5)
    one = matching_stage(student, fake, weight=0.0)
    rollout = one.regression.rollout(one.regression.sample_indices(np.random.default_rng((0, 8, 2)), 4))
    expected = gradients(student, one.regression.weighted_error(rollout.student, rollout.teacher, rollout.levels))
    for actual_grad, expected_grad in zip(gradients(student, one.loss(2)), expected, strict=True):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-5, atol=1e-8)
    assert any(bool(grad.abs().sum() > 0) for grad in gradients(fake, one.loss(2)))
    matched = replace(one, weight=1.0)
    assert any(
        not torch.allclose(actual_grad, expected_grad, rtol=1e-3)
        for actual_grad, expected_grad in zip(gradients(student, matched.loss(2)), expected, strict=True)
    )


def test_a_checkpoint_contains_both_networks() -> None:
    one = matching_stage(trainable_denoiser(), trainable_denoiser())
    names = {name.partition(".")[0] for name in one.network.state_dict()}
    assert names == {"student", "fake_score"} and one.student.network is one.regression.network
    assert one.evaluate() == one.regression.evaluate()


def test_levels_are_those_of_the_teachers_schedule() -> None:
    levels = matching_stage(trainable_denoiser(), trainable_denoiser())._sample_levels(np.random.default_rng(0), 500)
    assert levels.timestep.min() >= 0.02 * SCHEDULE.train_steps and levels.timestep.max() < 0.98 * SCHEDULE.train_steps
    torch.testing.assert_close(
        levels.alpha**2 + levels.sigma**2, torch.ones(500, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("number", range(3))
def test_edits_have_no_matching_loss(number: int) -> None:
    """The loss of a batch of edits is the regression loss."""
    student = trainable_denoiser()
    one = matching_stage(student, trainable_denoiser())
    kinds = torch.ones(12, dtype=torch.int64)
    regression = replace(
        one.regression,
        dataset=replace(one.regression.dataset, kinds=kinds),
        student_grids=[*one.regression.student_grids] * 2,
    )
    regression = replace(regression, stored_grids=regression.student_grids)
    rollout = regression.rollout(regression.sample_indices(np.random.default_rng((0, 8, number)), 4))
    expected = float(regression.weighted_error(rollout.student, rollout.teacher, rollout.levels).detach())
    assert float(replace(one, regression=regression).loss(number).detach()) == pytest.approx(expected, rel=1e-6)
