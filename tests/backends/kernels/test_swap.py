"""Kernels in a loaded network: it says the same, keeps its weights' names, and is what it was afterwards."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.backends.kernels.swap import swap
from tests.models.checkpoints import unet, vae

EXACT = 1e-5
"""Of the largest value: float32 in another order of sums."""


def network(kind: str) -> Any:
    torch.manual_seed(0)
    made: Any = vae() if kind == "vae" else unet(kind)
    return made.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def output(network: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    channels = getattr(network.config, "latent_channels", network.config.in_channels)
    z = torch.randn(2, channels, 8, 8, generator=generator)
    with torch.no_grad():
        if not hasattr(network, "time_embedding"):
            decoded: Tensor = network.decode(z, return_dict=False)[0]
            return decoded
        text = torch.randn(2, 7, network.config.cross_attention_dim, generator=generator)
        added = None
        if network.config.addition_embed_type == "text_time":
            pooled = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
            added = {
                "text_embeds": torch.randn(2, pooled, generator=generator),
                "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]] * 2),
            }
        told: Tensor = network(
            z, torch.tensor([3, 700]), encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
        )[0]
        return told


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl", "vae"])
def test_a_network_with_kernels_says_what_it_said(kind: str) -> None:
    own = network(kind)
    before, names = output(own), list(own.state_dict())
    classes = {name: type(module) for name, module in own.named_modules()}
    swapped = swap(own)
    assert len(swapped) > 4
    after = output(own)
    assert float((after - before).abs().max() / before.abs().max()) < EXACT
    assert list(own.state_dict()) == names, "weights keep their names"
    swapped.undo()
    assert {name: type(module) for name, module in own.named_modules()} == classes
    assert torch.equal(output(own), before) and not len(swapped)
    swapped.undo()


def test_every_norm_and_gate_of_a_unet_is_swapped() -> None:
    own = network("sd1")
    swap(own)
    left = {type(module).__name__ for module in own.modules()} & {"GroupNorm", "GEGLU", "BasicTransformerBlock", "SiLU"}
    # What is left of SiLU is the time embedding's own, once a step and a thousand numbers long.
    assert left <= {"SiLU"}


def test_the_compiler_keeps_the_kernels_as_they_are() -> None:
    own = network("sd1")
    swap(own)
    seen: list[str] = []

    def look(module: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    compiled: Any = torch.compile(own.down_blocks[0].attentions[0].transformer_blocks[0], backend=look, fullgraph=True)
    width = own.down_blocks[0].attentions[0].transformer_blocks[0].norm1.weight.shape[0]
    with torch.no_grad():
        compiled(torch.ones(1, 4, width), encoder_hidden_states=torch.ones(1, 7, own.config.cross_attention_dim))
    kept = {name for name in seen if "stillhouse" in name}
    assert {name.split(".")[1] for name in kept} == {"layer_norm", "add_layer_norm", "geglu"}
