"""Rewriting of Conv, MatMul and Gemm with weights to eight-bit operands, by standard ONNX operators (opset 13).

A real number r is stored as an integer q with r = scale * (q - zero) (Jacob et al. 2018, arXiv:1712.05877, equation 1).
With fp8 (opset 19; Micikevicius et al. 2022, arXiv:2209.05433), q is an 8-bit float with a 4-bit exponent, and there is
no zero point, since GPUs multiply without one.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.onnx_edit import Constant, Node, node_name
from stillhouse.backends.runtime import require
from stillhouse.core import Array

WeightType: TypeAlias = Literal["int8", "uint8"]
WEIGHT_TYPES: tuple[WeightType, ...] = ("int8", "uint8")
Ranges: TypeAlias = Mapping[str, tuple[float, float]]
"""Minimum and maximum of a tensor, by its name."""

QuantType: TypeAlias = Literal["uint8", "int8", "fp8"]
"""Formats of the operands of products. "uint8", for CPUs: inputs are unsigned and weights signed. "int8" and "fp8", for
GPUs: inputs and weights both have this type, without zero points."""
QUANT_TYPES: tuple[QuantType, ...] = ("uint8", "int8", "fp8")

_LARGEST: Mapping[WeightType, int] = {"int8": 63, "uint8": 127}
"""Largest quantised weight minus the zero point, by type of the weights. Signed weights use 7 bits, since sums could
overflow with 8 bits on x86 (see `quantize`).
"""
_FLOAT, _E4M3 = 1, 17  # TensorProto.FLOAT and FLOAT8E4M3FN as numbers, so that onnx is imported only when needed
_SYMMETRIC: Mapping[QuantType, int] = {"int8": 127, "fp8": 448}
"""Largest quantised magnitude of inputs and weights of the symmetric formats."""
_WIDEST = 2.0**30
"""Largest bias in units of its scale, so that the bias plus the sum of products fits into 32 bits."""


class QdqRewriter:
    """Rewrites nodes of a graph to eight-bit operands, collects them in `nodes`, and adds the constants that they need.

    Args:
        constants: constants of the graph by name; new constants are added.
        quant_type: format of the operands that `add_static` uses.
        scope: end of the names of new tensors that `add_dynamic` adds. Graphs inside a graph need different ends, since
            all of them may quantise the same tensor of the outer graph.
    """

    def __init__(self, constants: dict[str, Constant], quant_type: QuantType = "uint8", scope: str = "") -> None:
        self.nodes: list[Node] = []
        self.constants = constants
        self._quant_type = quant_type
        self._scope = scope
        self._rounded: dict[str, str] = {}
        self._dynamic_inputs: dict[str, tuple[str, str, str]] = {}

    def add_static(self, node: Node, ranges: Ranges) -> None:
        """Append a node, and before it operators that quantise and dequantise its input, weights and bias.

        Runtimes fuse these operators with the node.

        Args:
            node: a Conv, MatMul or Gemm with constant weights, changed in place.
            ranges: minimum and maximum of tensors by name, among them the node's input.
        """
        source, weights, *bias = node.input
        step, _ = self._scale_and_zero(ranges[source])
        values = self.constants[weights].read()
        # With int8 and fp8, the formats for GPUs (_SYMMETRIC), the bias stays in floats, so there is no bias to
        # quantise.
        bias = [] if self._quant_type in _SYMMETRIC else bias
        added = self.constants[bias[0]].read() if bias else np.zeros(1, np.float32)
        axis, largest = output_axis(node), _SYMMETRIC.get(self._quant_type, _LARGEST["int8"])
        scale = _scales(values, axis, largest, least=np.abs(added) / (step * _WIDEST))
        name, kind = node_name(node), _fp8_dtype() if self._quant_type == "fp8" else np.dtype(np.int8)
        array = _quantize_weights(values, scale, axis, largest, kind)
        node.input[0] = self._quantized_input(source, ranges)
        node.input[1] = self._dequantized_constant(f"{name}.weights", array, scale, axis)
        if bias:
            integers = np.rint(added / (step * scale.astype(np.float64))).astype(np.int32)
            node.input[2] = self._dequantized_constant(f"{name}.bias", integers, np.float32(step) * scale, 0)
        self.nodes.append(node)

    def round_output(self, node: Node, name: str, ranges: Ranges) -> None:
        """Append operators that quantise and dequantise the output `name` of a node that was appended before.

        `ranges` has the minimum and maximum of this output.
        """
        exact = f"{name}.exact"
        node.output[list(node.output).index(name)] = exact
        self._add_qdq(exact, name, *self._scale_and_zero(ranges[name]))
        self._rounded[name] = name

    def add_dynamic(self, node: Node, weight_type: WeightType) -> None:
        """Append the integer form of a node, whose input range is measured at run time, and the steps back to float32.

        Args:
            node: a Conv, MatMul or Gemm with constant weights.
            weight_type: type of the quantised weights.
        """
        source, weights, *bias = node.input
        name, result, axis = node_name(node), node.output[0], output_axis(node)
        prefix = f"{name}{self._scope}"
        constant = self.constants[weights]
        if node.op_type == "Gemm" and axis == 0:
            constant, axis = constant.transpose((1, 0)), 1
        values, zero = constant.read(), 128 if weight_type == "uint8" else 0
        scale = _scales(values, axis, _LARGEST[weight_type])
        channels = (-1, *[1] * (values.ndim - 2)) if node.op_type == "Conv" else (-1,)
        integers = self._constant(
            f"{prefix}.weights",
            _round_to_integers(values, scale, axis, _LARGEST[weight_type], zero).astype(weight_type),
        )
        scales = self._constant(f"{prefix}.scales", scale.reshape(channels))
        zeros = self._constant(f"{weight_type}.zero{self._scope}", np.array(zero, weight_type))
        rounded, step, start = self._dynamic_input(source)
        operator = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
        steps = [f"{result}.{part}" for part in ("sum", "float", "unit", "product")]
        last = steps[3] if bias else result
        self._add(operator, [rounded, integers, start, zeros], steps[0], name=name)
        if node.op_type == "Conv":
            self.nodes[-1].attribute.extend(node.attribute)
        self._add("Cast", [steps[0]], steps[1], to=_FLOAT)
        self._add("Mul", [step, scales], steps[2])
        self._add("Mul", [steps[1], steps[2]], last)
        if bias:
            added = self._constant(f"{prefix}.bias", self.constants[bias[0]].read().reshape(channels))
            self._add("Add", [last, added], result)

    def _quantized_input(self, name: str, ranges: Ranges) -> str:
        """Return the name of the quantised and dequantised form of the tensor `name`.

        The first call for a tensor appends the operators that quantise and dequantise the tensor. `ranges` has the
        minimum and maximum of the tensor.
        """
        if name not in self._rounded:
            self._rounded[name] = f"{name}.rounded"
            self._add_qdq(name, self._rounded[name], *self._scale_and_zero(ranges[name]))
        return self._rounded[name]

    def _scale_and_zero(self, extent: tuple[float, float]) -> tuple[float, int]:
        """Return the scale and zero point for a range (minimum, maximum). The real number 0 is stored exactly."""
        if self._quant_type in _SYMMETRIC:
            return float(np.float32(max(map(abs, extent)) / _SYMMETRIC[self._quant_type])) or 1.0, 0
        low, high = min(extent[0], 0.0), max(extent[1], 0.0)
        step = float(np.float32((high - low) / 255)) or 1.0
        return step, round(-low / step)

    def _add_qdq(self, source: str, target: str, step: float, zero: int) -> None:
        whole = f"{target}.whole"
        unit = [
            self._constant(f"{target}.scale", np.array(step, np.float32)),
            self._constant(
                f"{target}.zero", np.array(zero, _fp8_dtype() if self._quant_type == "fp8" else self._quant_type)
            ),
        ]
        self._add("QuantizeLinear", [source, *unit], whole)
        self._add("DequantizeLinear", [whole, *unit], target)

    def _dequantized_constant(self, name: str, integers: NDArray[Any], scale: Array, axis: int) -> str:
        unit = [
            self._constant(f"{name}.scale", scale),
            self._constant(f"{name}.zero", np.zeros(scale.shape, integers.dtype)),
        ]
        self._add("DequantizeLinear", [self._constant(f"{name}.whole", integers), *unit], name, axis=axis)
        return name

    def _dynamic_input(self, name: str) -> tuple[str, str, str]:
        """Return the names of the integers, the scale and the zero point to which a tensor is quantised at run time.

        The first call for a tensor appends the operator that measures the tensor's range and quantises the tensor.
        """
        if name not in self._dynamic_inputs:
            taken = f"{name}.taken{self._scope}"
            self._dynamic_inputs[name] = (taken, f"{taken}.scale", f"{taken}.zero")
            self.nodes.append(
                require("onnx.helper").make_node("DynamicQuantizeLinear", [name], list(self._dynamic_inputs[name]))
            )
        return self._dynamic_inputs[name]

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants[name] = Constant.from_array(array)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(require("onnx.helper").make_node(operator, inputs, [output], **attributes))


def output_axis(node: Node) -> int:
    """Return the axis of the weights of a Conv, MatMul or Gemm node that holds the output channels."""
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else 1


def _scales(values: Array, axis: int, largest: int, least: NDArray[Any] | float = 0.0) -> Array:
    """Return a scale for each output channel, at least `least`, such that the largest weight becomes `largest`.

    Args:
        values: weights.
        axis: axis of the output channels.
        largest: largest quantised magnitude.
        least: lower bound of the scales, one for all channels or one for each.
    """
    others = tuple(other for other in range(values.ndim) if other != axis)
    scale = np.maximum(np.abs(values).max(axis=others) / largest, least)
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _quantize_weights(values: Array, scale: Array, axis: int, largest: int, kind: "np.dtype[Any]") -> NDArray[Any]:
    """Return weights divided by the scales of their channels, and rounded to `kind`, int8 or fp8.

    Args:
        values: weights.
        scale: scale of each output channel.
        axis: axis of the output channels.
        largest: largest quantised magnitude; larger values are clipped.
        kind: NumPy type of the result.
    """
    if kind == np.int8:
        return _round_to_integers(values, scale, axis, largest, 0).astype(kind)
    floats: NDArray[Any] = np.clip(_in_units(values, scale, axis), -largest, largest).astype(kind)
    return floats


def _fp8_dtype() -> "np.dtype[Any]":
    kind: np.dtype[Any] = require("onnx.helper").tensor_dtype_to_np_dtype(_E4M3)
    return kind


def _round_to_integers(values: Array, scale: Array, axis: int, largest: int, zero: int) -> Array:
    integers: Array = np.clip(np.rint(_in_units(values, scale, axis)), -largest, largest) + zero
    return integers


def _in_units(values: Array, scale: Array, axis: int) -> Array:
    shape = [1] * values.ndim
    shape[axis] = -1
    return values / scale.reshape(shape)
