"""A diffusers checkpoint as the directory that OpenVINO GenAI reads.

The graphs are those that OpenVINO's own converter makes of the torch modules, with weights in half precision, as
optimum-intel writes them.
"""

import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.race.subject import CHANNELS, TOKENS, WIDTH

_GRAPH = "openvino_model.xml"


def write_genai_directory(checkpoint: Path, out: Path) -> None:
    """Convert text encoder, U-Net, decoder, tokenizer and scheduler of a diffusers checkpoint."""
    write_tokenizer(checkpoint, out)
    scheduler = shutil.copytree(checkpoint / "scheduler", out / "scheduler", dirs_exist_ok=True)
    config = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    (scheduler / "scheduler_config.json").write_text(json.dumps({**config, "clip_sample": False}))
    shutil.copy(checkpoint / "model_index.json", out / "model_index.json")
    for write in (_write_text_encoder, write_decoder, _write_unet):
        write(checkpoint, out)
        gc.collect()


def compress_directory(source: Path, out: Path) -> None:
    """Copy a directory of `write_genai_directory` with int8 weights, as optimum-intel's `--weight-format int8` does."""
    import nncf
    import openvino

    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("openvino_model.*"))
    for folder in ("text_encoder", "vae_decoder", "unet"):
        model = openvino.Core().read_model(source / folder / _GRAPH)
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(model, out / folder / _GRAPH, compress_to_fp16=True)
        del model
        gc.collect()


def write_tokenizer(checkpoint: Path, out: Path, name: str = "tokenizer") -> None:
    """Convert the CLIP tokenizer in the folder `name` of a checkpoint."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import CLIPTokenizer

    folder = shutil.copytree(checkpoint / name, out / name, dirs_exist_ok=True)
    converted = convert_tokenizer(CLIPTokenizer.from_pretrained(checkpoint / name), with_detokenizer=False)
    openvino.save_model(converted[0] if isinstance(converted, tuple) else converted, folder / "openvino_tokenizer.xml")


def _write_text_encoder(checkpoint: Path, out: Path) -> None:
    import torch
    from transformers import CLIPTextModel

    class TextEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()

        def forward(self, input_ids: torch.Tensor) -> Any:
            output = self.model(input_ids=input_ids, return_dict=True)
            return output.last_hidden_state, output.pooler_output

    example = {"input_ids": torch.ones(1, TOKENS, dtype=torch.int64)}
    inputs = {"input_ids": ([-1, TOKENS], "i64")}
    write_graph(TextEncoder(), example, inputs, ("last_hidden_state", "pooler_output"), out / "text_encoder")
    shutil.copy(checkpoint / "text_encoder" / "config.json", out / "text_encoder" / "config.json")


def write_decoder(checkpoint: Path, out: Path) -> None:
    """Convert the decoder of a checkpoint's AutoencoderKL."""
    import torch
    from diffusers import AutoencoderKL

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).eval()

        def forward(self, latent_sample: torch.Tensor) -> Any:
            return self.model.decode(latent_sample, return_dict=False)[0]

    example = {"latent_sample": torch.zeros(1, CHANNELS, 16, 16)}
    inputs = {"latent_sample": ([-1, CHANNELS, -1, -1], "f32")}
    write_graph(Decoder(), example, inputs, ("sample",), out / "vae_decoder")
    shutil.copy(checkpoint / "vae" / "config.json", out / "vae_decoder" / "config.json")


def _write_unet(checkpoint: Path, out: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    class UNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32).eval()

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    example = {
        "sample": torch.zeros(2, CHANNELS, 64, 64),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.zeros(2, TOKENS, WIDTH),
    }
    inputs = {
        "sample": ([-1, CHANNELS, -1, -1], "f32"),
        "timestep": ([1], "i64"),
        "encoder_hidden_states": ([-1, -1, WIDTH], "f32"),
    }
    write_graph(UNet(), example, inputs, ("out_sample",), out / "unet")
    shutil.copy(checkpoint / "unet" / "config.json", out / "unet" / "config.json")


def write_graph(
    module: Any, example: Any, inputs: Mapping[str, tuple[list[int], str]], outputs: Sequence[str], folder: Path
) -> None:
    """Convert a torch module with OpenVINO and write the graph.

    Args:
        module: the module.
        example: inputs with which it is traced.
        inputs: shape (-1: any length) and type of each input by name.
        outputs: names of the outputs.
        folder: folder of the graph.
    """
    import openvino
    import torch

    declared = [
        (name, openvino.PartialShape(shape), getattr(openvino.Type, kind)) for name, (shape, kind) in inputs.items()
    ]
    with torch.no_grad():
        model = openvino.convert_model(module, example_input=example, input=declared)
    for output, name in zip(model.outputs, outputs, strict=True):
        output.get_tensor().set_names({name})
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, folder / _GRAPH, compress_to_fp16=True)
