"""Export of torch modules as ONNX graphs without weights.

A graph depends on a network's configuration only. Before the module is traced, its weights in memory are replaced by
zeros that take no memory. The module's parameters become inputs of the graph, and these inputs are then replaced by
initializers that point to tensors in the .safetensors file. Constants are not folded, so every parameter keeps its name
and its bytes on disk.

The exporter is `torch.onnx.export(dynamo=False)`. Its graphs are as fast and as accurate in onnxruntime and OpenVINO as
the graphs of dynamo=True (measured on U-Nets). Unlike dynamo=True, this exporter does not transpose parameters, and it
is 14 to 30 times as fast.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import torch
from torch import Tensor, nn

from stillhouse.backends.graph import link_tensor
from stillhouse.backends.safetensors_index import StoredTensor, read_safetensors_index
from stillhouse.errors import ImportFailed

OPSET = 17
STORED = ("F32", "F16", "BF16")

Axes: TypeAlias = Mapping[int, str]
PICTURE: Axes = {0: "batch", 2: "height", 3: "width"}
ROWS: Axes = {0: "batch"}


@dataclass(frozen=True, slots=True, eq=False)
class GraphExport:
    """A graph that is to be exported from a network.

    Args:
        role: role of the graph's network in the pipeline, such as denoiser.
        file: name of the graph's file.
        module: module that takes the inputs by position; the network is the module or its attribute `network`.
        inputs: for each input, by name: an example tensor, and the names of its dynamic axes by position.
        outputs: for each output, by name: the names of its dynamic axes by position.
        weights_prefix: prefix that the names of this network's weights have in some checkpoints, but not in all; may be
            empty.
    """

    role: str
    file: str
    module: nn.Module
    inputs: Mapping[str, tuple[Tensor, Axes]]
    outputs: Mapping[str, Axes]
    weights_prefix: str = ""


def export_graph(export: GraphExport, graph: Path, weights: Path) -> None:
    """Export a module as an ONNX file whose initializers point into a weights file.

    The module's own weights are replaced by zeros to free memory.

    Args:
        export: graph to export.
        graph: file to write.
        weights: the network's .safetensors file, which must exist already, in the directory of `graph`.

    Raises:
        ImportFailed: the weights file lacks a tensor of the network.
    """
    _export(export.module, export.inputs, export.outputs, graph, weights, export.weights_prefix)


def export_decoder(decoder: Any, latents: int, graph: Path, weights: Path) -> None:
    """Write the graph of a decoder of latents with `latents` channels.

    The module's own weights are replaced by zeros to free memory.

    Args:
        decoder: module from latents to pictures.
        latents: number of channels of the latents.
        graph: ONNX file to write.
        weights: the decoder's .safetensors file, which must exist already, in the directory of `graph`; the graph
            points to its tensors.
    """
    example = {"latent_sample": (torch.zeros(1, latents, 4, 2), PICTURE)}
    _export(decoder, example, {"sample": PICTURE}, graph, weights)


def export_encoder(trunk: Any, graph: Path, weights: Path) -> None:
    """Write the graph of a feature encoder of 64x64 pictures.

    The module's own weights are replaced by zeros to free memory.

    Args:
        trunk: module from pictures [B, 3, 64, 64] to features.
        graph: ONNX file to write.
        weights: the encoder's .safetensors file, which must exist already, in the directory of `graph`; the graph
            points to its tensors.
    """
    pictures = (torch.zeros(2, 3, 64, 64), ROWS)
    _export(trunk, {"pictures": pictures}, {"features": ROWS}, graph, weights)


def _export(
    module: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Axes]],
    outputs: Mapping[str, Axes],
    graph: Path,
    weights: Path,
    prefix: str = "",
) -> None:
    _drop_weights(module)
    stream = io.BytesIO()
    axes = {name: dict(axis) for name, axis in [*((n, a) for n, (_, a) in inputs.items()), *outputs.items()]}
    with warnings.catch_warnings(), torch.inference_mode():
        # Users can do nothing about these warnings: the exporter warns that it is deprecated, and the tracer warns
        # about branches in Python.
        warnings.simplefilter("ignore")
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
            keep_initializers_as_inputs=True,  # otherwise the exporter merges equal parameters
            do_constant_folding=False,
        )
    model = onnx.load_from_string(stream.getvalue())
    _link_weights(model, list(inputs), weights, prefix)
    graph.write_bytes(model.SerializeToString())


def _drop_weights(module: nn.Module) -> None:
    """Replace every parameter of a module, in place, by a float32 zero expanded to its shape, which takes no memory."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = torch.zeros((), dtype=torch.float32).expand(parameter.shape)


def _link_weights(model: onnx.ModelProto, inputs: Sequence[str], weights: Path, prefix: str) -> None:
    """Replace, in place, a model's inputs that are parameters by initializers that point into a .safetensors file.

    Initializers in float16 or bfloat16 are followed by a cast to float32.

    Args:
        inputs: names of the inputs that stay inputs; all others are parameters.
        weights, prefix: the .safetensors file, and the prefix that the parameters' names may have in the file.
    """
    layout = read_safetensors_index(weights)
    parameters = [value.name for value in model.graph.input if value.name not in inputs]
    network_inputs = [value for value in model.graph.input if value.name in inputs]
    casts = []
    for name in parameters:
        tensor = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT)
        casts += link_tensor(tensor, _find(name, layout, weights, prefix), weights.name)
    nodes = [*casts, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(network_inputs)
    model.graph.node.extend(nodes)


def _find(name: str, layout: Mapping[str, StoredTensor], weights: Path, prefix: str) -> StoredTensor:
    """Return where a parameter is stored in a weights file.

    Args:
        name: name of the parameter.
        layout: the file's tensors by name, from `read_safetensors_index`.
        weights: path of the file, for the error message.
        prefix: prefix that may be part of the name in the file only, or of the parameter's name only.

    Raises:
        ImportFailed: the file has no such tensor in float32, float16 or bfloat16.
    """
    name = name.removeprefix("network.")
    for key in (name, f"{prefix}{name}", name.removeprefix(prefix)):
        if key in layout and layout[key].dtype in STORED:
            return layout[key]
    raise ImportFailed(f"{weights.name} has no weights for {name} in an allowed type", allowed=", ".join(STORED))
