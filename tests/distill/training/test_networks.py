"""U-Nets as targets want them: guided as diffusers guides, and copies that begin as their teachers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillhouse.diffusion import Prediction, Schedule, make_grid, noise_levels
from stillhouse.distill.training.networks import Denoiser, GuidedInputs, add_guidance_embedding
from stillhouse.distill.training.targets import Levels, make_level_table
from stillhouse.pipelines.pipeline import embed_guidance
from tests.checkpoints import unet

SCHEDULE = Schedule(zero_terminal_snr=True)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = unet("sd2").eval()
    return network


def guided_inputs(count: int, guidance: float, width: int = 32) -> GuidedInputs:
    generator = torch.Generator().manual_seed(1)
    said, unsaid = (torch.randn(count, 7, width, generator=generator) for _ in range(2))
    return GuidedInputs(
        {"encoder_hidden_states": said}, {"encoder_hidden_states": unsaid}, torch.full((count,), guidance)
    )


def levels(*places: int, steps: int = 10, schedule: Schedule = SCHEDULE) -> Levels:
    return make_level_table(make_grid(schedule, steps)).at(torch.tensor(places))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_a_copy_that_takes_the_scale_begins_as_its_teacher_bit_for_bit(
    network: torch.nn.Module, guidance: float
) -> None:
    z, batch, at = torch.randn(3, 4, 8, 8), guided_inputs(3, guidance), levels(0, 4, 9)
    teacher = Denoiser(network, SCHEDULE, "v_prediction")
    student = Denoiser(add_guidance_embedding(network).eval(), SCHEDULE, "v_prediction")
    assert student.is_conditioned and not teacher.is_conditioned
    assert torch.equal(student.denoise_fn(batch)(z, at), teacher.single_row_fn(batch)(z, at))


@torch.no_grad()
def test_a_scale_is_told_as_it_is_where_pictures_are_served(network: torch.nn.Module) -> None:
    """float32 rounds at 6e-8; two libraries' sines of one angle in float64 differ by far less."""
    student = add_guidance_embedding(network).eval()
    told: list[torch.Tensor] = []
    student.register_forward_pre_hook(
        lambda module, values, named: told.append(named["timestep_cond"]), with_kwargs=True
    )
    scales = torch.tensor([1.0, 2.37, 7.5])
    batch = replace(guided_inputs(3, 1.0), guidance=scales)
    Denoiser(student, SCHEDULE, "v_prediction").denoise_fn(batch)(torch.randn(3, 4, 8, 8), levels(0, 4, 9))
    wanted = np.stack([embed_guidance(scale, told[0].shape[1]) for scale in scales.tolist()])
    np.testing.assert_allclose(told[0].numpy(), wanted, atol=1e-7)


@torch.no_grad()
def test_a_copy_of_a_copy_keeps_what_was_learnt(network: torch.nn.Module) -> None:
    first = add_guidance_embedding(network).eval()
    torch.nn.init.normal_(first.time_embedding.cond_proj.weight, std=0.1)
    second = add_guidance_embedding(first).eval()
    z, at = torch.randn(2, 4, 8, 8), levels(2, 3)
    one, other = (
        Denoiser(copy, SCHEDULE, "v_prediction").denoise_fn(guided_inputs(2, 3.0))(z, at) for copy in (first, second)
    )
    assert torch.equal(one, other)
    weak, strong = (
        Denoiser(second, SCHEDULE, "v_prediction").denoise_fn(guided_inputs(2, w))(z, at) for w in (1.0, 5.0)
    )
    assert not torch.allclose(weak, strong)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_guidance_is_the_one_that_diffusers_computes(network: torch.nn.Module, prediction: Prediction) -> None:
    schedule = Schedule()
    z, batch, at = torch.randn(2, 4, 8, 8), guided_inputs(2, 4.0), levels(1, 6, schedule=schedule)
    found = Denoiser(network, schedule, prediction).denoise_fn(batch)(z, at)
    timesteps = at.timestep.long()
    said, unsaid = (
        network(z, timesteps, encoder_hidden_states=states["encoder_hidden_states"], return_dict=False)[0]
        for states in (batch.cond, batch.uncond)
    )
    output = unsaid + 4.0 * (said - unsaid)
    alphas, sigmas = (torch.from_numpy(np.array(one))[timesteps].view(-1, 1, 1, 1) for one in noise_levels(schedule))
    wanted = {
        "v_prediction": alphas * z - sigmas * output,
        "epsilon": (z - sigmas * output) / alphas,
        "sample": output.double(),
    }[prediction]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_network_of_another_schedule_is_asked_at_its_nearest_level(network: torch.nn.Module) -> None:
    """By how much is noise and how much is picture, not by the number of the timestep."""
    own, other = Schedule("linear", 1e-4, 0.02), Schedule("squaredcos_cap_v2")
    z, batch = torch.randn(3, 4, 8, 8), guided_inputs(3, 1.0)
    at = levels(1, 5, 8, schedule=other)
    alphas, _ = noise_levels(own)
    nearest = [int(np.abs(np.arccos(alphas) - np.arccos(alpha)).argmin()) for alpha in at.alpha.tolist()]
    same = Levels(torch.tensor(nearest).double(), *(torch.from_numpy(one[nearest]) for one in noise_levels(own)))
    teacher = Denoiser(network, own, "v_prediction").single_row_fn(batch)
    torch.testing.assert_close(teacher(z, at), teacher(z, same))
