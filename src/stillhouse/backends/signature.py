"""What a graph's file says of itself, read without any runtime: inputs, outputs, files beside it, arithmetic.

A file is refused here with its name, before a runtime refuses it with a stack of its own sources. The numbers of an
ONNX file's fields are those of onnx.proto3. OpenVINO's format is XML (docs.openvino.ai, "OpenVINO IR format"); it does
not name axes, so files of ours carry the names as a note.
"""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from stillhouse.backends.protobuf import Fields, first_text, parse_fields
from stillhouse.errors import PipelineError

Axes: TypeAlias = tuple[int | str | None, ...]
_HALVES = {10, 16}  # TensorProto.FLOAT16, BFLOAT16
_EXTERNAL = 1  # TensorProto.DataLocation
# These hand numbers on without computing with them, so weights stored as halves may pass through.
_PASS_THROUGH = {"Cast", "Identity", "Transpose", "Reshape", "Gather"}
_FIX = "restore the file, or export or import the model again"
OPENVINO_SUFFIX = ".xml"
"""The ending of an OpenVINO graph. Its weights lie in a .bin of the same name."""
AXES_KEY = ("stillhouse", "axes")
"""Where an OpenVINO graph of ours notes the names of its axes: JSON, by input."""
_INTEGER = ("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "ConvInteger", "MatMulInteger", "MatMulNBits")


@dataclass(frozen=True, slots=True)
class Signature:
    """An ONNX or OpenVINO file from outside.

    Args:
        inputs: axes by input name: a length, the axis's name, or None where it has neither.
        outputs: names, in order.
        external: for each file that the weights lie in, relative to the graph's directory: the bytes it must have.
        arithmetic: "f32", or "mixed" where a node computes with halves or small integers. What an OpenVINO graph is
            computed in depends on how it is compiled; there, "mixed" means that it carries ranges to quantise by.
    """

    inputs: Mapping[str, Axes]
    outputs: tuple[str, ...]
    external: Mapping[str, int]
    arithmetic: str


def read_signature(path: Path, *, external: bool = True) -> Signature:
    """Read the file at `path` and, with `external`, look whether the files that it points into are there, and whole.

    Raises:
        PipelineError: the file is missing or no graph, or its weights are missing or cut short.
    """
    if not path.is_file():
        raise PipelineError(f"there is no file {path}", fix=_FIX)
    kind, read = ("OpenVINO", _ir_signature) if path.suffix == OPENVINO_SUFFIX else ("ONNX", _signature)
    try:
        signature = read(path)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
        raise PipelineError(f"{path} is no {kind} graph, or a part of one", fix=_FIX) from error
    for name, size in signature.external.items() if external else ():
        _check_external(path, name, size)
    return signature


def _check_external(path: Path, name: str, size: int) -> None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise PipelineError(f"{path} points to {name!r}, outside its own directory", fix=_FIX)
    file = path.parent / name
    if not file.is_file():
        raise PipelineError(f"{file}, which holds weights of {path.name}, is missing", fix=_FIX)
    if (has := file.stat().st_size) < size:
        given = f"{file} has {has} bytes, but the weights of {path.name} end at byte {size}"
        raise PipelineError(given, fix=_FIX)


def read_graph_fields(path: Path) -> Fields:
    """The GraphProto of an ONNX file, taken apart one level deep. Raises ValueError, IndexError, KeyError."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return parse_fields(parse_fields(data)[7][0])


def _signature(path: Path) -> Signature:
    graph = read_graph_fields(path)
    tensors = [parse_fields(tensor) for tensor in graph[5]]
    weights = {first_text(tensor[8]): tensor[2][0] for tensor in tensors}
    # Before version 4 of the format, initializers were listed among the inputs as well.
    inputs = {name: kind for name, kind in map(_read_value, graph[11]) if name not in weights}
    halves = {name for name, kind in weights.items() if kind in _HALVES}
    halves |= {name for name, kind in inputs.items() if kind[1][0] in _HALVES}
    return Signature(
        inputs={name: _axes(kind) for name, kind in inputs.items()},
        outputs=tuple(name for name, _ in map(_read_value, graph[12])),
        external=_external(tensors),
        arithmetic="mixed" if any(_is_reduced(parse_fields(node), halves) for node in graph[1]) else "f32",
    )


def _is_reduced(node: Fields, halves: set[str]) -> bool:
    """Whether the node computes in less than float32. Adds to `halves` the halves that it hands on."""
    kind = first_text(node[4])
    takes = _cast_type(node) in _HALVES if kind == "Cast" else any(str(name, "utf-8") in halves for name in node[1])
    if takes and kind in _PASS_THROUGH:
        halves.update(str(name, "utf-8") for name in node[2])
    return kind.startswith(_INTEGER) or (takes and kind not in _PASS_THROUGH)


def _cast_type(cast: Fields) -> int | None:
    """The element type that a Cast makes."""
    attributes = map(parse_fields, cast[5])
    return next((attribute[3][0] for attribute in attributes if first_text(attribute[1]) == "to"), None)


def _external(tensors: list[Fields]) -> dict[str, int]:
    ends: dict[str, int] = {}
    for tensor in tensors:
        if tensor[14] == [_EXTERNAL]:
            entries = [parse_fields(entry) for entry in tensor[13]]
            place = {first_text(entry[1]): first_text(entry[2]) for entry in entries}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            ends[place["location"]] = max(end, ends.get(place["location"], 0))
    return ends


def _read_value(value: memoryview) -> tuple[str, Fields]:
    """A graph's input or output: its name, and its tensor type as fields (1: element type, 2: shape)."""
    info = parse_fields(value)
    return first_text(info[1]), parse_fields(parse_fields(info[2][0])[1][0])


def _axes(kind: Fields) -> Axes:
    dimensions = [parse_fields(dimension) for dimension in parse_fields(kind[2][0])[1]] if kind[2] else []
    return tuple(axis[1][0] if axis[1] else first_text(axis[2]) if axis[2] else None for axis in dimensions)


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
    """A tensor may have several names; the layer's own is preferred."""
    names = parameter.findall("./output/port")[0].attrib.get("names", parameter.attrib["name"]).split(",")
    return parameter.attrib["name"] if parameter.attrib["name"] in names else names[0]


def _result_name(result: ElementTree.Element) -> str:
    own = result.attrib["name"].partition("/sink_port_")[0]
    names = result.attrib.get("output_names", own).split(",")
    return own if own in names else names[0]


def _ir_axes(parameter: ElementTree.Element) -> Axes:
    shape = parameter.findall("data")[0].attrib["shape"]
    return tuple(int(axis) if axis.isdigit() else None for axis in shape.split(",") if axis)
