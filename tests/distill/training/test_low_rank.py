"""Low-rank students: nothing but factors learns, and fused they are a network like any other."""

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
    """Up to the order of sums in matrix products, which depends on where a copy's weights lie in memory."""
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def perturb(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))


def test_at_first_nothing_is_changed_and_factors_alone_learn(student: torch.nn.Module) -> None:
    torch.manual_seed(0)
    assert torch.equal(predict(student), predict(add_guidance_embedding(unet("sd2")).eval()))
    learning = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert learning and all("lora_" in name or name.startswith("time_embedding.cond_proj") for name in learning)


def test_fused_it_says_the_same_and_has_no_factors(student: torch.nn.Module) -> None:
    perturb(student)
    before = predict(student)
    one = fused_copy(student)
    assert not [name for name in one.state_dict() if "lora_" in name]
    assert_same(predict(one), before)
    assert torch.equal(predict(student), before)
    plain = add_guidance_embedding(unet("sd2"))
    assert one.state_dict().keys() == plain.state_dict().keys()


def test_a_student_of_a_student_goes_on_with_the_same_factors(student: torch.nn.Module) -> None:
    perturb(student)
    student.requires_grad_(False)
    following = add_lora(add_guidance_embedding(student), RANK, seed=9).eval()
    assert_same(predict(following), predict(student))
    assert lora_state_dict(following).keys() == lora_state_dict(student).keys()
    learning = [name for name, parameter in following.named_parameters() if parameter.requires_grad]
    assert set(lora_state_dict(following)) == {name.replace(".student.", ".") for name in learning}


def test_factors_are_all_that_it_differs_by(student: torch.nn.Module) -> None:
    perturb(student)
    kept = lora_state_dict(student)
    small = sum(tensor.numel() for tensor in kept.values())
    assert small < sum(parameter.numel() for parameter in student.parameters()) / 2
    torch.manual_seed(0)
    other = add_lora(add_guidance_embedding(unet("sd2")), RANK, seed=5).eval()
    named = {name.replace(".student.", "."): parameter for name, parameter in other.named_parameters()}
    with torch.no_grad():
        for name, tensor in kept.items():
            named[name].copy_(tensor)
    assert_same(predict(other), predict(student))


def test_without_factors_there_is_nothing_to_fuse() -> None:
    network = unet("sd2")
    assert fused_copy(network) is network and not lora_state_dict(network)
