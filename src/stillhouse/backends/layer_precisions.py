"""Which precision the heavy operations of an ONNX file compute in, read without any runtime.

Asked of the graph that a runtime has made of ours, this says what runs: an operation that has no kernel in a precision
stands there behind a cast, and a fused one bears its integer name.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from stillhouse.backends.protobuf import Fields, first_text, parse_fields
from stillhouse.backends.signature import read_graph_fields

_HALVES = {10: "f16", 16: "bf16"}  # TensorProto.FLOAT16, BFLOAT16
_FLOAT = {
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "MultiHeadAttention"),
    *("FusedConv", "NhwcFusedConv", "FusedMatMul", "FusedGemm"),
}
_INTEGER = {
    *("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul", "QGemm", "QAttention"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
_N_BITS_OP = "MatMulNBits"
_EIGHT_BIT = 4  # the accuracy_level of MatMulNBits at which it rounds its input to int8 too
# What these give is of no type that they take.
_TYPE_CHANGING = {
    *("Shape", "Size", "QuantizeLinear", "DynamicQuantizeLinear", "ArgMax", "ArgMin", "NonZero"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf"),
}


def read_layer_precisions(path: Path) -> dict[str, int]:
    """How many convolutions, matrix products and attentions compute in f32, f16, bf16 and int8, subgraphs apart.

    A precision that none has is left out.

    >>> read_census(Path("optimised.onnx"))  # doctest: +SKIP
    {'f32': 28, 'int8': 133}
    """
    graph = read_graph_fields(path)
    halves = {
        first_text(tensor[8]): _HALVES[tensor[2][0]]
        for tensor in map(parse_fields, graph[5])
        if tensor[2][0] in _HALVES
    }
    halves |= {name: _HALVES[kind] for name, kind in map(_read_input, graph[11]) if kind in _HALVES}
    counts = Counter(filter(None, (_precision(parse_fields(node), halves) for node in graph[1])))
    return dict(sorted(counts.items()))


def _precision(node: Fields, halves: dict[str, str]) -> str | None:
    """What a heavy node computes in; None for all others. Adds to `halves` what it gives, if those are halves."""
    kind, takes = first_text(node[4]), [str(name, "utf-8") for name in node[1]]
    given = halves.get(takes[1 if kind == "Where" else 0]) if takes else None
    if kind == "Cast":
        given = _HALVES.get(_integers(node).get("to", 0))
    if given and kind not in _TYPE_CHANGING:
        halves.update({str(name, "utf-8"): given for name in node[2]})
    if kind in _INTEGER or (kind == _N_BITS_OP and _integers(node).get("accuracy_level") == _EIGHT_BIT):
        return "int8"
    return (given or "f32") if kind in _FLOAT or kind == _N_BITS_OP else None


def _integers(node: Fields) -> Mapping[str, int]:
    attributes = map(parse_fields, node[5])
    return {first_text(attribute[1]): attribute[3][0] for attribute in attributes if attribute[3]}


def _read_input(value: memoryview) -> tuple[str, int]:
    """A graph's input: its name and its element type, 0 where it is no tensor."""
    info = parse_fields(value)
    tensor = parse_fields(info[2][0])[1]
    return first_text(info[1]), parse_fields(tensor[0])[1][0] if tensor else 0
