"""Inputs, outputs, weights files and arithmetic of a graph file (ONNX or OpenVINO), read without an inference runtime.

Broken files are refused here with a message that names the file; a runtime would print a trace of its own sources. ONNX
files are protobuf messages, read by the classes of `onnx_pb2`. OpenVINO's format is XML (docs.openvino.ai, "OpenVINO IR
format"). This format has no names of axes, so Stillhouse stores them in the file as runtime information.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from google.protobuf.message import DecodeError

from stillhouse.backends.inner_graphs import iterate_graphs, iterate_nodes
from stillhouse.backends.onnx_pb2 import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto
from stillhouse.errors import PipelineError

Axes: TypeAlias = tuple[int | str | None, ...]
_FLOAT16, _BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
HALF_TYPES: Mapping[int, str] = {_FLOAT16: "f16", _BFLOAT16: "bf16"}
"""Names of the half precision element types, by their number in ONNX."""
# These operators copy numbers without computing, so half precision weights that only pass through them do not make the
# arithmetic half precision.
_PASS_THROUGH = {"Cast", "Identity", "Transpose", "Reshape", "Gather"}
_INTEGER_PREFIXES = (
    *("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "ConvInteger", "MatMulInteger", "MatMulNBits"),
)
_STRING = TensorProto.STRING
_INTEGERS = ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64", "BOOL")
_NUMERIC = {TensorProto.DataType.Value(name) for name in ("FLOAT", "FLOAT16", "DOUBLE", *_INTEGERS)}
"""Element types that NumPy has, so that arrays of them can be given to a runtime and compared."""
_UNNAMED = ("", "?", "None", "none", "-1")
"""Texts that exporters write in place of the name of an axis without a name."""
_RESTORE_OR_EXPORT_AGAIN = "restore the file, or export or import the model again"
_LARGE_BYTES = 256 << 20
"""Size in bytes of a graph with its weights from which it is large."""
_MAX_BYTES = (2 << 30) - 1
"""Largest number of bytes of a protobuf message, and so of an ONNX file."""
OPENVINO_SUFFIX = ".xml"
"""The suffix of an OpenVINO graph. Its weights lie in a .bin file of the same name."""
AXES_KEY = ("stillhouse", "axes")
"""Path in the runtime information of an OpenVINO graph where the axes of its inputs are stored: JSON, by input name."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs, outputs and weights files of a graph.

    Args:
        inputs: axes by input name. An axis is a length (0 or more), a name, or None where it has neither.
        outputs: names of the outputs that are tensors of numbers, in order.
        external: least number of bytes that each weights file must have, by path relative to the graph's directory.
        arithmetic: "f32", or "mixed" where a node computes in half precision or in small integers. OpenVINO chooses the
            arithmetic when a graph is compiled; for an OpenVINO graph, "mixed" means that the graph holds quantisation
            ranges.
        is_quantised: whether an ONNX graph has nodes that compute with small integers or expand them, as a model with
            weights in int8 does. False for an OpenVINO graph.
        skipped_outputs: type of each output that is left out, by name, such as "sequence of map from int64 to float":
            sequences, maps, optional values, and tensors of text or of numbers that NumPy lacks.
    """

    inputs: Mapping[str, Axes]
    outputs: tuple[str, ...]
    external: Mapping[str, int]
    arithmetic: str
    is_quantised: bool = False
    skipped_outputs: Mapping[str, str] = field(default_factory=dict)


def read_signature(path: Path, *, external: bool = True) -> Signature:
    """Read the signature (inputs, outputs, weights files, arithmetic) of a graph file.

    Args:
        path: an ONNX file, or an OpenVINO graph (.xml).
        external: whether to check that the weights files exist and are long enough.

    Raises:
        PipelineError: the file or its weights are missing or cut short, or the file is no graph, or ONNX above 2 GiB,
            or an input or every output of the graph is of a type that no array can have.
    """
    if not path.is_file():
        raise PipelineError(f"there is no file {path}", fix=_RESTORE_OR_EXPORT_AGAIN)
    kind, read = ("OpenVINO", _ir_signature) if path.suffix == OPENVINO_SUFFIX else ("ONNX", _signature)
    try:
        signature = read(path)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise PipelineError(f"{path} is no {kind} graph, or is cut short", fix=_RESTORE_OR_EXPORT_AGAIN) from error
    for name, size in signature.external.items() if external else ():
        _check_external(path, name, size)
    return signature


def graph_bytes(graph: Path, signature: Signature) -> int:
    """Return the size in bytes of a graph's file and the files of its external weights."""
    return graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in signature.external)


def is_large(graph: Path, signature: Signature) -> bool:
    """Return whether a graph with its weights takes so much memory that copies of it count."""
    return graph_bytes(graph, signature) > _LARGE_BYTES


def _check_external(path: Path, name: str, size: int) -> None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise PipelineError(
            f"{path} names the weights file {name!r}, outside its own directory", fix=_RESTORE_OR_EXPORT_AGAIN
        )
    file = path.parent / name
    if not file.is_file():
        raise PipelineError(f"{file}, which holds weights of {path.name}, is missing", fix=_RESTORE_OR_EXPORT_AGAIN)
    if (has := file.stat().st_size) < size:
        message = f"{file} has {has} bytes, but the weights of {path.name} end at byte {size}"
        raise PipelineError(message, fix=_RESTORE_OR_EXPORT_AGAIN)


def read_onnx_graph(path: Path) -> GraphProto:
    """Parse an ONNX file and return its graph. Weights in other files are not read.

    Weights inside the file are not decoded. Yet their bytes take about twice their size in memory during the call, and
    stay in memory with the graph. PipelineError is raised if the file has 2 GiB, the limit of protobuf, or more.
    ValueError is raised if the file is no ONNX file, or only a part of one.
    """
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise PipelineError(
            f"{path} has {size} bytes",
            allowed="ONNX files below 2 GiB, the limit of protobuf",
            fix="export the model with its weights as external data",
        )
    try:
        model = ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if not model.HasField("graph"):
        raise ValueError("the ONNX file holds no graph")
    return model.graph


def _signature(path: Path) -> Signature:
    graph = read_onnx_graph(path)
    tensors = [tensor for one in iterate_graphs(graph) for tensor in one.initializer]
    weights = {tensor.name: tensor.data_type for tensor in tensors}
    # Initializers are left out, since before version 4 of ONNX's format a graph listed them among its inputs as well.
    inputs = {value.name: _input_type(path, value) for value in graph.input if value.name not in weights}
    halves = {name for name, kind in weights.items() if kind in HALF_TYPES}
    halves |= {name for name, kind in inputs.items() if kind.elem_type in HALF_TYPES}
    skipped = {value.name: _type_text(value.type) for value in graph.output if not _is_numeric(value.type)}
    outputs = tuple(value.name for value in graph.output if value.name not in skipped)
    if skipped and not outputs:
        raise PipelineError(
            f"no output of {path} is a tensor of numbers: {_describe_types(skipped)}",
            allowed="a graph with an output of floats, integers or booleans",
            fix="add such a tensor to the outputs, for example the input of the last node",
        )
    return Signature(
        inputs={name: _axes(kind) for name, kind in inputs.items()},
        outputs=outputs,
        external=_external_files(tensors),
        arithmetic="mixed" if any(_is_reduced(node, halves) for node in iterate_nodes(graph)) else "f32",
        is_quantised=any(node.op_type.startswith(_INTEGER_PREFIXES) for node in iterate_nodes(graph)),
        skipped_outputs=skipped,
    )


def _is_reduced(node: NodeProto, halves: set[str]) -> bool:
    """Return whether a node computes in half precision or small integers.

    `halves` holds the names of tensors in half precision. A node that only copies or casts tensors computes nothing;
    the names of its outputs in half precision are added to `halves`.
    """
    operator = node.op_type
    takes = _cast_type(node) in HALF_TYPES if operator == "Cast" else not halves.isdisjoint(node.input)
    if takes and operator in _PASS_THROUGH:
        halves.update(node.output)
    return operator.startswith(_INTEGER_PREFIXES) or (takes and operator not in _PASS_THROUGH)


def _cast_type(cast: NodeProto) -> int | None:
    """Return the number of the element type to which a Cast node converts; None where the attribute `to` is missing."""
    return next((attribute.i for attribute in cast.attribute if attribute.name == "to"), None)


def _external_files(tensors: Iterable[TensorProto]) -> dict[str, int]:
    """Return how many bytes each file outside the graph must have to hold these tensors, by path of the file."""
    ends: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            ends[place["location"]] = max(end, ends.get(place["location"], 0))
    return ends


def _input_type(path: Path, value: ValueInfoProto) -> TypeProto.Tensor:
    """Return the element type and shape of an input of the graph in the file `path`.

    Raises:
        PipelineError: the input is no tensor of numbers or text, or its number of axes is unknown.
    """
    if not _is_numeric(value.type) and value.type.tensor_type.elem_type != _STRING:
        raise PipelineError(
            f"input {value.name!r} of {path} is a {_type_text(value.type)}",
            allowed="tensors of float16, float32, float64, integers, booleans or text",
            fix="export the model with tensors of such a type as inputs",
        )
    if not value.type.tensor_type.HasField("shape"):
        raise PipelineError(
            f"input {value.name!r} of {path} has no shape, not even a number of axes",
            allowed="inputs whose number of axes is known; each axis may have any length",
            fix="export the model with example inputs, or give the input a shape in the file",
        )
    return value.type.tensor_type


def _is_numeric(kind: TypeProto) -> bool:
    """Return whether a type is a tensor of numbers that NumPy has. The type of an output that has none is inferred."""
    return kind.WhichOneof("value") is None or kind.tensor_type.elem_type in _NUMERIC


def _type_text(kind: TypeProto) -> str:
    """Return the words for a type of ONNX, such as "sequence of map from int64 to float"."""
    match kind.WhichOneof("value"):
        case "tensor_type":
            return f"tensor of {_element_name(kind.tensor_type.elem_type)}"
        case "sequence_type":
            return f"sequence of {_type_text(kind.sequence_type.elem_type)}"
        case "optional_type":
            return f"optional {_type_text(kind.optional_type.elem_type)}"
        case "map_type":
            key, value = _element_name(kind.map_type.key_type), _type_text(kind.map_type.value_type)
            return f"map from {key} to {value}"
        case other:
            return "value without a type" if other is None else other.removesuffix("_type").replace("_", " ")


def _element_name(number: int) -> str:
    known: Mapping[int, str] = {kind: name for name, kind in TensorProto.DataType.items()}
    return known.get(number, f"type {number}").lower()


def _describe_types(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name!r} is a {kind}" for name, kind in types.items())


def _axes(kind: TypeProto.Tensor) -> Axes:
    """Return the axes of a tensor. PaddlePaddle's exporter writes the length -1, and others the name "?", for any."""
    fields = ((axis, axis.WhichOneof("value")) for axis in kind.shape.dim)
    axes = (None if field is None else getattr(axis, field) for axis, field in fields)
    return tuple(None if axis in _UNNAMED or (isinstance(axis, int) and axis < 0) else axis for axis in axes)


def _ir_signature(path: Path) -> Signature:
    root = ElementTree.parse(path).getroot()
    layers = root.findall("layers")[0].findall("layer")
    kinds = {layer.attrib["type"] for layer in layers}
    inputs = {_tensor_name(layer): _ir_axes(layer) for layer in layers if layer.attrib["type"] == "Parameter"}
    note = root.find("/".join(("./rt_info", *AXES_KEY)))
    if note is not None:
        inputs |= {name: tuple(axes) for name, axes in json.loads(note.attrib["value"]).items() if name in inputs}
    stored = [layer.findall("data")[0].attrib for layer in layers if layer.attrib["type"] == "Const"]
    end = max((int(place["offset"]) + int(place["size"]) for place in stored), default=0)
    return Signature(
        inputs=inputs,
        outputs=tuple(_result_name(layer) for layer in layers if layer.attrib["type"] == "Result"),
        external={path.with_suffix(".bin").name: end} if end else {},
        arithmetic="mixed" if "FakeQuantize" in kinds else "f32",
    )


def _tensor_name(parameter: ElementTree.Element) -> str:
    """Return the name of an input of an OpenVINO graph, given its Parameter layer.

    Where the input tensor has several names, the layer's own name is preferred.
    """
    names = parameter.findall("./output/port")[0].attrib.get("names", parameter.attrib["name"]).split(",")
    return parameter.attrib["name"] if parameter.attrib["name"] in names else names[0]


def _result_name(result: ElementTree.Element) -> str:
    own = result.attrib["name"].partition("/sink_port_")[0]
    names = result.attrib.get("output_names", own).split(",")
    return own if own in names else names[0]


def _ir_axes(parameter: ElementTree.Element) -> Axes:
    shape = parameter.findall("data")[0].attrib["shape"]
    return tuple(int(axis) if axis.isdigit() else None for axis in shape.split(",") if axis)
