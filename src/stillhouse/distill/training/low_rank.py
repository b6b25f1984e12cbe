"""LoRA weights of students (arXiv 2106.09685): the difference between student and teacher is a file of a few megabytes.

During training the LoRA weights are separate from the denoiser's weights. For inference they are fused into the
denoiser's weights, so that inference needs no additional operation.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

ADAPTER = "student"
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""Name endings of the layers that get LoRA weights: attention, feed-forward and convolution, as in LCM-LoRA (arXiv
2311.05556)."""
_PROJECTION = "time_embedding.cond_proj"


def add_lora(network: Any, rank: int, seed: int) -> Any:
    """Add LoRA weights to a denoiser in place, make only them trainable, and return the same denoiser.

    The projection of the guidance scale is trained as well. All other weights are frozen.

    Args:
        network: diffusers' denoiser; LoRA weights that it already has stay unchanged.
        rank: rank of the LoRA matrices.
        seed: decides the down projections. The up projections are zero, so that the output does not change at first.
    """
    if ADAPTER not in getattr(network, "peft_config", {}):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)), ADAPTER)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(_PROJECTION))
    return network


def fused_copy(network: Any) -> Any:
    """Return a copy of a denoiser with its LoRA weights fused into the layers.

    A denoiser without LoRA weights is returned itself, not as a copy.
    """
    if ADAPTER not in getattr(network, "peft_config", {}):
        return network
    copy = deepcopy(network)
    copy.fuse_lora(adapter_names=[ADAPTER])
    copy.unload_lora()
    return copy


def lora_state_dict(network: Any) -> Mapping[str, Tensor]:
    """Return a denoiser's LoRA weights and its projection of the guidance scale, by name.

    The result is empty for a denoiser without LoRA weights.
    """
    if ADAPTER not in getattr(network, "peft_config", {}):
        return {}
    lora = {name: tensor.detach() for name, tensor in get_peft_model_state_dict(network, adapter_name=ADAPTER).items()}
    projection = {
        name: parameter.detach() for name, parameter in network.named_parameters() if name.startswith(_PROJECTION)
    }
    return {**lora, **projection}


def load_lora(network: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy LoRA weights and the projection of the guidance scale into a denoiser in place.

    Args:
        network: denoiser that `add_lora` returned.
        weights: weights by name, as `lora_state_dict` returns them.
    """
    projection = {name: tensor for name, tensor in weights.items() if name.startswith(_PROJECTION)}
    set_peft_model_state_dict(network, {name: weights[name] for name in weights.keys() - projection.keys()}, ADAPTER)
    with torch.no_grad():
        for name, tensor in projection.items():
            network.get_parameter(name).copy_(tensor)
