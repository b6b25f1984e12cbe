"""Export of torch modules as ONNX graphs without weights.

A graph depends on a network's configuration only. The module's weights are dropped before the module is traced. Its
parameters become inputs of the graph, and these inputs are then linked to tensors in the .safetensors file. Constants
are not folded, so every parameter keeps its name and its bytes on disk.

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
        role: role of the component that runs the graph.
        file: name of the graph's file.
        module: module that takes the inputs by position; the network is the module or its attribute `network`.
        inputs: example tensor, and names of its dynamic axes by position, of each input by name.
        outputs: names of the dynamic axes by position, of each output by name.
        weights_prefix: prefix of the names of this network's weights, which some checkpoints leave out; may be empty.
    """

    role: str
    file: str
    module: nn.Module
    inputs: Mapping[str, tuple[Tensor, Axes]]
    outputs: Mapping[str, Axes]
    weights_prefix: str = ""


def export_graph(export: GraphExport, graph: Path, weights: Path) -> None:
    """Export a module as an ONNX file whose initializers point into a weights file, and drop the module's weights.

    Args:
        export: graph to export.
        graph: file to write.
        weights: the network's .safetensors file, in the same directory.

    Raises:
        ImportFailed: the weights file lacks a tensor of the network.
    """
    _export(export.module, export.inputs, export.outputs, graph, weights, export.weights_prefix)


def export_decoder(decoder: Any, latents: int, graph: Path, weights: Path) -> None:
    """Write the graph of a decoder of latents with `latents` channels, and drop the module's weights.

    Args:
        decoder: module from latents to pictures.
        latents: number of channels of the latents.
        graph: ONNX file to write.
        weights: the decoder's .safetensors file, in the same directory.
    """
    example = {"latent_sample": (torch.zeros(1, latents, 4, 2), PICTURE)}
    _export(decoder, example, {"sample": PICTURE}, graph, weights)


def export_encoder(trunk: Any, graph: Path, weights: Path) -> None:
    """Write the graph of a feature encoder of 64x64 pictures, and drop the module's weights.

    Args:
        trunk: module from pictures [B, 3, 64, 64] to features.
        graph: ONNX file to write.
        weights: the encoder's .safetensors file, in the same directory.
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
        # The exporter warns that it is deprecated, and the tracer warns about branches in Python.
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
    """Replace every parameter by a float32 zero, expanded to the parameter's shape, which takes no memory."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.data = torch.zeros((), dtype=torch.float32).expand(parameter.shape)


def _link_weights(model: onnx.ModelProto, inputs: Sequence[str], weights: Path, prefix: str) -> None:
    """Replace the inputs of a model that are parameters by initializers that point into the weights file, in place.

    Initializers in float16 or bfloat16 are followed by a cast to float32.

    Args:
        model: the exported model.
        inputs: names of the inputs that are no parameters.
        weights: the .safetensors file.
        prefix: prefix that names in the file may have.
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
    """Return the stored tensor of a parameter by its name, which may have the prefix in the weights file or not.

    Raises:
        ImportFailed: the file has no such tensor in float32, float16 or bfloat16.
    """
    name = name.removeprefix("network.")
    for key in (name, f"{prefix}{name}", name.removeprefix(prefix)):
        if key in layout and layout[key].dtype in STORED:
            return layout[key]
    raise ImportFailed(f"{weights.name} has no weights for {name}", allowed=f"tensors of {', '.join(STORED)}")
