"""Stable Diffusion XL's sizes with random weights: a checkpoint, and the directory that OpenVINO GenAI reads of it."""

import gc
import shutil
from pathlib import Path
from typing import Any

from benchmarks.race.genai_directory import write_decoder, write_graph, write_tokenizer
from benchmarks.race.subject import CHANNELS, TOKENS
from benchmarks.sd15 import make_autoencoder

WIDTHS = (768, 1280)
"""Widths of the states of the two text encoders."""
POOLED, TIME_IDS = 1280, 6
_LAYERS, _HEADS = (12, 32), (12, 20)


def write_checkpoint(folder: Path) -> None:
    """Write a checkpoint of 2.6 billion parameters in half precision, as diffusers saves it."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from stillhouse.shapes.train.tokenizer import build_tokenizer

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    unet = UNet2DConditionModel(
        sample_size=128,
        cross_attention_dim=sum(WIDTHS),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=POOLED + TIME_IDS * 256,
    )
    vae = make_autoencoder(sample_size=1024, scaling_factor=0.13025)
    texts = [
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
        for width, layers, heads in zip(WIDTHS, _LAYERS, _HEADS, strict=True)
    ]
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(texts[0]),
        text_encoder_2=CLIPTextModelWithProjection(texts[1]),
        tokenizer=build_tokenizer(length=TOKENS),
        tokenizer_2=build_tokenizer(length=TOKENS),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, max_shard_size="100GB")


def write_genai_directory(checkpoint: Path, out: Path) -> None:
    """Convert text encoders, U-Net, decoder, tokenizers and scheduler of the checkpoint."""
    for name in ("tokenizer", "tokenizer_2"):
        write_tokenizer(checkpoint, out, name)
    shutil.copytree(checkpoint / "scheduler", out / "scheduler", dirs_exist_ok=True)
    shutil.copy(checkpoint / "model_index.json", out / "model_index.json")
    for write in (_write_text_encoders, write_decoder, _write_unet):
        write(checkpoint, out)
        gc.collect()


def _write_text_encoders(checkpoint: Path, out: Path) -> None:
    """Convert both text encoders with the states of all layers as outputs, the last but one of which is read."""
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    class TextEncoder(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, input_ids: torch.Tensor) -> Any:
            output = self.model(input_ids=input_ids, output_hidden_states=True, return_dict=True)
            return *(output[name] for name in self.model.named_outputs), *output.hidden_states

    outputs = {
        "text_encoder": (CLIPTextModel, ("last_hidden_state", "pooler_output")),
        "text_encoder_2": (CLIPTextModelWithProjection, ("text_embeds", "last_hidden_state")),
    }
    for name, (kind, names) in outputs.items():
        model = kind.from_pretrained(checkpoint / name, dtype=torch.float32)
        model.named_outputs = names
        states = [f"hidden_states.{layer}" for layer in range(model.config.num_hidden_layers + 1)]
        example = {"input_ids": torch.ones(1, TOKENS, dtype=torch.int64)}
        write_graph(TextEncoder(model), example, {"input_ids": ([-1, TOKENS], "i64")}, (*names, *states), out / name)
        shutil.copy(checkpoint / name / "config.json", out / name / "config.json")


def _write_unet(checkpoint: Path, out: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    class UNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32).eval()

        def forward(
            self,
            sample: torch.Tensor,
            timestep: torch.Tensor,
            encoder_hidden_states: torch.Tensor,
            text_embeds: torch.Tensor,
            time_ids: torch.Tensor,
        ) -> Any:
            added = {"text_embeds": text_embeds, "time_ids": time_ids}
            states = encoder_hidden_states
            return self.model(sample, timestep, states, added_cond_kwargs=added, return_dict=False)[0]

    width = sum(WIDTHS)
    example = {
        "sample": torch.zeros(2, CHANNELS, 16, 16),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.zeros(2, TOKENS, width),
        "text_embeds": torch.zeros(2, POOLED),
        "time_ids": torch.zeros(2, TIME_IDS),
    }
    inputs = {
        "sample": ([-1, CHANNELS, -1, -1], "f32"),
        "timestep": ([1], "i64"),
        "encoder_hidden_states": ([-1, -1, width], "f32"),
        "text_embeds": ([-1, POOLED], "f32"),
        "time_ids": ([-1, TIME_IDS], "f32"),
    }
    write_graph(UNet(), example, inputs, ("out_sample",), out / "unet")
    shutil.copy(checkpoint / "unet" / "config.json", out / "unet" / "config.json")
