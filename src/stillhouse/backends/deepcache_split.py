"""Split of a U-Net's graph for DeepCache (Ma et al., arXiv 2312.00858) into a full graph and a shallow graph.

The U-Net is split in the last up block, before one of its layers. The tensor that enters this layer from the deeper
blocks is named `deep`: the full graph returns it, and the shallow graph takes it as a cached input. The shallow graph
holds that layer, the layers after it, and the part of the first down block where their skip connections begin. Weights
are not copied. The new graphs point to the same weights files as the old graph, and must lie in its directory, since no
runtime follows a pointer out of a graph's own directory.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.backends.deepcache_split_ir import (
    IrGraph,
    deep_ports,
    find_joins,
    with_input,
    with_output,
    write_linked,
)
from stillhouse.backends.graph import load_graph
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.signature import OPENVINO_SUFFIX
from stillhouse.check import check_integer
from stillhouse.errors import PipelineError

DEEP_TENSOR = "deep"
"""Name of the tensor at the split: an output of the full graph, an input of the shallow one."""

# The two patterns find the U-Net block of a node in the node's name, because torch.onnx.export writes the module into
# the name, for example /network/up_blocks.3/Concat.
_JOIN = re.compile(r".*/up_blocks\.(\d+)/[^/]+")
_BELOW = re.compile(r".*/(?:mid_block|up_blocks\.(\d+))/.*")
_HEAVY = {"Conv", "Gemm", "MatMul"}
_HEAVY_IR = {"Convolution", "MatMul"}
_NO_JOIN = "it has no node that concatenates a skip connection in a scope up_blocks.N"
_SEVERAL_TENSORS = "of its last up block depends on the deeper blocks by more than one tensor"
_GRAPH = 5  # AttributeProto.GRAPH as a number, so that onnx is imported only when a graph is split
_ALLOWED = "a U-Net exported by `stillhouse import`, whose node names show its blocks"


@dataclass(frozen=True, slots=True)
class DeepCacheSplit:
    """The result of `split_denoiser`: the two graphs into which a U-Net's graph was split.

    Args:
        full, shallow: files of the two graphs.
        tensor: name that the tensor at the split has in the original graph.
        layers: number of layers of the last up block; the graph can be split before each of them.
        full_nodes, shallow_nodes: numbers of nodes of the two graphs.
    """

    full: Path
    shallow: Path
    tensor: str
    layers: int
    full_nodes: int
    shallow_nodes: int


def split_denoiser(graph: Path, layer: int = 0) -> DeepCacheSplit:
    """Write `<stem>.full-<layer>` and `<stem>.shallow-<layer>` beside a U-Net's graph, of the same format.

    `full` has one more output, `deep` [rows, c, h, w]: the tensor that enters the layer from the deeper blocks.
    `shallow` has the input `deep`, those inputs of the graph that it needs, and all outputs of the graph.

    Args:
        graph: an ONNX file, or an OpenVINO graph (.xml). Its weights, inside or beside the file, are not read.
        layer: layer of the last up block before which the graph is split. 0, the first layer, leaves most nodes in the
            shallow graph; -1, the last layer, is the split of the paper.

    Raises:
        InvalidRequest: the block has no such layer.
        PipelineError: the file is missing or no graph, or it cannot be split: its node names do not show its blocks, or
            more than one tensor enters from the deeper blocks.
        RuntimeMissing: onnx is not installed.

    >>> split = split_denoiser(Path("my-model/unet/model.onnx"))  # doctest: +SKIP
    >>> split.shallow.name, split.shallow_nodes < split.full_nodes  # doctest: +SKIP
    ('model.shallow-0.onnx', True)
    """
    if graph.suffix == OPENVINO_SUFFIX:
        return _split_ir(graph, layer)
    full = load_graph(graph)
    joins, last = _skip_concats(full, graph)
    check_integer("layer", layer, -len(joins), len(joins) - 1)
    layer %= len(joins)
    tensor = _deep_input(full, joins[layer], last, graph)
    value = _deep_value_info(full, tensor, graph)
    _rename_tensor(full.graph.node, tensor)
    shallow = type(full)()
    shallow.CopyFrom(full)
    full.graph.output.append(value)
    shallow.graph.input.append(value)
    _prune(shallow.graph)
    if any(node.op_type in _HEAVY and _is_below(node, last) for node in shallow.graph.node):
        raise _cannot_split(graph, f"layer {layer} {_SEVERAL_TENSORS}")
    if any(attribute.type == _GRAPH for node in shallow.graph.node for attribute in node.attribute):
        raise _cannot_split(graph, "its upper layers contain inner graphs (If or Loop)")
    split = DeepCacheSplit(
        graph.with_name(f"{graph.stem}.full-{layer}.onnx"),
        graph.with_name(f"{graph.stem}.shallow-{layer}.onnx"),
        tensor,
        len(joins),
        len(full.graph.node),
        len(shallow.graph.node),
    )
    _write(full, split.full)
    _write(shallow, split.shallow)
    return split


def _split_ir(graph: Path, layer: int) -> DeepCacheSplit:
    """Do as `split_denoiser` with an OpenVINO graph."""
    whole = IrGraph.read(graph)
    joins = find_joins(whole, _JOIN)
    if not joins:
        raise _cannot_split(graph, _NO_JOIN)
    last = max(joins)
    check_integer("layer", layer, -len(joins[last]), len(joins[last]) - 1)
    layer %= len(joins[last])
    join = joins[last][layer]
    below = deep_ports(whole, join, lambda name: _lies_below(name, last))
    if len(whole.inputs(join)) != 2 or len(below) != 1:
        name = whole.layers[join].attrib["name"]
        raise _cannot_split(graph, f"{name} does not concatenate one deeper tensor and one skip connection")
    full, shallow = (make(whole, below[0], DEEP_TENSOR) for make in (with_output, with_input))
    heavy = [found.attrib["name"] for found in shallow.layers.values() if found.attrib["type"] in _HEAVY_IR]
    if any(_lies_below(name, last) for name in heavy):
        raise _cannot_split(graph, f"layer {layer} {_SEVERAL_TENSORS}")
    paths = [graph.with_name(f"{graph.stem}.{depth}-{layer}{OPENVINO_SUFFIX}") for depth in ("full", "shallow")]
    for part, path in zip((full, shallow), paths, strict=True):
        write_linked(part, graph.with_suffix(".bin"), path)
    tensor = whole.layers[below[0][0]].attrib["name"]
    return DeepCacheSplit(paths[0], paths[1], tensor, len(joins[last]), len(full.layers), len(shallow.layers))


def _skip_concats(model: Any, graph: Path) -> tuple[list[Any], int]:
    """Return the Concat nodes of the last up block, each of which joins a skip connection, and the block's number.

    Args:
        model: the U-Net's ONNX graph as a ModelProto.
        graph: path of the graph's file, for the error message.

    Raises:
        PipelineError: the names of the nodes do not show the up blocks.
    """
    joins: dict[int, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type == "Concat" and (match := _JOIN.fullmatch(node.name)):
            joins.setdefault(int(match[1]), []).append(node)
    if not joins:
        raise _cannot_split(graph, _NO_JOIN)
    last = max(joins)
    return joins[last], last


def _deep_input(model: Any, join: Any, last: int, graph: Path) -> str:
    """Return the name of the input of a Concat node that comes from the deeper blocks, not from the skip connection.

    Args:
        model: the U-Net's ONNX graph as a ModelProto.
        join: the Concat node.
        last: number of the up block that holds the node.
        graph: path of the graph's file, for the error message.

    Raises:
        PipelineError: the node does not have exactly one input from the deeper blocks and one other input, or the graph
            is already split.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    if DEEP_TENSOR in makers:
        raise _cannot_split(graph, "it is split already")
    below = [name for name in join.input if any(_is_below(node, last) for node in _ancestors([name], makers))]
    if len(join.input) != 2 or len(below) != 1:
        raise _cannot_split(graph, f"{join.name} does not concatenate one deeper tensor and one skip connection")
    return str(below[0])


def _is_below(node: Any, last: int) -> bool:
    """Return whether a node lies in the middle block or in an up block before block `last`."""
    return _lies_below(node.name, last)


def _lies_below(name: str, last: int) -> bool:
    match = _BELOW.fullmatch(name)
    return match is not None and (match[1] is None or int(match[1]) < last)


def _ancestors(names: Iterable[str], makers: dict[str, Any]) -> list[Any]:
    """Return the nodes that tensors depend on, directly or through other nodes, in any order.

    Args:
        names: names of the tensors.
        makers: the node that makes each tensor, by name of the tensor.
    """
    ancestors: list[Any] = []
    visited: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in visited and name in makers:
            ancestors.append(makers[name])
            queue += makers[name].input
            visited.update(makers[name].output)
        visited.add(name)
    return ancestors


def _deep_value_info(model: Any, tensor: str, graph: Path) -> Any:
    """Return the ValueInfoProto, with type and shape, of the tensor at the split, under its new name `deep`.

    The tensor's batch, height and width axes are named as in the graph's first input. Raise PipelineError if the shape
    of the tensor cannot be inferred.

    Args:
        model: the U-Net's ONNX graph as a ModelProto.
        tensor: name of the tensor in this graph.
        graph: path of the graph's file, for the error message.
    """
    onnx = require("onnx")
    with translate_errors("onnx", graph, "read"):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    kind = next((value.type.tensor_type for value in inferred.graph.value_info if value.name == tensor), None)
    picture = [axis.dim_value or axis.dim_param or None for axis in model.graph.input[0].type.tensor_type.shape.dim]
    if kind is None or len(picture) != 4 or len(kind.shape.dim) != 4 or not kind.shape.dim[1].dim_value:
        raise _cannot_split(graph, f"the shape of {tensor} is unknown")
    axes = [axis.dim_value or name for axis, name in zip(kind.shape.dim, picture, strict=True)]
    return onnx.helper.make_tensor_value_info(DEEP_TENSOR, kind.elem_type, axes)


def _rename_tensor(nodes: Iterable[Any], tensor: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == tensor:
                    names[place] = DEEP_TENSOR


def _prune(graph: Any) -> None:
    """Remove, in place, the nodes, initializers and inputs of a graph on which none of its outputs depends.

    The tensor `deep` counts as an input of the graph, so the nodes that compute `deep` are removed.
    """
    makers = {output: node for node in graph.node for output in node.output if DEEP_TENSOR not in node.output}
    needed = _ancestors([value.name for value in graph.output], makers)
    made = {output for node in needed for output in node.output}
    read = {name for node in needed for name in node.input}
    for field, items in (
        (graph.node, [node for node in graph.node if made.intersection(node.output)]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read]),
        (graph.input, [value for value in graph.input if value.name in read]),
        (graph.value_info, [value for value in graph.value_info if value.name in made]),
    ):
        del field[:]
        field.extend(items)


def _write(model: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.SerializeToString())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_split(graph: Path, reason: str) -> PipelineError:
    return PipelineError(f"{graph} cannot be split for step caching: {reason}", allowed=_ALLOWED)
