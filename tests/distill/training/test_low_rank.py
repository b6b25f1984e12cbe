"""Low-rank students: trained weights, fusing, and the state dict."""

import pytest
import torch

from stillhouse.distill.training.low_rank import add_lora, fused_copy, lora_state_dict
from stillhouse.distill.training.networks import add_guidance_embedding
from tests.checkpoints import unet

RANK = 4


@pytest.fixture
def student() -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = add_lora(add_guidance_embedding(unet("sd2")), RANK, seed=0).eval()
    return network


def predict(network: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    z, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 32, generator=generator)
    with torch.no_grad():
        output: torch.Tensor = network(z, torch.tensor([5, 700]), text, timestep_cond=torch.ones(2, 256)).sample
    return output


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Compare up to the order of sums in matrix products, which depends on the memory layout of the weights."""
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def perturb(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))


def test_outputs_do_not_change_at_first_and_only_lora_weights_are_trained(student: torch.nn.Module) -> None:
    torch.manual_seed(0)
    assert torch.equal(predict(student), predict(add_guidance_embedding(unet("sd2")).eval()))
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name or name.startswith("time_embedding.cond_proj") for name in trained)


def test_a_fused_copy_has_the_same_outputs_and_no_lora_weights(student: torch.nn.Module) -> None:
    perturb(student)
    before = predict(student)
    fused = fused_copy(student)
    assert not [name for name in fused.state_dict() if "lora_" in name]
    assert_same(predict(fused), before)
    assert torch.equal(predict(student), before)
    plain = add_guidance_embedding(unet("sd2"))
    assert fused.state_dict().keys() == plain.state_dict().keys()


def test_a_student_of_a_student_continues_with_the_same_lora_weights(student: torch.nn.Module) -> None:
    perturb(student)
    student.requires_grad_(False)
    following = add_lora(add_guidance_embedding(student), RANK, seed=9).eval()
    assert_same(predict(following), predict(student))
    assert lora_state_dict(following).keys() == lora_state_dict(student).keys()
    trained = [name for name, parameter in following.named_parameters() if parameter.requires_grad]
    assert set(lora_state_dict(following)) == {name.replace(".student.", ".") for name in trained}


def test_the_state_dict_is_the_whole_difference_from_the_teacher(student: torch.nn.Module) -> None:
    perturb(student)
    state = lora_state_dict(student)
    small = sum(tensor.numel() for tensor in state.values())
    assert small < sum(parameter.numel() for parameter in student.parameters()) / 2
    torch.manual_seed(0)
    other = add_lora(add_guidance_embedding(unet("sd2")), RANK, seed=5).eval()
    named = {name.replace(".student.", "."): parameter for name, parameter in other.named_parameters()}
    with torch.no_grad():
        for name, tensor in state.items():
            named[name].copy_(tensor)
    assert_same(predict(other), predict(student))


def test_a_network_without_lora_weights_is_returned_unchanged() -> None:
    network = unet("sd2")
    assert fused_copy(network) is network and not lora_state_dict(network)
