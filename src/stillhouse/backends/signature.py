"""What an ONNX file says of itself, read without any runtime: inputs, outputs, files beside it, arithmetic.

A file is refused here with its name, before a runtime refuses it with a stack of its own sources. The numbers of the
fields are those of onnx.proto3; the encoding is protobuf's (protobuf.dev/programming-guides/encoding).
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from stillhouse.errors import PipelineError

Axes: TypeAlias = tuple[int | str | None, ...]
_Fields: TypeAlias = Mapping[int, list[Any]]
_HALVES = {10, 16}  # TensorProto.FLOAT16, BFLOAT16
_EXTERNAL = 1  # TensorProto.DataLocation
# These hand numbers on without computing with them, so weights stored as halves may pass through.
_CARRIERS = {"Cast", "Identity", "Transpose", "Reshape", "Gather"}
_INTEGER = ("QLinear", "Quantize", "Dequantize", "DynamicQuantize", "ConvInteger", "MatMulInteger", "MatMulNBits")


@dataclass(frozen=True, slots=True)
class Signature:
    """An ONNX file from outside.

    Args:
        inputs: axes by input name: a length, the axis's name, or None where it has neither.
        outputs: names, in order.
        external: for each file that the weights lie in, relative to the graph's directory: the bytes it must have.
        arithmetic: "f32", or "mixed" where a node computes with halves or small integers.
    """

    inputs: Mapping[str, Axes]
    outputs: tuple[str, ...]
    external: Mapping[str, int]
    arithmetic: str


def read_signature(path: Path, *, external: bool = True) -> Signature:
    """Read the file at `path` and, with `external`, look whether the files that it points into are there, and whole.

    Raises:
        PipelineError: the file is missing or no ONNX graph, or its weights are missing or cut short.
    """
    if not path.is_file():
        raise PipelineError(f"there is no file {path}", fix="import the pipeline again")
    try:
        signature = _signature(path)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise PipelineError(f"{path} is no ONNX graph, or a part of one", fix="import the pipeline again") from error
    for name, size in signature.external.items() if external else ():
        _check_external(path, name, size)
    return signature


def _check_external(path: Path, name: str, size: int) -> None:
    file = path.parent / name
    if not file.is_file():
        raise PipelineError(f"{file}, which holds weights of {path.name}, is missing", fix="import the pipeline again")
    if (has := file.stat().st_size) < size:
        given = f"{file} has {has} bytes, but the weights of {path.name} end at byte {size}"
        raise PipelineError(given, fix="import the pipeline again")


def _signature(path: Path) -> Signature:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    graph = _fields(_fields(data)[7][0])
    tensors = [_fields(tensor) for tensor in graph[5]]
    weights = {_text(tensor[8]): tensor[2][0] for tensor in tensors}
    # Before version 4 of the format, initializers were listed among the inputs as well.
    inputs = {name: kind for name, kind in map(_value, graph[11]) if name not in weights}
    halves = {name for name, kind in weights.items() if kind in _HALVES}
    halves |= {name for name, kind in inputs.items() if kind[1][0] in _HALVES}
    return Signature(
        inputs={name: _axes(kind) for name, kind in inputs.items()},
        outputs=tuple(name for name, _ in map(_value, graph[12])),
        external=_external(tensors),
        arithmetic="mixed" if any(_reduced(_fields(node), halves) for node in graph[1]) else "f32",
    )


def _reduced(node: _Fields, halves: set[str]) -> bool:
    """Whether the node computes in less than float32. Adds to `halves` the halves that it hands on."""
    kind = _text(node[4])
    takes = _target(node) in _HALVES if kind == "Cast" else any(str(name, "utf-8") in halves for name in node[1])
    if takes and kind in _CARRIERS:
        halves.update(str(name, "utf-8") for name in node[2])
    return kind.startswith(_INTEGER) or (takes and kind not in _CARRIERS)


def _target(cast: _Fields) -> int | None:
    """The element type that a Cast makes."""
    attributes = map(_fields, cast[5])
    return next((attribute[3][0] for attribute in attributes if _text(attribute[1]) == "to"), None)


def _external(tensors: list[_Fields]) -> dict[str, int]:
    ends: dict[str, int] = {}
    for tensor in tensors:
        if tensor[14] == [_EXTERNAL]:
            entries = [_fields(entry) for entry in tensor[13]]
            place = {_text(entry[1]): _text(entry[2]) for entry in entries}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            ends[place["location"]] = max(end, ends.get(place["location"], 0))
    return ends


def _value(value: memoryview) -> tuple[str, _Fields]:
    """A graph's input or output: its name, and its tensor type as fields (1: element type, 2: shape)."""
    info = _fields(value)
    return _text(info[1]), _fields(_fields(info[2][0])[1][0])


def _axes(kind: _Fields) -> Axes:
    dimensions = [_fields(dimension) for dimension in _fields(kind[2][0])[1]] if kind[2] else []
    return tuple(axis[1][0] if axis[1] else _text(axis[2]) if axis[2] else None for axis in dimensions)


def _text(values: list[Any]) -> str:
    return str(values[0], "utf-8") if values else ""


def _fields(message: memoryview) -> _Fields:
    fields: defaultdict[int, list[Any]] = defaultdict(list)
    for number, value in _walk(message):
        fields[number].append(value)
    return fields


def _walk(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field of a message: its number and its value, an int or the bytes of what is inside."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        value: int | memoryview
        if (wire := tag & 7) == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + length], at + length
        if at > end:
            raise ValueError("it ends in the middle of a field")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
