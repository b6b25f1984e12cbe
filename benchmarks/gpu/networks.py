"""Stable Diffusion 1.5's and XL's networks with random weights, made on the GPU in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

_CROSS, _DOWN, _UP, _PLAIN_UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
TOKENS = 77
_CLIP_L, _CLIP_G = (768, 12, 64), (1280, 32, 64)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model.

    Args:
        unet: arguments of diffusers' UNet2DConditionModel.
        side: of the latents.
        texts: width, layers and head width of each text encoder.
    """

    unet: Mapping[str, Any]
    side: int
    texts: tuple[tuple[int, int, int], ...]


MODEL_SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        "SD 1.5": ModelShape(
            {
                "sample_size": 64,
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
                "block_out_channels": (320, 640, 1280, 1280),
                "down_block_types": (_CROSS, _CROSS, _CROSS, _DOWN),
            },
            64,
            (_CLIP_L,),
        ),
        "SDXL": ModelShape(
            {
                "sample_size": 128,
                "cross_attention_dim": 2048,
                "attention_head_dim": (5, 10, 20),
                "block_out_channels": (320, 640, 1280),
                "down_block_types": (_DOWN, _CROSS, _CROSS),
                "up_block_types": (_UP, _UP, _PLAIN_UP),
                "transformer_layers_per_block": (1, 2, 10),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            128,
            (_CLIP_L, _CLIP_G),
        ),
        "small": ModelShape(
            {
                "sample_size": 8,
                "cross_attention_dim": 32,
                "attention_head_dim": 2,
                "block_out_channels": (32, 64),
                "down_block_types": (_CROSS, _DOWN),
                "up_block_types": (_PLAIN_UP, _UP),
            },
            8,
            ((32, 2, 32),),
        ),
    }
)


def unet(shape: ModelShape, device: str, dtype: torch.dtype) -> Any:
    """Return the U-Net."""
    return _build(lambda: UNet2DConditionModel(**shape.unet), device, dtype)


def decoder(shape: ModelShape, device: str, dtype: torch.dtype) -> Any:
    """Return the autoencoder, whose decoder is used."""
    widths = (128, 256, 512, 512) if shape.side > 8 else (32, 32)
    return _build(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=2,
        ),
        device,
        dtype,
    )


def text_encoder(text: tuple[int, int, int], device: str, dtype: torch.dtype) -> Any:
    """Return a CLIP text encoder of the sizes of `ModelShape.texts`."""
    width, layers, head = text
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // head,
    )
    return _build(lambda: CLIPTextModel(config), device, dtype)


def inputs(shape: ModelShape, rows: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Return latents, timesteps, text, and XL's added conditions (None otherwise), of so many rows."""
    text = torch.randn(rows, TOKENS, shape.unet["cross_attention_dim"], device=device, dtype=dtype)
    added = None
    if "addition_embed_type" in shape.unet:
        ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * rows, device=device)
        added = {"text_embeds": torch.randn(rows, 1280, device=device, dtype=dtype), "time_ids": ids}
    latents = torch.randn(rows, 4, shape.side, shape.side, device=device, dtype=dtype)
    return latents, torch.full((rows,), 500.0, device=device), text, added


def _build(build: Any, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = build()
    finally:
        torch.set_default_dtype(before)
    return network.eval().requires_grad_(False).to(dtype)
