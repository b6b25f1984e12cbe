"""What an ONNX graph does with its inputs, as far as that says which shapes and values make sense."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from stillhouse.backends.graph import load_graph
from stillhouse.backends.runtime import require
from stillhouse.backends.signature import Axes, read_signature

Dims: TypeAlias = tuple[int, ...]
_ELEMENTWISE_OPS = {
    "Cast",
    "Identity",
    "Dropout",
    "Clip",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "QuantizeLinear",
    "DequantizeLinear",
}
"""What comes out has the axes of what went in."""
_PASS_THROUGH_OPS = _ELEMENTWISE_OPS | {
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Transpose",
    "Slice",
    "Concat",
    "Expand",
    "Max",
    "Min",
}
"""What comes out is numbers that went in, somewhere."""
_CONSTANT_OPS = {"Cast", "Identity", "DequantizeLinear"}
_MIN_POSITIONS = 8
"""Rows below which a table that no input indexes is no table of positions."""


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """A graph seen from its inputs.

    Args:
        axes, dtypes: of each input: its axes, and the numpy dtype that it takes ("object" for text).
        channels: by input, the length of axis 1 that the convolution behind it takes, where there is one.
        features: by input, the length of the last axis that the matrix product behind it takes.
        rows: by input, the rows of the smallest table that is indexed with it.
        positions: rows of the smallest table that no input indexes: so long may a sequence be.
    """

    axes: Mapping[str, Axes]
    dtypes: Mapping[str, np.dtype[Any]]
    channels: Mapping[str, int]
    features: Mapping[str, int]
    table_rows: Mapping[str, int]
    max_positions: int | None


def read_graph_inputs(graph: Path) -> GraphInputs:
    """Read an ONNX file, without the weights that lie outside it.

    Raises:
        PipelineError: the file is missing, or no ONNX graph.
        RuntimeMissing: onnx is not installed.
    """
    axes = read_signature(graph, external=False).inputs
    net = load_graph(graph).graph
    as_numpy = require("onnx.helper").tensor_dtype_to_np_dtype
    dtypes = {value.name: as_numpy(value.type.tensor_type.elem_type) for value in net.input if value.name in axes}
    nodes = list(net.node)
    stored = _constant_shapes(net.initializer, nodes)
    follow = _Consumers(nodes)
    # By what it gives: a node's first output belongs to no other.
    tables = {node.output[0]: rows for node in nodes if (rows := _lookup_rows(node, stored))}
    uses = {name: [node.output[0] for node, slot in follow(name, _PASS_THROUGH_OPS) if slot == 1] for name in axes}
    indexed = {name: [tables[one] for one in outputs if one in tables] for name, outputs in uses.items()}
    free = [
        rows for one, rows in tables.items() if rows >= _MIN_POSITIONS and not any(one in uses[name] for name in axes)
    ]
    return GraphInputs(
        axes=axes,
        dtypes=dtypes,
        channels=_first_lengths(axes, follow, lambda node: _conv_channels(node, stored)),
        features=_first_lengths(axes, follow, lambda node: _matmul_features(node, stored)),
        table_rows={name: min(rows) for name, rows in indexed.items() if rows},
        max_positions=min(free, default=None),
    )


class _Consumers:
    """The nodes that a tensor reaches through others of some kinds, each with the slot that it arrives in."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.consumers: defaultdict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in nodes:
            for slot, name in enumerate(node.input):
                self.consumers[name].append((node, slot))

    def __call__(self, name: str, through: Collection[str]) -> Iterator[tuple[Any, int]]:
        waiting, seen = [name], {name}
        while waiting:
            for node, slot in self.consumers[waiting.pop(0)]:
                yield node, slot
                new = [one for one in node.output if one not in seen] if node.op_type in through else []
                seen.update(new)
                waiting += new


def _constant_shapes(initializers: Iterable[Any], nodes: Iterable[Any]) -> dict[str, Dims]:
    """The shapes of all that is known before any input is: initializers, constants, and what is cast of them."""
    stored: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in initializers}
    for node in nodes:
        if node.op_type == "Constant":
            stored.update((node.output[0], tuple(one.t.dims)) for one in node.attribute if one.name == "value")
        elif node.op_type in _CONSTANT_OPS and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    return stored


def _lookup_rows(node: Any, stored: Mapping[str, Dims]) -> int | None:
    """The rows of the table that the node looks up, if that is what it does."""
    along = [one.i for one in node.attribute if one.name == "axis"]
    table = stored.get(node.input[0], ()) if node.op_type == "Gather" and along in ([], [0]) else ()
    return table[0] if len(table) == 2 else None


def _first_lengths(
    axes: Collection[str], follow: _Consumers, read_length: Callable[[Any], int | None]
) -> dict[str, int]:
    lengths = {}
    for name in axes:
        found = (read_length(node) for node, slot in follow(name, _ELEMENTWISE_OPS) if slot == 0)
        length = next((one for one in found if one), None)
        if length:
            lengths[name] = length
    return lengths


def _conv_channels(node: Any, stored: Mapping[str, Dims]) -> int | None:
    weight = stored.get(node.input[1], ()) if node.op_type == "Conv" else ()
    group = next((one.i for one in node.attribute if one.name == "group"), 1)
    return weight[1] * group if len(weight) > 1 else None


def _matmul_features(node: Any, stored: Mapping[str, Dims]) -> int | None:
    weight = stored.get(node.input[1], ()) if node.op_type in ("MatMul", "Gemm") else ()
    turned = any(one.name == "transB" and one.i for one in node.attribute)
    return weight[-1 if turned else -2] if len(weight) > 1 else None
