"""Inputs, outputs, weights files and arithmetic of a graph file (ONNX or OpenVINO), read without an inference runtime.

Broken files are refused here with a message that names the file; a runtime would print a trace of its own sources. ONNX
files are protobuf messages, read by the classes of `onnx_pb2`. OpenVINO's format is XML (docs.openvino.ai, "OpenVINO IR
format"). This format has no names of axes, so Stillhouse stores them in the file as runtime information.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from google.protobuf.message import DecodeError

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
_RESTORE_OR_EXPORT_AGAIN = "restore the file, or export or import the model again"
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
        inputs: axes by input name. An axis is a length, a name, or None where it has neither.
        outputs: names of the outputs, in order.
        external: least number of bytes that each weights file must have, by path relative to the graph's directory.
        arithmetic: "f32", or "mixed" where a node computes in half precision or in small integers. OpenVINO chooses the
            arithmetic when a graph is compiled; for an OpenVINO graph, "mixed" means that the graph holds quantisation
            ranges.
    """

    inputs: Mapping[str, Axes]
    outputs: tuple[str, ...]
    external: Mapping[str, int]
    arithmetic: str


def read_signature(path: Path, *, external: bool = True) -> Signature:
    """Read the signature (inputs, outputs, weights files, arithmetic) of a graph file.

    Args:
        path: an ONNX file, or an OpenVINO graph (.xml).
        external: whether to check that the weights files exist and are long enough.

    Raises:
        PipelineError: the file or its weights are missing or cut short, or the file is no graph, or ONNX above 2 GiB.
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
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    # Initializers are left out, since before version 4 of ONNX's format a graph listed them among its inputs as well.
    inputs = {value.name: _tensor_type(value) for value in graph.input if value.name not in weights}
    halves = {name for name, kind in weights.items() if kind in HALF_TYPES}
    halves |= {name for name, kind in inputs.items() if kind.elem_type in HALF_TYPES}
    return Signature(
        inputs={name: _axes(kind) for name, kind in inputs.items()},
        outputs=tuple(value.name for value in graph.output if _tensor_type(value)),
        external=_external_files(graph.initializer),
        arithmetic="mixed" if any(_is_reduced(node, halves) for node in graph.node) else "f32",
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


def _tensor_type(value: ValueInfoProto) -> TypeProto.Tensor:
    """Return the element type and shape of an input or output of a graph.

    Raises:
        ValueError: the input or output is no tensor.
    """
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"input or output {value.name} of the graph is no tensor")
    return value.type.tensor_type


def _axes(kind: TypeProto.Tensor) -> Axes:
    axes = ((axis, axis.WhichOneof("value")) for axis in kind.shape.dim)
    return tuple(None if field is None else getattr(axis, field) for axis, field in axes)


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
