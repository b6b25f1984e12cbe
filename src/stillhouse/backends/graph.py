"""ONNX graphs whose weights lie in a safetensors file: initializers are pointers into the file beside the graph.

Runtimes take external data at any byte of any file, so a safetensors file serves as it is. They refuse a file that
lies, symbolic links resolved, outside the graph's own directory.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.safetensors_index import StoredTensor
from stillhouse.backends.signature import read_signature

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_STORED = {1: "F32", 10: "F16", 16: "BF16"}  # TensorProto.FLOAT, FLOAT16, BFLOAT16
_ELEMENT_TYPES = {dtype: element_type for element_type, dtype in _STORED.items()}


def load_graph(path: Path) -> "ModelProto":
    """Read a graph of any size, without the values that lie in other files.

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

    A tensor without external data stays as it is. onnx's own reader refuses a file that has a second hard link, as
    large files of a sweep's directory have.
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
    """Replace the values of a floating initializer by a pointer to a stored tensor.

    Args:
        tensor: changed in place. Where the stored element type is another one, it is renamed to `<name>.stored`.
        stored: where the values lie.
        location: path of the weights file, relative to the graph's directory.

    Returns:
        The Cast that gives the initializer's name its old element type; it belongs before all other nodes. No node
        where the element types are equal.
    """
    name, element_type = tensor.name, tensor.data_type
    is_cast = stored.dtype != _STORED[element_type]
    source = f"{name}.stored" if is_cast else name
    tensor.CopyFrom(type(tensor)(name=source, data_type=_ELEMENT_TYPES[stored.dtype], dims=stored.shape))
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return [require("onnx.helper").make_node("Cast", [source], [name], to=element_type)] if is_cast else []
