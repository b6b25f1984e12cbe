"""An ONNX graph taken apart for rewriting: nodes here, constants there, each read from disk only when it is needed.

What is rewritten may be larger than memory, so no constant is read before it is written, and one at a time. Weights
that a graph makes on its way (a Cast behind stored halves, a Transpose behind a linear layer) count as constants,
under the name that the layers know them by.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.graph import load_external_data, load_graph
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.signature import read_signature
from stillhouse.check import check_choice

Model: TypeAlias = Any
"""An onnx.ModelProto. onnx is imported when a graph is first opened."""
Node: TypeAlias = Any
"""An onnx.NodeProto."""

COMPUTE_OPS = ("Conv", "MatMul", "Gemm")
"""The operations that do the work of a network, and that are worth another precision."""
FLOAT_TYPES = ("float16", "float32", "float64", "bfloat16")
_INLINE = 16 << 20
"""Bytes of weights that may stay in the .onnx itself; protobuf's own limit is 2 GiB."""
_SMALL = 1024
"""Bytes. Shape inference wants what is smaller inline."""
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that is read when it is needed: its numpy type and shape, and how to get at its values."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @classmethod
    def from_array(cls, array: NDArray[Any]) -> "Constant":
        """One whose values are here already."""
        return cls(array.dtype, array.shape, lambda: array)

    def cast(self, dtype: "np.dtype[Any]") -> "Constant":
        """The same in another type. What is too large for it becomes infinite."""
        return Constant(dtype, self.shape, partial(_cast, self.read, dtype))

    def transpose(self, axes: Iterable[int]) -> "Constant":
        """The same with its axes in another order."""
        order = tuple(axes)
        shape = tuple(self.shape[axis] for axis in order)
        return Constant(self.dtype, shape, lambda: self.read().transpose(order))


def load_with_constants(graph: Path) -> tuple[Model, dict[str, Constant]]:
    """The graph without its constants, and the constants by name.

    Raises:
        PipelineError: the file is missing or no ONNX graph, or its weights are missing or cut short.
        RuntimeMissing: onnx is not installed.
    """
    read_signature(graph)
    model: Model = load_graph(graph)
    to_array, kind = require("onnx.numpy_helper").to_array, require("onnx.helper").tensor_dtype_to_np_dtype
    results = {value.name for value in model.graph.output}
    constants = initializers(model, graph)
    nodes = []
    for node in model.graph.node:
        source = constants.get(node.input[0]) if node.input else None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.domain or node.output[0] in results:
            nodes.append(node)
        elif node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = Constant.from_array(to_array(attributes["value"].t))
        elif source and node.op_type == "Cast" and _is_float_cast(source, kind(attributes["to"].i)):
            constants[node.output[0]] = source.cast(np.dtype(kind(attributes["to"].i)))
        elif source and node.op_type == "Transpose" and "perm" in attributes:
            constants[node.output[0]] = source.transpose(attributes["perm"].ints)
        else:
            nodes.append(node)
    # Before version 4 of the format, initializers were listed among the inputs as well.
    inputs = [value for value in model.graph.input if value.name not in constants]
    set_repeated(model.graph.input, inputs)
    set_repeated(model.graph.node, nodes)
    del model.graph.initializer[:]
    return model, constants


def initializers(model: Model, graph: Path) -> dict[str, Constant]:
    """The initializers of a model by name, which was loaded from `graph`, as they are stored."""
    kind = require("onnx.helper").tensor_dtype_to_np_dtype
    return {
        tensor.name: Constant(
            np.dtype(kind(tensor.data_type)), tuple(tensor.dims), partial(_read_initializer, tensor, graph)
        )
        for tensor in model.graph.initializer
    }


def save_with_constants(model: Model, constants: Mapping[str, Constant], out: Path) -> None:
    """Write the nodes with those constants that they use, whole or not at all.

    Weights lie in the .onnx itself or, above 16 MiB, in `<out>.data` beside it. At no time are two of them in memory.
    """
    used = _used_names(model.graph)
    needed = {name: constants[name] for name in sorted(used & constants.keys())}
    large = sum(constant.dtype.itemsize * math.prod(constant.shape) for constant in needed.values()) > _INLINE
    data = out.with_name(f"{out.name}.data")
    with atomic_replace(out) as temporary, atomic_replace(data) as heap, translate_errors("onnx", out, "write"):
        for name, constant in needed.items():
            tensor = require("onnx.numpy_helper").from_array(constant.read(), name)
            if large and len(tensor.raw_data) >= _SMALL:
                _spill(tensor, heap, data.name)
            model.graph.initializer.append(tensor)
        temporary.write_bytes(model.SerializeToString())
    if not large:
        data.unlink(missing_ok=True)
    del model.graph.initializer[:]


def node_name(node: Node) -> str:
    """What a node is called: its name or, where it has none, that of its first output, as OpenVINO has it."""
    return str(node.name or node.output[0])


def inner_graphs(node: Node) -> Iterator[Any]:
    """The graphs inside a node: branches and loop bodies."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def check_node_names(keep: Iterable[str], model: Model) -> frozenset[str]:
    """Refuse, with InvalidRequest, a name that no node of the graph has."""
    names = {node_name(node) for node in model.graph.node}
    kept = frozenset(keep)
    for name in sorted(kept):
        check_choice("node", name, names)
    return kept


def set_repeated(field: Any, items: Iterable[Any]) -> None:
    """Make a repeated field of protobuf hold these items."""
    items = list(items)
    del field[:]
    field.extend(items)


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place if it was written, and is removed if anything failed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_float_cast(source: Constant, kind: Any) -> bool:
    return {source.dtype.name, np.dtype(kind).name} <= set(FLOAT_TYPES)


def _read_initializer(tensor: Any, graph: Path) -> NDArray[Any]:
    """The values of an initializer, which lie in the graph or in a file beside it."""
    if tensor.external_data:
        loaded = type(tensor)()
        loaded.CopyFrom(tensor)
        load_external_data(loaded, graph.parent)
        tensor = loaded
    array: NDArray[Any] = require("onnx.numpy_helper").to_array(tensor)
    return array


def _cast(read: Callable[[], NDArray[Any]], dtype: "np.dtype[Any]") -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return read().astype(dtype, copy=False)


def _spill(tensor: Any, heap: Path, location: str) -> None:
    """Move a tensor's values to the end of a file of their own."""
    with heap.open("ab") as file:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        place = {"location": location, "offset": file.tell(), "length": file.write(tensor.raw_data)}
    tensor.ClearField("raw_data")
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def _used_names(graph: Any) -> set[str]:
    """Every name that a node of the graph, or of a graph inside a node, takes, and the results."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for inner in inner_graphs(node):
            names |= _used_names(inner)
    return names
