"""An ONNX graph split into nodes and constants for rewriting. Each constant is read from disk when it is needed.

A graph may be larger than memory, so constants are read, converted and written one at a time. Weights that a graph
computes from initializers (a Cast of stored half precision, a Transpose of a linear layer's weights) count as
constants; their name is the one by which the layers read them.
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
from stillhouse.backends.inner_graphs import inner_graphs, iterate_graphs, iterate_nodes
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.signature import read_signature
from stillhouse.check import check_choice

Model: TypeAlias = Any
"""An onnx.ModelProto. onnx is imported when a graph is first opened."""
Node: TypeAlias = Any
"""An onnx.NodeProto."""

COMPUTE_OPS = ("Conv", "MatMul", "Gemm")
"""Operators that take most of a network's time; these are converted to other precisions."""
FLOAT_TYPES = ("float16", "float32", "float64", "bfloat16")
_INLINE = 16 << 20
"""Largest number of bytes of weights inside the .onnx file. protobuf would allow 2 GiB."""
_SMALL = 1024
"""Smallest number of bytes of a constant that is stored in a data file beside the .onnx file. Smaller constants stay
inside the .onnx file, since shape inference reads them."""
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant tensor of a graph, whose values are read from disk only when they are needed.

    Args:
        dtype: NumPy type of the values.
        shape: shape of the values.
        read: reads the values and returns them.
    """

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @classmethod
    def from_array(cls, array: NDArray[Any]) -> "Constant":
        """Return a constant whose values are an array in memory."""
        return cls(array.dtype, array.shape, lambda: array)

    def cast(self, dtype: "np.dtype[Any]") -> "Constant":
        """Return the constant in another type. Values beyond the range of this type become infinite."""
        return Constant(dtype, self.shape, partial(_cast, self.read, dtype))

    def transpose(self, axes: Iterable[int]) -> "Constant":
        """Return the constant with its axes permuted, as `numpy.transpose` does."""
        order = tuple(axes)
        shape = tuple(self.shape[axis] for axis in order)
        return Constant(self.dtype, shape, lambda: self.read().transpose(order))


def load_with_constants(graph: Path) -> tuple[Model, dict[str, Constant]]:
    """Read an ONNX file; return its model without constants, and the constants by name, whose values are read later.

    Constants of the graphs inside the graph stay in them, and are read at once, see `inner_constants`.

    Args:
        graph: an ONNX file.

    Raises:
        PipelineError: the file is missing or is no ONNX graph, or its weights are missing or cut short.
        RuntimeMissing: onnx is not installed.
    """
    read_signature(graph)
    model: Model = load_graph(graph)
    for part in list(iterate_graphs(model.graph))[1:]:
        for tensor in part.initializer:
            load_external_data(tensor, graph.parent)
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
    # Constants (initializers) are left out, since before version 4 of ONNX's format a graph listed them among its
    # inputs as well.
    inputs = [value for value in model.graph.input if value.name not in constants]
    set_repeated(model.graph.input, inputs)
    set_repeated(model.graph.node, nodes)
    del model.graph.initializer[:]
    return model, constants


def initializers(model: Model, graph: Path) -> dict[str, Constant]:
    """Return the initializers of a model by name, in their stored types. Values are read when they are needed.

    Args:
        model: the model that was loaded from `graph`.
        graph: the ONNX file, beside which weights may lie.
    """
    kind = require("onnx.helper").tensor_dtype_to_np_dtype
    return {
        tensor.name: Constant(
            np.dtype(kind(tensor.data_type)), tuple(tensor.dims), partial(_read_initializer, tensor, graph)
        )
        for tensor in model.graph.initializer
    }


def inner_constants(part: Any) -> dict[str, Constant]:
    """Return the constants of a branch or loop body, a GraphProto, by name: its initializers and Constant nodes."""
    to_array = require("onnx.numpy_helper").to_array
    values = {tensor.name: tensor for tensor in part.initializer}
    for node in part.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and not node.domain and "value" in attributes:
            values[node.output[0]] = attributes["value"].t
    return {name: Constant.from_array(to_array(tensor)) for name, tensor in values.items()}


def store_inner_constants(part: Any, constants: Mapping[str, Constant]) -> None:
    """Store those constants that the nodes of a branch or loop body read as its initializers, in place.

    Args:
        part: a GraphProto. Its Constant nodes, and initializers of other names, are removed where nothing reads them.
        constants: constants by name, without those of the outer graph.
    """
    used = _used_names(part)
    nodes = [node for node in part.node if node.op_type != "Constant" or not used.isdisjoint(node.output)]
    set_repeated(part.node, nodes)
    written = {output for node in nodes for output in node.output}
    stored = [tensor for tensor in part.initializer if tensor.name in used]
    names = sorted(used & constants.keys() - written - {tensor.name for tensor in stored})
    from_array = require("onnx.numpy_helper").from_array
    set_repeated(part.initializer, [*stored, *(from_array(constants[name].read(), name) for name in names)])


def save_with_constants(model: Model, constants: Mapping[str, Constant], out: Path) -> None:
    """Write a model without initializers, with those constants that its nodes read, to the ONNX file `out`, atomically.

    Constants are given by name. Weights are written to the .onnx file or, where they exceed 16 MiB in all, to
    `<out>.data` beside it. Only one constant at a time is in memory.
    """
    used = _used_names(model.graph)
    needed = {name: constants[name] for name in sorted(used & constants.keys())}
    large = sum(constant.dtype.itemsize * math.prod(constant.shape) for constant in needed.values()) > _INLINE
    data = out.with_name(f"{out.name}.data")
    with atomic_replace(out) as temporary, atomic_replace(data) as data_file, translate_errors("onnx", out, "write"):
        for name, constant in needed.items():
            tensor = require("onnx.numpy_helper").from_array(constant.read(), name)
            if large and len(tensor.raw_data) >= _SMALL:
                _spill(tensor, data_file, data.name)
            model.graph.initializer.append(tensor)
        temporary.write_bytes(model.SerializeToString())
    if not large:
        data.unlink(missing_ok=True)
    del model.graph.initializer[:]


def node_name(node: Node) -> str:
    """Return the name of a node. A node without a name is named by its first output, as in OpenVINO."""
    return str(node.name or node.output[0])


def check_node_names(keep: Iterable[str], model: Model) -> frozenset[str]:
    """Check that a model has a node of every name in `keep`, also in inner graphs, and return these names as a set.

    Raises:
        InvalidRequest: the model has no node of one of the names.
    """
    names = {node_name(node) for node in iterate_nodes(model.graph)}
    nodes = frozenset(keep)
    for name in sorted(nodes):
        check_choice("node", name, names)
    return nodes


def set_repeated(field: Any, items: Iterable[Any]) -> None:
    """Replace all items of a repeated protobuf field, in place."""
    items = list(items)
    del field[:]
    field.extend(items)


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. A file that the block writes there replaces `path` when the block ends.

    Where the block raises an error, the temporary file is removed and `path` stays unchanged.
    """
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
    """Return the values of an initializer (a TensorProto), from the graph or from a file beside the graph."""
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


def _spill(tensor: Any, data_file: Path, location: str) -> None:
    """Append the values of a tensor to a data file, and replace them in the tensor by a pointer to this file.

    Args:
        tensor: a TensorProto, changed in place.
        data_file: file to append to.
        location: name of the file in the pointer, relative to the graph.
    """
    with data_file.open("ab") as file:
        file.write(bytes(-file.tell() % _ALIGNMENT))
        place = {"location": location, "offset": file.tell(), "length": file.write(tensor.raw_data)}
    tensor.ClearField("raw_data")
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))


def _used_names(graph: Any) -> set[str]:
    """Return the names of all tensors that nodes read, also in inner graphs, and of the graph's outputs."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for inner in inner_graphs(node):
            names |= _used_names(inner)
    return names
