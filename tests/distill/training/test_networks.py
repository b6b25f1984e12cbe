"""Denoisers: guidance as in diffusers, guidance embedding, and nearest levels of another schedule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillhouse.diffusion import Prediction, Schedule, make_grid, noise_levels
from stillhouse.distill.training.networks import Denoiser, GuidedInputs, add_guidance_embedding
from stillhouse.distill.training.targets import Levels, make_level_table
from stillhouse.pipelines.families.stable_diffusion import embed_guidance
from tests.checkpoints import unet

SCHEDULE = Schedule(zero_terminal_snr=True)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = unet("sd2").eval()
    return network


def guided_inputs(count: int, guidance: float, width: int = 32) -> GuidedInputs:
    generator = torch.Generator().manual_seed(1)
    cond, uncond = (torch.randn(count, 7, width, generator=generator) for _ in range(2))
    return GuidedInputs(
        {"encoder_hidden_states": cond}, {"encoder_hidden_states": uncond}, torch.full((count,), guidance)
    )


def levels(*indices: int, steps: int = 10, schedule: Schedule = SCHEDULE) -> Levels:
    return make_level_table(make_grid(schedule, steps)).at(torch.tensor(indices))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
def test_a_copy_with_guidance_embedding_has_the_same_outputs_bit_for_bit(
    network: torch.nn.Module, guidance: float
) -> None:
    z, batch, at = torch.randn(3, 4, 8, 8), guided_inputs(3, guidance), levels(0, 4, 9)
    teacher = Denoiser(network, SCHEDULE, "v_prediction")
    student = Denoiser(add_guidance_embedding(network).eval(), SCHEDULE, "v_prediction")
    assert student.is_conditioned and not teacher.is_conditioned
    assert torch.equal(student.denoise_fn(batch)(z, at), teacher.single_row_fn(batch)(z, at))


@torch.no_grad()
def test_the_guidance_embedding_equals_the_pipelines(network: torch.nn.Module) -> None:
    """float32 rounds at 6e-8; the float64 sines of two libraries differ by far less."""
    student = add_guidance_embedding(network).eval()
    embeddings: list[torch.Tensor] = []
    student.register_forward_pre_hook(
        lambda module, values, named: embeddings.append(named["timestep_cond"]), with_kwargs=True
    )
    scales = torch.tensor([1.0, 2.37, 7.5])
    batch = replace(guided_inputs(3, 1.0), guidance=scales)
    Denoiser(student, SCHEDULE, "v_prediction").denoise_fn(batch)(torch.randn(3, 4, 8, 8), levels(0, 4, 9))
    expected = np.stack([embed_guidance(scale, embeddings[0].shape[1]) for scale in scales.tolist()])
    np.testing.assert_allclose(embeddings[0].numpy(), expected, atol=1e-7)


@torch.no_grad()
def test_a_copy_of_a_copy_keeps_trained_weights(network: torch.nn.Module) -> None:
    first = add_guidance_embedding(network).eval()
    torch.nn.init.normal_(first.time_embedding.cond_proj.weight, std=0.1)
    second = add_guidance_embedding(first).eval()
    z, at = torch.randn(2, 4, 8, 8), levels(2, 3)
    copied, copied_twice = (
        Denoiser(copy, SCHEDULE, "v_prediction").denoise_fn(guided_inputs(2, 3.0))(z, at) for copy in (first, second)
    )
    assert torch.equal(copied, copied_twice)
    weak, strong = (
        Denoiser(second, SCHEDULE, "v_prediction").denoise_fn(guided_inputs(2, w))(z, at) for w in (1.0, 5.0)
    )
    assert not torch.allclose(weak, strong)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_guidance_equals_diffusers(network: torch.nn.Module, prediction: Prediction) -> None:
    schedule = Schedule()
    z, batch, at = torch.randn(2, 4, 8, 8), guided_inputs(2, 4.0), levels(1, 6, schedule=schedule)
    actual = Denoiser(network, schedule, prediction).denoise_fn(batch)(z, at)
    timesteps = at.timestep.long()
    cond, uncond = (
        network(z, timesteps, encoder_hidden_states=states["encoder_hidden_states"], return_dict=False)[0]
        for states in (batch.cond, batch.uncond)
    )
    output = uncond + 4.0 * (cond - uncond)
    alphas, sigmas = (
        torch.from_numpy(np.array(level))[timesteps].view(-1, 1, 1, 1) for level in noise_levels(schedule)
    )
    expected = {
        "v_prediction": alphas * z - sigmas * output,
        "epsilon": (z - sigmas * output) / alphas,
        "sample": output.double(),
    }[prediction]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_network_of_another_schedule_is_evaluated_at_its_nearest_level(network: torch.nn.Module) -> None:
    """Levels are compared by alpha and sigma, not by the timestep."""
    own, other = Schedule("linear", 1e-4, 0.02), Schedule("squaredcos_cap_v2")
    z, batch = torch.randn(3, 4, 8, 8), guided_inputs(3, 1.0)
    at = levels(1, 5, 8, schedule=other)
    alphas, _ = noise_levels(own)
    nearest = [int(np.abs(np.arccos(alphas) - np.arccos(alpha)).argmin()) for alpha in at.alpha.tolist()]
    same = Levels(torch.tensor(nearest).double(), *(torch.from_numpy(level[nearest]) for level in noise_levels(own)))
    teacher = Denoiser(network, own, "v_prediction").single_row_fn(batch)
    torch.testing.assert_close(teacher(z, at), teacher(z, same))
