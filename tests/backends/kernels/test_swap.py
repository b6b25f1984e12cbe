"""Kernels in a loaded network: it says the same, keeps its weights' names, and is what it was afterwards."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from stillhouse.backends.kernels.group_norm import group_norm
from stillhouse.backends.kernels.swap import swap_modules
from stillhouse.backends.torch_attention import KernelAttnProcessor
from tests.checkpoints import unet, vae

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
    swapped = swap_modules(own)
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
    swap_modules(own)
    left = {type(module).__name__ for module in own.modules()} & {"GroupNorm", "GEGLU", "BasicTransformerBlock", "SiLU"}
    # What is left of SiLU is the time embedding's own, once a step and a thousand numbers long.
    assert left <= {"SiLU"}


def test_pictures_stay_channels_last_from_norm_to_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers turns them behind each transformer, and a kernel would copy them back."""
    seen: list[bool] = []

    def noted(x: Tensor, *told: Any) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        out: Tensor = group_norm(x, *told)
        return out

    monkeypatch.setattr("stillhouse.backends.kernels.swap.group_norm", noted)
    for kind in ("sd1", "sd2", "xl"):
        own = network(kind)
        swap_modules(own)
        output(own)
    assert len(seen) > 10 and all(seen)


def test_attention_is_taken_over_where_it_is_torch_s_choice_and_nothing_else() -> None:
    own = network("sd1")
    swapped = swap_modules(own)
    blocks = [module for module in own.modules() if isinstance(module, Attention)]
    assert blocks and all(isinstance(block.processor, KernelAttnProcessor) for block in blocks)
    tokens, mask = torch.randn(2, 6, blocks[0].query_dim), torch.zeros(2, 1, 6)
    mask[..., 3:] = -10000.0
    with torch.no_grad():
        ours = blocks[0](tokens, attention_mask=mask)
        swapped.undo()
        assert torch.equal(ours, blocks[0](tokens, attention_mask=mask)), "a mask is diffusers' own matter"
    own.set_attn_processor(AttnProcessor())
    swap_modules(own)
    assert all(isinstance(block.processor, AttnProcessor) for block in blocks)


def test_projections_may_be_joined_before_and_parted_afterwards() -> None:
    own = network("sd1")
    before = output(own)
    own.fuse_qkv_projections()
    joined = [module.processor for module in own.modules() if isinstance(module, Attention)]
    swapped = swap_modules(own)
    assert all(isinstance(one.processor, KernelAttnProcessor) for one in own.modules() if isinstance(one, Attention))
    assert float((output(own) - before).abs().max() / before.abs().max()) < EXACT
    swapped.undo()
    assert [module.processor for module in own.modules() if isinstance(module, Attention)] == joined
    own.unfuse_qkv_projections()
    assert float((output(own) - before).abs().max() / before.abs().max()) < EXACT


def test_the_compiler_keeps_the_kernels_as_they_are() -> None:
    own = network("sd1")
    swap_modules(own)
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
