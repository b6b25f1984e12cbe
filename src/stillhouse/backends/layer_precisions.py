"""The precisions in which the convolutions, matrix products and attentions of an ONNX file compute.

The precisions are read without a runtime. In a graph that a runtime has optimised, they are the precisions in which the
runtime computes: where the runtime has no kernel in a precision, it has inserted a Cast before the operation, and fused
integer operations have names of their own.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from stillhouse.backends.inner_graphs import iterate_graphs, iterate_nodes
from stillhouse.backends.onnx_pb2 import NodeProto
from stillhouse.backends.signature import HALF_TYPES, read_onnx_graph

_FLOAT = {
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "MultiHeadAttention"),
    *("FusedConv", "NhwcFusedConv", "FusedMatMul", "FusedGemm"),
}
_INTEGER = {
    *("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul", "QGemm", "QAttention"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
_N_BITS_OP = "MatMulNBits"
_EIGHT_BIT = 4  # the accuracy_level at which MatMulNBits rounds its input to int8 and computes in int8
# The outputs of these operators have another element type than their inputs, so a half precision input does not make
# the output half precision.
_TYPE_CHANGING = {
    *("Shape", "Size", "QuantizeLinear", "DynamicQuantizeLinear", "ArgMax", "ArgMin", "NonZero"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf"),
}


def read_layer_precisions(path: Path) -> dict[str, int]:
    """Count the convolutions, matrix products and attentions of an ONNX file by precision: f32, f16, bf16, int8.

    Operations in the branches of If and the bodies of Loop are counted once each, also where a run skips or repeats
    them. Precisions without any operation are left out.

    >>> read_layer_precisions(Path("optimised.onnx"))  # doctest: +SKIP
    {'f32': 28, 'int8': 133}
    """
    graph = read_onnx_graph(path)
    graphs = list(iterate_graphs(graph))
    element_types = {tensor.name: tensor.data_type for one in graphs for tensor in one.initializer}
    element_types |= {value.name: value.type.tensor_type.elem_type for one in graphs for value in one.input}
    halves = {name: HALF_TYPES[kind] for name, kind in element_types.items() if kind in HALF_TYPES}
    counts = Counter(filter(None, (_precision(node, halves) for node in iterate_nodes(graph))))
    return dict(sorted(counts.items()))


def _precision(node: NodeProto, halves: dict[str, str]) -> str | None:
    """Return the precision of a convolution, matrix product or attention; None for other nodes.

    `halves` maps the names of tensors in half precision to f16 or bf16. The call adds the outputs of the node that are
    in half precision.
    """
    operator = node.op_type
    source = node.input[1 if operator == "Where" else 0] if node.input else ""
    half = HALF_TYPES.get(_integers(node).get("to", 0)) if operator == "Cast" else halves.get(source)
    if half and operator not in _TYPE_CHANGING:
        halves.update(dict.fromkeys(node.output, half))
    if operator in _INTEGER or (operator == _N_BITS_OP and _integers(node).get("accuracy_level") == _EIGHT_BIT):
        return "int8"
    return (half or "f32") if operator in _FLOAT or operator == _N_BITS_OP else None


def _integers(node: NodeProto) -> Mapping[str, int]:
    """Return the integer attributes of a node by name."""
    return {attribute.name: attribute.i for attribute in node.attribute if attribute.HasField("i")}
