"""A checkpoint of diffusers as one file in the layout of Stable Diffusion's first authors.

The names are those of diffusers' script `convert_diffusers_to_original_stable_diffusion.py`. stable-diffusion.cpp reads
this layout; its reader of diffusers directories knows published models only.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Renames: TypeAlias = Sequence[tuple[str, str]]
"""Pairs of a part of a name in the original layout, and the part of diffusers' name that it replaces."""

_UNET_ENDS: Renames = [
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
]
_UNET_RESNETS: Renames = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("emb_layers.1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
]
_VAE_ATTENTION: Renames = [
    ("norm.", "group_norm."),
    ("q.", "to_q."),
    ("k.", "to_k."),
    ("v.", "to_v."),
    ("proj_out.", "to_out.0."),
]
_LEVELS = 4


def write_single_file(checkpoint: Path, out: Path) -> None:
    """Write a diffusers checkpoint of Stable Diffusion 1.x to one .safetensors file in half precision."""
    from safetensors.torch import load_file, save_file

    weights: dict[str, Any] = {}
    for name, weight in load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors").items():
        weights[f"model.diffusion_model.{_unet_name(name)}"] = weight
    for name, weight in load_file(checkpoint / "vae" / "diffusion_pytorch_model.safetensors").items():
        is_matrix = "attentions" in name and weight.ndim == 2
        weights[f"first_stage_model.{_vae_name(name)}"] = weight[:, :, None, None] if is_matrix else weight
    for name, weight in load_file(checkpoint / "text_encoder" / "model.safetensors").items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    save_file({name: weight.half().contiguous() for name, weight in weights.items()}, out)


def _unet_name(name: str) -> str:
    for original, ours in _UNET_ENDS:
        if name.startswith(ours):
            name = name.replace(ours, original, 1)
    if "resnets" in name:
        name = _rename(name, _UNET_RESNETS)
    return _rename(name, _unet_layers())


def _unet_layers() -> Iterable[tuple[str, str]]:
    for level in range(_LEVELS):
        has_attention = level < _LEVELS - 1
        for layer in range(2):
            yield f"input_blocks.{3 * level + layer + 1}.0.", f"down_blocks.{level}.resnets.{layer}."
            if has_attention:
                yield f"input_blocks.{3 * level + layer + 1}.1.", f"down_blocks.{level}.attentions.{layer}."
        for layer in range(3):
            yield f"output_blocks.{3 * level + layer}.0.", f"up_blocks.{level}.resnets.{layer}."
            if level > 0:
                yield f"output_blocks.{3 * level + layer}.1.", f"up_blocks.{level}.attentions.{layer}."
        if has_attention:
            yield f"input_blocks.{3 * (level + 1)}.0.op.", f"down_blocks.{level}.downsamplers.0.conv."
            upsampler = 1 if level == 0 else 2
            yield f"output_blocks.{3 * level + 2}.{upsampler}.", f"up_blocks.{level}.upsamplers.0."
    yield "middle_block.1.", "mid_block.attentions.0."
    for layer in range(2):
        yield f"middle_block.{2 * layer}.", f"mid_block.resnets.{layer}."


def _vae_name(name: str) -> str:
    name = _rename(name, _vae_layers())
    return _rename(name, _VAE_ATTENTION) if "attn" in name else name


def _vae_layers() -> Iterable[tuple[str, str]]:
    yield "nin_shortcut", "conv_shortcut"
    yield "norm_out", "conv_norm_out"
    yield "mid.attn_1.", "mid_block.attentions.0."
    for level in range(_LEVELS):
        for layer in range(2):
            yield f"encoder.down.{level}.block.{layer}.", f"encoder.down_blocks.{level}.resnets.{layer}."
        if level < _LEVELS - 1:
            yield f"down.{level}.downsample.", f"down_blocks.{level}.downsamplers.0."
            yield f"up.{_LEVELS - 1 - level}.upsample.", f"up_blocks.{level}.upsamplers.0."
        for layer in range(3):
            yield f"decoder.up.{_LEVELS - 1 - level}.block.{layer}.", f"decoder.up_blocks.{level}.resnets.{layer}."
    for layer in range(2):
        yield f"mid.block_{layer + 1}.", f"mid_block.resnets.{layer}."


def _rename(name: str, renames: Iterable[tuple[str, str]]) -> str:
    for original, ours in renames:
        name = name.replace(ours, original)
    return name
