"""Small ONNX networks, and what they compute in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stillhouse.backends.graph import link_tensor
from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.core import Array

Value: TypeAlias = tuple[str, Sequence[Any]] | tuple[str, Sequence[Any], int]  # axes: int, str or None
BACKENDS = ("onnxruntime", "openvino")


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> onnx.ModelProto:
    """A checked model; a value is (name, axes) of float32, or (name, axes, element type)."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "network", _values(inputs), _values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _values(values: Sequence[Value]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, (*kind, TensorProto.FLOAT)[0], axes) for name, axes, *kind in values]


def write_model(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


node = helper.make_node


def make_graph(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[Value], inputs: Sequence[Value] = ()
) -> onnx.GraphProto:
    """A branch or the body of a loop, which also reads the tensors outside of it."""
    return helper.make_graph(nodes, "inner", _values(inputs), _values(outputs))


def branches_and_loop(weights: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """x @ w, and then by the condition c: `times` more in a loop, or two more one after the other.

    The constants "w", [2, 2], and "times", of no axis, are `weights`.
    """
    body = make_graph(
        [node("MatMul", ["state", "w"], ["new"]), node("Identity", ["go"], ["on"])],
        [("on", [], TensorProto.BOOL), ("new", ["n", 2])],
        [("i", [], TensorProto.INT64), ("go", [], TensorProto.BOOL), ("state", ["n", 2])],
    )
    loop = make_graph([node("Loop", ["times", "", "a"], ["looped"], body=body)], [("looped", ["n", 2])])
    twice = [node("MatMul", ["a", "w"], ["b"]), node("MatMul", ["b", "w"], ["d"])]
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("If", ["c"], ["y"], then_branch=loop, else_branch=make_graph(twice, [("d", ["n", 2])])),
    ]
    return make_model(nodes, [("x", ["n", 2]), ("c", [], TensorProto.BOOL)], [("y", ["n", 2])], weights)


CHANNELS, HIDDEN, GROUPS = 4, 32, 8


def unet_weights(seed: int = 0) -> dict[str, Array]:
    """Weights of `unet`, so scaled that every layer's values stay near 1."""
    draw = np.random.default_rng(seed).standard_normal
    shapes = {
        "conv.weight": (HIDDEN, CHANNELS, 3, 3),
        "time.weight": (HIDDEN, 1),
        "query.weight": (HIDDEN, HIDDEN),
        "key.weight": (HIDDEN, HIDDEN),
        "out.weight": (CHANNELS, HIDDEN, 3, 3),
    }
    weights = {name: draw(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    weights["conv.bias"] = draw(HIDDEN)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def write_linked(model: onnx.ModelProto, path: Path, weights: Path, location: str | None = None) -> Path:
    """Write a model whose initializers of the names in a safetensors file are pointers into that file."""
    index, casts = read_safetensors_index(weights), list[onnx.NodeProto]()
    place = location or weights.relative_to(path.parent).as_posix()
    for tensor in model.graph.initializer:
        if tensor.name in index:
            casts += link_tensor(tensor, index[tensor.name], place)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return write_model(model, path)


def unet(weights: Mapping[str, NDArray[Any]] | None = None) -> onnx.ModelProto:
    """The layers of a diffusion network: convolution, time embedding, group norm, attention, convolution."""
    constants: dict[str, NDArray[Any]] = {
        "grouped": np.array([0, GROUPS, -1]),
        "ones": np.ones(GROUPS, np.float32),
        "zeros": np.zeros(GROUPS, np.float32),
        "flat": np.array([0, HIDDEN, -1]),
        "column": np.array([-1, 1]),
        "spread": np.array([-1, HIDDEN, 1, 1]),
        "temperature": np.array(HIDDEN**-0.5, np.float32),
    }
    nodes = [
        node("Conv", ["sample", "conv.weight", "conv.bias"], ["a"], pads=[1] * 4),
        node("Reshape", ["timestep", "column"], ["t"]),
        node("Gemm", ["t", "time.weight"], ["embedded"], transB=1),
        node("Reshape", ["embedded", "spread"], ["e"]),
        node("Add", ["a", "e"], ["b"]),
        node("Shape", ["b"], ["shape"]),
        node("Reshape", ["b", "grouped"], ["groups"]),
        node("InstanceNormalization", ["groups", "ones", "zeros"], ["normal"], epsilon=1e-5),
        node("Reshape", ["normal", "flat"], ["c"]),
        node("Transpose", ["c"], ["tokens"], perm=[0, 2, 1]),
        node("MatMul", ["tokens", "query.weight"], ["q"]),
        node("MatMul", ["tokens", "key.weight"], ["k"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["products"]),
        node("Mul", ["products", "temperature"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "tokens"], ["mixed"]),
        node("Transpose", ["mixed"], ["m"], perm=[0, 2, 1]),
        node("Reshape", ["m", "shape"], ["d"]),
        node("Add", ["d", "b"], ["f"]),
        node("Conv", ["f", "out.weight"], ["out_sample"], pads=[1] * 4),
    ]
    inputs: list[Value] = [("sample", ["B", CHANNELS, "h", "w"]), ("timestep", ["B"])]
    outputs: list[Value] = [("out_sample", ["B", CHANNELS, "h", "w"])]
    return make_model(nodes, inputs, outputs, {**constants, **(weights or unet_weights())})


def unet_float64(feeds: Mapping[str, Array], weights: Mapping[str, Array]) -> NDArray[np.float64]:
    """What `unet` computes, by the definitions of its layers."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    a = _conv(feeds["sample"].astype(np.float64), w["conv.weight"]) + w["conv.bias"][:, None, None]
    b = a + (feeds["timestep"].astype(np.float64)[:, None] @ w["time.weight"].T)[:, :, None, None]
    groups = b.reshape(len(b), GROUPS, -1)
    centred = groups - groups.mean(-1, keepdims=True)
    c = (centred / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)).reshape(len(b), HIDDEN, -1)
    tokens = c.transpose(0, 2, 1)
    scores = (tokens @ w["query.weight"]) @ (tokens @ w["key.weight"]).transpose(0, 2, 1) * HIDDEN**-0.5
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ tokens
    return _conv(mixed.transpose(0, 2, 1).reshape(b.shape) + b, w["out.weight"])


def _conv(x: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    result: NDArray[np.float64] = np.einsum("bchwij,ocij->bohw", windows, kernel, optimize=True)
    return result


def unet_feeds(rows: int, height: int = 8, width: int = 8, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {
        "sample": generator.standard_normal((rows, CHANNELS, height, width)).astype(np.float32),
        "timestep": generator.uniform(0, 2, rows).astype(np.float32),
    }


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, as a part of the largest value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
