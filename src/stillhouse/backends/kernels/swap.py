"""Replacement of modules in a loaded diffusers network by fused kernels, and back.

A module keeps its weights and their names, so checkpoints, adapters and `state_dict` work unchanged. Its class changes
to one whose `forward` calls the kernels. Attention processors and SiLU modules are replaced. `undo` restores
everything.

    GEGLU                   the projection, then one pass
    ResnetBlock2D           GroupNorm and SiLU in one pass, twice
    GroupNorm elsewhere     one pass; for the network's last norm with the SiLU after it
    BasicTransformerBlock   each LayerNorm with the sum before it
    Transformer2DModel      its pictures stay channels last
    Attention               the same attention kernel, without diffusers' division by 1
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from stillhouse.backends.kernels.geglu import geglu
from stillhouse.backends.kernels.group_norm import group_norm
from stillhouse.backends.kernels.layer_norm import add_layer_norm, layer_norm
from stillhouse.backends.kernels.silu import silu
from stillhouse.backends.torch_attention import KernelAttnProcessor, is_plain_attention

_PLAIN = (AttnProcessor2_0, FusedAttnProcessor2_0)
"""Attention processors of diffusers that let torch choose the attention kernel; only these are replaced."""


class FusedGroupNorm(nn.GroupNorm):
    """A GroupNorm whose `forward` calls the fused kernel."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the GroupNorm of pictures [B, C, h, w], channels last."""
        out: Tensor = group_norm(input, self.weight, self.bias, self.num_groups, self.eps, False)
        return out


class FusedGroupNormSiLU(nn.GroupNorm):
    """A GroupNorm whose `forward` computes the norm and the SiLU that follows it by one fused kernel."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the SiLU of the GroupNorm of pictures [B, C, h, w], channels last."""
        out: Tensor = group_norm(input, self.weight, self.bias, self.num_groups, self.eps, True)
        return out


class SiLULinear(nn.Linear):
    """A linear layer that first applies SiLU. The separate SiLU module before the layer becomes the identity."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the projection of the input's SiLU."""
        return super().forward(silu(input))


class FusedGEGLU(GEGLU):  # type: ignore[misc]
    """diffusers' GEGLU, whose gate is computed by a fused kernel after the projection."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the gated projection [..., D] of hidden states [..., d]. Further arguments are ignored."""
        out: Tensor = geglu(self.proj(hidden_states))
        return out


class FusedTransformerBlock(BasicTransformerBlock):  # type: ignore[misc]
    """diffusers' transformer block, where a fused kernel computes each LayerNorm with the residual sum before it."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return tokens [B, N, D] after attention and feed-forward; named arguments as in diffusers, others ignored."""
        first, second, third = self.norm1, self.norm2, self.norm3
        states = layer_norm(hidden_states, first.weight, first.bias, first.eps)
        own = encoder_hidden_states if self.only_cross_attention else None
        out = self.attn1(states, encoder_hidden_states=own, attention_mask=attention_mask)
        states, hidden = add_layer_norm(out, hidden_states, second.weight, second.bias, second.eps)
        out = self.attn2(states, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
        states, hidden = add_layer_norm(out, hidden, third.weight, third.bias, third.eps)
        added: Tensor = self.ff(states) + hidden
        return added


class FusedTransformer(Transformer2DModel):  # type: ignore[misc]
    """diffusers' Transformer2DModel, whose output tokens become a channels-last picture without a copy.

    diffusers itself copies the tokens to NCHW, and each following norm would convert them back.
    """

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        tokens = self.proj_out(hidden_states) if self.use_linear_projection else hidden_states
        picture = tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        out: Tensor = (picture if self.use_linear_projection else self.proj_out(picture)) + residual
        return out


@dataclass(frozen=True, slots=True)
class ModuleSwap:
    """The changes that `swap_modules` made in a network, which `undo` takes back."""

    _changes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of modules whose class was changed."""
        return sum(name == "__class__" for _, name, _ in self._changes)

    def undo(self) -> None:
        """Restore every module of the network. A second call changes nothing."""
        while self._changes:
            module, name, value = self._changes.pop()
            setattr(module, name, value)

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        self._changes.append((module, name, getattr(module, name)))
        setattr(module, name, value)


def swap_modules(network: nn.Module) -> ModuleSwap:
    """Replace, in place, all modules of a network that the fused kernels can compute; return the changes.

    The network then cannot compute gradients. The network should be channels last, since each GroupNorm copies a
    picture that is in another memory format.

    >>> swapped = swap_modules(unet)  # doctest: +SKIP
    >>> swapped.undo()  # doctest: +SKIP
    """
    swapped = ModuleSwap()
    for module in network.modules():
        if type(module) is GEGLU:
            swapped._set(module, "__class__", FusedGEGLU)
        elif type(module) is ResnetBlock2D and _is_plain_resnet(module):
            _swap_block(swapped, module)
        elif type(module) is BasicTransformerBlock and _is_standard_block(module):
            swapped._set(module, "__class__", FusedTransformerBlock)
        elif type(module) is Transformer2DModel and type(module.norm) is nn.GroupNorm:
            swapped._set(module, "__class__", FusedTransformer)
            swapped._set(module.norm, "__class__", FusedGroupNorm)
        elif type(module) is Attention and is_plain_attention(module) and type(module.processor) in _PLAIN:
            swapped._set(module, "processor", KernelAttnProcessor("sdpa", masked_processor=cast(Any, module.processor)))
    for owner in _final_norm_owners(network):
        if type(owner.conv_norm_out) is nn.GroupNorm and isinstance(owner.conv_act, nn.SiLU):
            swapped._set(owner.conv_norm_out, "__class__", FusedGroupNormSiLU)
            swapped._set(owner, "conv_act", nn.Identity())
    return swapped


def _swap_block(swapped: ModuleSwap, block: Any) -> None:
    swapped._set(block.norm1, "__class__", FusedGroupNormSiLU)
    swapped._set(block.norm2, "__class__", FusedGroupNormSiLU)
    if block.time_emb_proj is not None and not block.skip_time_act:
        swapped._set(block.time_emb_proj, "__class__", SiLULinear)
    swapped._set(block, "nonlinearity", nn.Identity())


def _is_plain_resnet(block: Any) -> bool:
    """Return whether SiLU directly follows both GroupNorms of a residual block, as the fused kernel needs."""
    norms = (type(block.norm1), type(block.norm2)) == (nn.GroupNorm, nn.GroupNorm)
    projection = block.time_emb_proj is None or type(block.time_emb_proj) is nn.Linear
    return norms and projection and isinstance(block.nonlinearity, nn.SiLU) and block.time_embedding_norm == "default"


def _is_standard_block(block: Any) -> bool:
    """Return whether a transformer block has only the parts that Stable Diffusion's blocks have."""
    norms = all(
        isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in (block.norm1, block.norm2, block.norm3)
    )
    is_standard = block.norm_type == "layer_norm" and block.pos_embed is None and block._chunk_size is None
    return norms and is_standard and block.attn2 is not None and getattr(block, "fuser", None) is None


def _final_norm_owners(network: nn.Module) -> Iterator[Any]:
    for module in network.modules():
        if isinstance(module, UNet2DConditionModel):
            yield module
        elif isinstance(module, AutoencoderKL):
            yield from (half for half in (module.encoder, module.decoder) if half is not None)
