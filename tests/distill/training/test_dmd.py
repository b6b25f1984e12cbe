"""Matching: nothing pulls where two networks draw alike, and what a student draws too often is pushed away."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.distill.training.dmd import MatchLesson, difference
from stillhouse.distill.training.networks import Denoiser
from tests.distill.training.test_trajectory_chain import SCHEDULE, lesson, random_walks, teacher

MEANS = st.floats(-3, 3)


def matched(student: Denoiser, fake: Denoiser, weight: float = 1.0, kinds: int = 1) -> MatchLesson:
    walks = random_walks(kinds=kinds)
    return MatchLesson(
        walks=lesson(walks, student),
        teacher=teacher(),
        fake=fake.unet,
        unsaid={name: row.float() for name, row in walks.unsaid.items()},
        weight=weight,
    )


def gradients(network: Denoiser, loss: Tensor) -> list[Tensor]:
    parameters = [one for one in network.unet.parameters() if one.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(parameters, found, strict=True)]


def learning() -> Denoiser:
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
    torch.testing.assert_close(difference(x, sees(ours), sees(theirs)), wanted.expand_as(x), rtol=1e-9, atol=1e-9)


def test_where_the_fake_sees_what_the_teacher_sees_nothing_is_matched() -> None:
    """The student's gradient is then that of its walks alone; with guidance 1 a teacher sees in one row what it does in
    two."""
    student, fake = learning(), learning()
    one = matched(student, fake)
    walks = replace(one.walks, walks=replace(one.walks.walks, guidance=torch.ones(12)))
    one = replace(one, walks=walks)
    alone = replace(walks, through=1.0)
    rng = np.random.default_rng((0, 8, 5))
    ended = alone.ended(alone.drawn(rng, 4))
    wanted = gradients(student, alone.error(ended.ours, ended.theirs, ended.at))
    found = gradients(student, one.loss(5))
    assert any(bool(grad.abs().sum() > 0) for grad in wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_fake_learns_from_pictures_and_leaves_the_student_alone() -> None:
    student, fake = learning(), learning()
    with torch.no_grad():
        fake.unet.conv_out.weight.mul_(1.5)
    one = matched(student, fake, weight=0.0)
    ended = one.walks.ended(one.walks.drawn(np.random.default_rng((0, 8, 2)), 4))
    wanted = gradients(student, one.walks.error(ended.ours, ended.theirs, ended.at))
    for ours, theirs in zip(gradients(student, one.loss(2)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    assert any(bool(grad.abs().sum() > 0) for grad in gradients(fake, one.loss(2)))
    pulled = replace(one, weight=1.0)
    assert any(
        not torch.allclose(ours, theirs, rtol=1e-3)
        for ours, theirs in zip(gradients(student, pulled.loss(2)), wanted, strict=True)
    )


def test_a_checkpoint_holds_both_networks() -> None:
    one = matched(learning(), learning())
    names = {name.partition(".")[0] for name in one.network.state_dict()}
    assert names == {"student", "fake"} and one.student.unet is one.walks.unet
    assert one.judge() == one.walks.judge()


def test_levels_are_those_of_the_teachers_schedule() -> None:
    at = matched(learning(), learning())._levels(np.random.default_rng(0), 500)
    assert at.timestep.min() >= 0.02 * SCHEDULE.train_steps and at.timestep.max() < 0.98 * SCHEDULE.train_steps
    torch.testing.assert_close(at.alpha**2 + at.sigma**2, torch.ones(500, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_edits_are_not_matched(number: int) -> None:
    """A batch of nothing else has the loss of its walks."""
    student = learning()
    one = matched(student, learning())
    kinds = torch.ones(12, dtype=torch.int64)
    walks = replace(one.walks, walks=replace(one.walks.walks, kinds=kinds), served=[*one.walks.served] * 2)
    walks = replace(walks, kept=walks.served)
    ended = walks.ended(walks.drawn(np.random.default_rng((0, 8, number)), 4))
    wanted = float(walks.error(ended.ours, ended.theirs, ended.at).detach())
    assert float(replace(one, walks=walks).loss(number).detach()) == pytest.approx(wanted, rel=1e-6)
