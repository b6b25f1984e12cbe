"""Low-rank students (LoRA, arXiv 2106.09685): what they learnt is a file of some megabytes beside their teacher.

A service with many fine-tuned models cannot store a U-Net for each of them. While a student learns, its factors stand
beside the weights; to be served they are fused into them, so that it costs not one operation more.
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
"""Attention, feed-forward and convolutions: those of LCM-LoRA (arXiv 2311.05556)."""
_PROJECTION = "time_embedding.cond_proj"


def add_lora(unet: Any, rank: int, seed: int) -> Any:
    """The same network, of which only low-rank factors learn, and the projection of the guidance scale.

    Args:
        unet: with or without factors; they go on where they are.
        rank: of the factors; a smaller one changes less.
        seed: of the first factors; the second ones are zero, so that at first nothing is changed.
    """
    if ADAPTER not in getattr(unet, "peft_config", {}):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)), ADAPTER)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(_PROJECTION))
    return unet


def fused_copy(unet: Any) -> Any:
    """A copy whose factors are part of its weights; the same network where there are none."""
    if ADAPTER not in getattr(unet, "peft_config", {}):
        return unet
    copy = deepcopy(unet)
    copy.fuse_lora(adapter_names=[ADAPTER])
    copy.unload_lora()
    return copy


def lora_state_dict(unet: Any) -> Mapping[str, Tensor]:
    """What a student differs by from its first teacher: factors by their names, and the projection of the scale.

    Nothing where every weight may differ.
    """
    if ADAPTER not in getattr(unet, "peft_config", {}):
        return {}
    found = {name: tensor.detach() for name, tensor in get_peft_model_state_dict(unet, adapter_name=ADAPTER).items()}
    projection = {
        name: parameter.detach() for name, parameter in unet.named_parameters() if name.startswith(_PROJECTION)
    }
    return {**found, **projection}


def load_lora(unet: Any, weights: Mapping[str, Tensor]) -> None:
    """Into a network of `with_low_rank`: factors that another one had, and its projection of the scale."""
    projection = {name: tensor for name, tensor in weights.items() if name.startswith(_PROJECTION)}
    set_peft_model_state_dict(unet, {name: weights[name] for name in weights.keys() - projection.keys()}, ADAPTER)
    with torch.no_grad():
        for name, tensor in projection.items():
            unet.get_parameter(name).copy_(tensor)
