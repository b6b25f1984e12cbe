"""Export of torch modules as ONNX graphs without weights.

A graph depends on a network's configuration only: the module's weights are dropped before it is traced, its parameters
become inputs of the graph, and these are then linked to tensors in the .safetensors file. Constants are not folded, so
every parameter keeps its name and its bytes on disk.

The exporter is `torch.onnx.export(dynamo=False)`. Its graphs are as fast and as accurate in onnxruntime and OpenVINO as
those with dynamo=True (measured on U-Nets), it is 14 to 30 times as fast, and it does not transpose parameters.
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
    """Write the graph of a UNet2DConditionModel that takes `tokens` text states; drops the module's weights."""
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
    """Write the graph of a CLIPTextModel, or of a CLIPTextModelWithProjection with text_embeds as a second output.

    Args:
        encoder: the module; its weights are dropped.
        graph: file to write.
        weights: the module's .safetensors file.
        tokens: length of a text.
        penultimate: the states are those before the last layer, without the final norm, as in XL.
    """
    inputs = {"input_ids": (torch.zeros(2, tokens, dtype=torch.int64), ROWS)}
    outputs = {"last_hidden_state": ROWS}
    if hasattr(encoder, "text_projection"):
        outputs["text_embeds"] = ROWS
    _export(TextEncoderModule(encoder, list(outputs), penultimate), inputs, outputs, graph, weights)


def export_vae(vae: Any, encoder: Path, decoder: Path, weights: Path) -> None:
    """Write the graphs of an AutoencoderKL's encoder and decoder; drops the module's weights.

    The encoder's outputs are mean and standard deviation of the latents. Latents are not normalised in these graphs.
    """
    config = vae.config
    size = 2 ** (len(config.block_out_channels) - 1)
    sample = torch.zeros(1, config.in_channels, 4 * size, 2 * size)
    latents = torch.zeros(1, config.latent_channels, 4, 2)
    _export(VaeEncoderModule(vae), {"sample": (sample, PICTURE)}, {"mean": PICTURE, "std": PICTURE}, encoder, weights)
    _export(VaeDecoderModule(vae), {"latent_sample": (latents, PICTURE)}, {"sample": PICTURE}, decoder, weights)


def export_decoder(decoder: Any, latents: int, graph: Path, weights: Path) -> None:
    """Write the graph of a decoder of latents with this many channels; drops the module's weights."""
    example = {"latent_sample": (torch.zeros(1, latents, 4, 2), PICTURE)}
    _export(decoder, example, {"sample": PICTURE}, graph, weights)


def export_encoder(trunk: Any, graph: Path, weights: Path) -> None:
    """Write the graph of a feature encoder of 64x64 pictures; drops the module's weights."""
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
        warnings.simplefilter("ignore")  # the exporter's deprecations, and the tracer's warnings about Python branches
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
    """Replace every parameter by a float32 zero that is expanded to the same shape and takes no memory."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = torch.zeros((), dtype=torch.float32).expand(parameter.shape)


def _link_weights(model: onnx.ModelProto, inputs: Sequence[str], weights: Path) -> None:
    """Turn inputs that are parameters into initializers in the weights file, with a cast where they are half floats."""
    layout = read_safetensors_index(weights)
    parameters = [value.name for value in model.graph.input if value.name not in inputs]
    network_inputs = [value for value in model.graph.input if value.name in inputs]
    casts = []
    for name in parameters:
        tensor = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT)
        casts += link_tensor(tensor, _find(name, layout, weights), weights.name)
    nodes = [*casts, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(network_inputs)
    model.graph.node.extend(nodes)


def _find(name: str, layout: Mapping[str, StoredTensor], weights: Path) -> StoredTensor:
    """Return a parameter's tensor; some files have CLIP's prefix `text_model.`, which transformers 5 leaves out."""
    name = name.removeprefix("network.")
    for key in (name, f"text_model.{name}", name.removeprefix("text_model.")):
        if key in layout and layout[key].dtype in STORED:
            return layout[key]
    raise ImportFailed(f"{weights.name} has no weights for {name}", allowed=f"tensors of {', '.join(STORED)}")
