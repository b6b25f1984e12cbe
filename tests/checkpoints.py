"""Tiny random checkpoints of every architecture that is known, written by diffusers itself."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.conftest import PROMPT, SIZE

KINDS = ("sd1", "sd2", "inpaint", "xl")


@dataclass(frozen=True, slots=True)
class NetworkSizes:
    """Sizes of a checkpoint's networks.

    Args:
        unet: channels of the U-Net's blocks.
        vae: channels of the autoencoder's blocks.
        text_layers: layers of each text encoder.
        picture: width and height of the pictures, in pixels.
    """

    unet: tuple[int, ...] = (32, 64)
    vae: tuple[int, ...] = (8, 16, 16)
    text_layers: int = 2
    picture: int = SIZE

    @property
    def latents(self) -> int:
        """Width and height of the latents."""
        return self.picture >> (len(self.vae) - 1)


SMALLEST = NetworkSizes(unet=(16,), vae=(4, 8), text_layers=1, picture=16)
"""One block in the U-Net: a call takes a third of the time, mostly because it makes fewer calls of torch."""


def write_checkpoint(kind: str, directory: Path, sizes: NetworkSizes = NetworkSizes(), *, half: bool = False) -> None:
    """Write one of `KINDS`; `half` stores weights in float16."""
    torch.manual_seed(KINDS.index(kind))
    tokenizer = directory.with_name(f"{directory.name}-tokenizer")
    write_tokenizer(tokenizer, padding="!" if kind in ("sd2", "inpaint") else "<|endoftext|>")
    parts: dict[str, Any] = {
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(tokenizer),
        "text_encoder": transformers.CLIPTextModel(
            text_config(gelu="gelu" if kind != "sd1" else "quick_gelu", layers=sizes.text_layers)
        ),
        "unet": unet(kind, sizes),
        "vae": vae(sizes),
        "scheduler": scheduler(kind),
    }
    if kind == "xl":
        write_tokenizer(tokenizer, padding="!")
        parts["tokenizer_2"] = transformers.CLIPTokenizer.from_pretrained(tokenizer)
        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(
            text_config(gelu="gelu", projection=16, layers=sizes.text_layers)
        )
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        shape = diffusers.StableDiffusionInpaintPipeline if kind == "inpaint" else diffusers.StableDiffusionPipeline
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = shape(**parts)
    give_contrast(pipeline, sizes.picture)
    if half:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(directory)


def unet(kind: str, sizes: NetworkSizes = NetworkSizes(), **extra: Any) -> diffusers.UNet2DConditionModel:
    """Return a U-Net whose blocks have cross-attention at one resolution; one block alone has it in the middle only."""
    blocks = len(sizes.unet)
    if kind == "xl":
        extra |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
            "transformer_layers_per_block": (1, 2)[:blocks],
        }
    cross, plain = "CrossAttn", ""
    attention = (plain,) if blocks == 1 else (plain, cross) if kind == "xl" else (cross, plain)
    network = diffusers.UNet2DConditionModel(
        sample_size=sizes.latents,
        in_channels=9 if kind == "inpaint" else 4,
        block_out_channels=sizes.unet,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=64 if kind == "xl" else 32,
        down_block_types=tuple(f"{name}DownBlock2D" for name in attention),
        up_block_types=tuple(f"{name}UpBlock2D" for name in reversed(attention)),
        use_linear_projection=kind != "sd1",
        **extra,
    )
    for name, parameter in network.named_parameters():
        if "attn2.to_v" in name or "conv_out" in name:  # a fresh network hardly listens to the text
            parameter.data *= 3
    return network


def vae(sizes: NetworkSizes = NetworkSizes()) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=sizes.vae,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=sizes.picture,
    )


def text_config(gelu: str, projection: int = 32, layers: int = 2) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=projection,
        hidden_act=gelu,
        bos_token_id=vocabulary()["<|startoftext|>"],
        eos_token_id=vocabulary()["<|endoftext|>"],
        pad_token_id=vocabulary()["<|endoftext|>"],
        initializer_factor=2.0,
    )


def scheduler(kind: str) -> diffusers.DDIMScheduler:
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    return diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        prediction_type=prediction,
        timestep_spacing="trailing" if kind == "sd2" else "leading",
        rescale_betas_zero_snr=kind == "sd2",
    )


def give_contrast(pipeline: Any, size: int) -> None:
    """Scale the decoder's last layer until pictures fill their range: on grey ones every comparison passes."""
    fields: dict[str, Any] = {"height": size, "width": size, "num_inference_steps": 8, "output_type": "latent"}
    if pipeline.unet.config.in_channels == 9:
        picture = torch.rand(1, 3, size, size)
        fields |= {"image": picture, "mask_image": torch.ones(1, 1, size, size)}
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        latents = pipeline(PROMPT, **fields).images
        signal = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        last = pipeline.vae.decoder.conv_out
        last.weight.data *= 0.4 / signal.std()
        last.bias.data.zero_()
        signal = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        last.bias.data -= signal.mean(dim=(0, 2, 3))


def write_tokenizer(directory: Path, padding: str = "<|endoftext|>") -> None:
    """A CLIP tokenizer of single bytes and a few words, in the files of old checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    merges = [*MERGES]
    (directory / "vocab.json").write_text(json.dumps(vocabulary()))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": padding,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


MERGES = ("r e", "re d</w>", "c i", "ci r", "cir c", "l e</w>", "circ le</w>", "b l", "bl u", "blu e</w>")


def vocabulary() -> dict[str, int]:
    """GPT-2's printable characters for all bytes, each alone and at a word's end, then the merged ones."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    words = [merge.replace(" ", "") for merge in MERGES]
    entries = [*letters, *(letter + "</w>" for letter in letters), *words, "<|startoftext|>", "<|endoftext|>"]
    return {entry: place for place, entry in enumerate(entries)}
