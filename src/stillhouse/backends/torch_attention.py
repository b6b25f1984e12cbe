"""Attention of a denoiser by one named kernel of torch, or by the kernel that torch prefers.

torch's switches of attention kernels hold for the whole process, and other threads may decode meanwhile. A kernel is
therefore called by its name here. This module imports torch: import it inside functions only.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from stillhouse.errors import InvalidRequest

_ATEN = torch.ops.aten


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.device.type == "cpu":
        cpu_out: Tensor = _ATEN._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
        return cpu_out
    out: Tensor = _ATEN._scaled_dot_product_flash_attention(query, key, value)[0]
    return out


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out: Tensor = _ATEN._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]
    return out


def _efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out: Tensor = _ATEN._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]
    return out


ATTENTION_KERNELS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"flash": _flash, "cudnn": _cudnn, "efficient": _efficient, "sdpa": nn.functional.scaled_dot_product_attention}
)
"""Kernels by name. Each takes queries, keys and values [B, H, N, d] and returns the attention [B, H, N, d]."""


class KernelAttnProcessor:
    """A diffusers attention processor for the attention of denoisers, without masks.

    diffusers' own processor also divides its output by 1, which costs one more kernel that reads and writes a tensor.

    Args:
        kernel: a name of `ATTENTION_KERNELS`.
        masked_processor: processor of calls with a mask; None: such calls are refused.
    """

    def __init__(self, kernel: str, masked_processor: Callable[..., Any] | None = None) -> None:
        self.kernel, self.masked_processor = ATTENTION_KERNELS[kernel], masked_processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Return the attention [B, N, D] of tokens [B, N, D] to themselves, or to the text tokens [B, M, E].

        Raises:
            InvalidRequest: there is a mask, but no `masked_processor`.
        """
        if attention_mask is not None and self.masked_processor:
            masked: Tensor = self.masked_processor(attn, hidden_states, encoder_hidden_states, attention_mask, **unused)
            return masked
        if attention_mask is not None:
            raise InvalidRequest(
                "an attention mask was given to a kernel that takes none",
                allowed="calls without a mask, as in denoisers",
            )
        heads = (
            part.reshape(*part.shape[:-1], attn.heads, -1).transpose(1, 2)
            for part in _project(attn, hidden_states, encoder_hidden_states)
        )
        mixed = self.kernel(*heads).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


def _project(attn: Any, tokens: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [B, N, D], keys and values, by separate linear layers or by the fused layers that replaced them.

    Args:
        attn: attention block of diffusers.
        tokens: [B, N, D].
        text: text tokens [B, M, E], from which keys and values are computed; None: they are computed from `tokens`.
    """
    if not attn.fused_projections:
        context = tokens if text is None else text
        return attn.to_q(tokens), attn.to_k(context), attn.to_v(context)
    if text is None:
        query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        return query, key, value
    key, value = attn.to_kv(text).chunk(2, dim=-1)
    return attn.to_q(tokens), key, value


def set_attention_kernel(module: nn.Module, kernel: str) -> None:
    """Let one kernel of torch compute every attention of a denoiser.

    Args:
        module: the denoiser, changed in place.
        kernel: a name of `ATTENTION_KERNELS`.

    Raises:
        InvalidRequest: the module has attention of another kind, as autoencoders have, or none.
    """
    blocks = [part for part in module.modules() if isinstance(part, Attention)]
    if not blocks or not all(map(is_plain_attention, blocks)):
        given = f"attention is {kernel!r} in a network that is no denoiser"
        raise InvalidRequest(given, allowed="sdpa, vanilla, sliced")
    for block in blocks:
        block.set_processor(KernelAttnProcessor(kernel))


def is_plain_attention(block: Any) -> bool:
    """Return whether an attention block has no norms of its own, no residual connection and no output factor."""
    norms = (block.group_norm, block.spatial_norm, block.norm_q, block.norm_k, block.norm_cross)
    return not any(norms) and not block.residual_connection and block.rescale_output_factor == 1
