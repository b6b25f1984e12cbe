"""A U-Net's graph in two depths, for step caching in the manner of DeepCache (Ma et al., arXiv 2312.00858).

The cut lies in the last up block, before one of its layers: what comes up from below there is `deep`, and the rest of
the network needs that layer, those after it, and of the first down block what is handed across to them. Weights are
not copied: the new graphs point where the old one does, and so have to lie beside it, since no runtime follows a
pointer out of a graph's own directory.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.backends.graph import load_graph
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.check import check_integer
from stillhouse.errors import PipelineError

DEEP_TENSOR = "deep"
"""The name of the tensor at the cut: an output of the full graph, an input of the shallow one."""

# Scopes as torch.onnx.export writes them into the names of nodes: /network/up_blocks.3/Concat
_JOIN = re.compile(r".*/up_blocks\.(\d+)/[^/]+")
_BELOW = re.compile(r".*/(?:mid_block|up_blocks\.(\d+))/.*")
_HEAVY = {"Conv", "Gemm", "MatMul"}
_GRAPH = 5  # AttributeProto.GRAPH
_ALLOWED = "a U-Net exported by `stillhouse import`, whose node names tell its blocks"


@dataclass(frozen=True, slots=True)
class DeepCacheSplit:
    """The two graphs, the name that the tensor between them has in the original, and how many nodes each has.

    `layers` says how many layers the last up block has, before each of which it can be cut.
    """

    full: Path
    shallow: Path
    tensor: str
    layers: int
    full_nodes: int
    shallow_nodes: int


def split_unet(graph: Path, layer: int = 0) -> DeepCacheSplit:
    """Write `<stem>.full-<layer>.onnx` and `<stem>.shallow-<layer>.onnx` beside a U-Net's graph.

    `full` has one output more than the graph, `deep` [rows, c, h, w]: what enters the layer from below.
    `shallow` takes `deep` and those of the graph's inputs that it still needs, and gives the graph's outputs.

    Args:
        graph: an .onnx file; its weights may be inside or beside it, and are not read.
        layer: of the last up block, 0 its first, which leaves the most to the shallow graph; -1 its last, which is
            the cut of the paper.

    Raises:
        InvalidRequest: a layer that the block does not have.
        PipelineError: the file is missing or no graph, or its nodes do not tell what its blocks are.
        RuntimeMissing: onnx is not installed.

    >>> cut = cut_unet(Path("my-model/unet/model.onnx"))  # doctest: +SKIP
    >>> cut.shallow.name, cut.shallow_nodes < cut.full_nodes  # doctest: +SKIP
    ('model.shallow-0.onnx', True)
    """
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
        raise _cannot_split(graph, f"layer {layer} of its last up block is reached from below on more than one way")
    if any(attribute.type == _GRAPH for node in shallow.graph.node for attribute in node.attribute):
        raise _cannot_split(graph, "it branches")
    cut = DeepCacheSplit(
        graph.with_name(f"{graph.stem}.full-{layer}.onnx"),
        graph.with_name(f"{graph.stem}.shallow-{layer}.onnx"),
        tensor,
        len(joins),
        len(full.graph.node),
        len(shallow.graph.node),
    )
    _write(full, cut.full)
    _write(shallow, cut.shallow)
    return cut


def _skip_concats(model: Any, graph: Path) -> tuple[list[Any], int]:
    """The nodes that join a skip connection before each layer of the last up block, and that block's number."""
    joins: dict[int, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type == "Concat" and (match := _JOIN.fullmatch(node.name)):
            joins.setdefault(int(match[1]), []).append(node)
    if not joins:
        raise _cannot_split(graph, "no node of it joins a skip connection in a scope up_blocks.N")
    last = max(joins)
    return joins[last], last


def _deep_input(model: Any, join: Any, last: int, graph: Path) -> str:
    """Which of the two tensors that the node joins comes from below; the skip comes past everything there."""
    makers = {output: node for node in model.graph.node for output in node.output}
    if DEEP_TENSOR in makers:
        raise _cannot_split(graph, "it was cut")
    below = [name for name in join.input if any(_is_below(node, last) for node in _ancestors([name], makers))]
    if len(join.input) != 2 or len(below) != 1:
        raise _cannot_split(graph, f"{join.name} does not join one tensor from below with one skip connection")
    return str(below[0])


def _is_below(node: Any, last: int) -> bool:
    """Whether the node lies in the middle block or in an up block before the last."""
    match = _BELOW.fullmatch(node.name)
    return match is not None and (match[1] is None or int(match[1]) < last)


def _ancestors(names: Iterable[str], makers: dict[str, Any]) -> list[Any]:
    """The nodes that these tensors are made by, directly or not; in no order."""
    found: list[Any] = []
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen and name in makers:
            found.append(makers[name])
            waiting += makers[name].input
            seen.update(makers[name].output)
        seen.add(name)
    return found


def _deep_value_info(model: Any, tensor: str, graph: Path) -> Any:
    """The tensor's type; it has the rows and the size of the first input, the picture, and so the names of its axes."""
    onnx = require("onnx")
    with translate_errors("onnx", graph, "read"):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    kind = next((value.type.tensor_type for value in inferred.graph.value_info if value.name == tensor), None)
    picture = [axis.dim_value or axis.dim_param or None for axis in model.graph.input[0].type.tensor_type.shape.dim]
    if kind is None or len(picture) != 4 or len(kind.shape.dim) != 4 or not kind.shape.dim[1].dim_value:
        raise _cannot_split(graph, f"the shape of {tensor} cannot be told")
    axes = [axis.dim_value or name for axis, name in zip(kind.shape.dim, picture, strict=True)]
    return onnx.helper.make_tensor_value_info(DEEP_TENSOR, kind.elem_type, axes)


def _rename_tensor(nodes: Iterable[Any], tensor: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == tensor:
                    names[place] = DEEP_TENSOR


def _prune(graph: Any) -> None:
    """Leave out every node, initializer and input that no output needs once `deep` is fed."""
    makers = {output: node for node in graph.node for output in node.output if DEEP_TENSOR not in node.output}
    needed = _ancestors([value.name for value in graph.output], makers)
    made = {output for node in needed for output in node.output}
    read = {name for node in needed for name in node.input}
    for field, kept in (
        (graph.node, [node for node in graph.node if made.intersection(node.output)]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read]),
        (graph.input, [value for value in graph.input if value.name in read]),
        (graph.value_info, [value for value in graph.value_info if value.name in made]),
    ):
        del field[:]
        field.extend(kept)


def _write(model: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.SerializeToString())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_split(graph: Path, reason: str) -> PipelineError:
    return PipelineError(f"{graph} cannot be cut for step caching: {reason}", allowed=_ALLOWED)
