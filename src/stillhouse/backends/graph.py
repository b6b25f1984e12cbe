"""ONNX graphs whose weights lie in a safetensors file: initializers are pointers into the file beside the graph.

Runtimes read external data at any byte offset of any file, so they can read a safetensors file directly. They refuse a
file outside the graph's own directory, also one that a symbolic link in the directory points to.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.safetensors_index import StoredTensor
from stillhouse.backends.signature import read_signature

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_STORED = {1: "F32", 10: "F16", 16: "BF16"}  # the keys are the values of TensorProto.FLOAT, FLOAT16 and BFLOAT16
_ELEMENT_TYPES = {dtype: element_type for element_type, dtype in _STORED.items()}


def load_graph(path: Path) -> "ModelProto":
    """Read an ONNX file into a ModelProto. Weights in other files are not read, so the model may have any size.

    Raises:
        PipelineError: the file is missing or no graph.
        RuntimeMissing: onnx is not installed.
    """
    read_signature(path, external=False)
    onnx = require("onnx")
    with translate_errors("onnx", path, "read"):
        model: ModelProto = onnx.load(str(path), load_external_data=False)
    return model


def load_external_data(tensor: "TensorProto", folder: Path) -> None:
    """Read the values of an initializer from its external file in `folder` into the tensor.

    A tensor without external data stays unchanged. onnx's own reader is not used, because it refuses a file that has a
    second hard link. `stillhouse accelerate` makes such links to large files in its working directory.
    """
    if not tensor.external_data:
        return
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", "0")))
        values = file.read(int(place["length"]) if "length" in place else -1)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = values


def link_tensor(tensor: "TensorProto", stored: StoredTensor, location: str) -> "list[NodeProto]":
    """Replace the values of a floating-point initializer by a pointer to a stored tensor.

    Args:
        tensor: changed in place. Where the stored element type differs, the tensor is renamed to `<name>.stored`.
        stored: position and type of the values in the weights file.
        location: path of the weights file, relative to the graph's directory.

    Returns:
        A list with the Cast from the stored to the old element type, whose output has the initializer's name; the
        caller puts it before all other nodes. An empty list where the element types are equal.
    """
    name, element_type = tensor.name, tensor.data_type
    is_cast = stored.dtype != _STORED[element_type]
    source = f"{name}.stored" if is_cast else name
    tensor.CopyFrom(type(tensor)(name=source, data_type=_ELEMENT_TYPES[stored.dtype], dims=stored.shape))
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return [require("onnx.helper").make_node("Cast", [source], [name], to=element_type)] if is_cast else []
