"""torch modules to ONNX graphs that hold no weights.

A graph depends on a network's configuration only, never on its weights: the module is hollowed out before it is
traced, its parameters become inputs of the graph, and those are then pointed into the .safetensors file. Nothing is
folded, so every parameter keeps its name and its bytes on disk.

The exporter is `torch.onnx.export(dynamo=False)`: the same speed and exactness in onnxruntime and OpenVINO as with
dynamo=True (measured on U-Nets), 14 to 30 times as quick, and it does not fold or transpose parameters.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import torch
from torch import Tensor, nn

from stillhouse.backends.graph import link_tensor
from stillhouse.backends.safetensors_index import StoredTensor, read_safetensors_index
from stillhouse.backends.torch_modules import TextEncoderModule, UNetModule, VaeDecoderModule, VaeEncoderModule
from stillhouse.errors import ImportFailed

OPSET = 17
STORED = ("F32", "F16", "BF16")

Axes: TypeAlias = Mapping[int, str]
PICTURE: Axes = {0: "batch", 2: "height", 3: "width"}
ROWS: Axes = {0: "batch"}


def export_unet(unet: Any, graph: Path, weights: Path, tokens: int) -> None:
    """Write the graph of a UNet2DConditionModel that reads `tokens` text states. The module is hollow afterwards."""
    config = unet.config
    size = 2 ** (len(config.block_out_channels) - 1)
    inputs = {
        "sample": (torch.zeros(2, config.in_channels, 2 * size, size), PICTURE),
        "timestep": (torch.zeros(2), ROWS),
        "encoder_hidden_states": (torch.zeros(2, tokens, config.cross_attention_dim), ROWS),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["text_embeds"] = (torch.zeros(2, pooled), ROWS)
        inputs["time_ids"] = (torch.zeros(2, 6), ROWS)
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = (torch.zeros(2, config.time_cond_proj_dim), ROWS)
    _export(UNetModule(unet, list(inputs)), inputs, {"out_sample": PICTURE}, graph, weights)


def export_text_encoder(encoder: Any, graph: Path, weights: Path, tokens: int, *, penultimate: bool) -> None:
    """Write the graph of a CLIPTextModel, or of a CLIPTextModelWithProjection with its text_embeds.

    `penultimate` takes the states before the last layer, without the final norm, as XL does.
    """
    inputs = {"input_ids": (torch.zeros(2, tokens, dtype=torch.int64), ROWS)}
    outputs = {"last_hidden_state": ROWS}
    if hasattr(encoder, "text_projection"):
        outputs["text_embeds"] = ROWS
    _export(TextEncoderModule(encoder, list(outputs), penultimate), inputs, outputs, graph, weights)


def export_vae(vae: Any, encoder: Path, decoder: Path, weights: Path) -> None:
    """Write the two graphs of an AutoencoderKL, as the network has them: latents are not scaled in there.

    The encoder gives the mean and the standard deviation of the latents, the decoder takes latents.
    """
    config = vae.config
    size = 2 ** (len(config.block_out_channels) - 1)
    sample = torch.zeros(1, config.in_channels, 4 * size, 2 * size)
    latents = torch.zeros(1, config.latent_channels, 4, 2)
    _export(VaeEncoderModule(vae), {"sample": (sample, PICTURE)}, {"mean": PICTURE, "std": PICTURE}, encoder, weights)
    _export(VaeDecoderModule(vae), {"latent_sample": (latents, PICTURE)}, {"sample": PICTURE}, decoder, weights)


def export_decoder(decoder: Any, latents: int, graph: Path, weights: Path) -> None:
    """Write the graph of a network from latents of so many channels to pictures. The module is hollow afterwards."""
    example = {"latent_sample": (torch.zeros(1, latents, 4, 2), PICTURE)}
    _export(decoder, example, {"sample": PICTURE}, graph, weights)


def export_encoder(trunk: Any, graph: Path, weights: Path) -> None:
    """Write the graph of a network from pictures of 64x64 to features. The module is hollow afterwards."""
    pictures = (torch.zeros(2, 3, 64, 64), ROWS)
    _export(trunk, {"pictures": pictures}, {"features": ROWS}, graph, weights)


def _export(
    module: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Axes]],
    outputs: Mapping[str, Axes],
    graph: Path,
    weights: Path,
) -> None:
    _drop_weights(module)
    stream = io.BytesIO()
    axes = {name: dict(axis) for name, axis in [*((n, a) for n, (_, a) in inputs.items()), *outputs.items()]}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # deprecations of this exporter, and a tracer's remark at every Python branch
        torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            stream,  # type: ignore[arg-type] # this exporter takes streams too
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            export_params=False,
            keep_initializers_as_inputs=True,  # equal parameters are not merged
            do_constant_folding=False,
        )
    model = onnx.load_from_string(stream.getvalue())
    _link_weights(model, list(inputs), weights)
    graph.write_bytes(model.SerializeToString())


def _drop_weights(module: nn.Module) -> None:
    """Replace every parameter by a float32 zero of the same shape that occupies no memory."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = torch.zeros((), dtype=torch.float32).expand(parameter.shape)


def _link_weights(model: onnx.ModelProto, inputs: Sequence[str], weights: Path) -> None:
    """Make every other input of the graph an initializer that lies in the weights file, cast where it is a half."""
    layout = read_safetensors_index(weights)
    parameters = [value.name for value in model.graph.input if value.name not in inputs]
    kept = [value for value in model.graph.input if value.name in inputs]
    casts = []
    for name in parameters:
        tensor = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT)
        casts += link_tensor(tensor, _find(name, layout, weights), weights.name)
    nodes = [*casts, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(kept)
    model.graph.node.extend(nodes)


def _find(name: str, layout: Mapping[str, StoredTensor], weights: Path) -> StoredTensor:
    """transformers 5 leaves CLIP's `text_model.` out of modules' names, and keeps it in some files."""
    name = name.removeprefix("network.")
    for key in (name, f"text_model.{name}", name.removeprefix("text_model.")):
        if key in layout and layout[key].dtype in STORED:
            return layout[key]
    raise ImportFailed(f"{weights.name} has no weights for {name}", allowed=f"tensors of {', '.join(STORED)}")
