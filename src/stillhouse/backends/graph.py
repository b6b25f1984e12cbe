"""ONNX in and out. A graph of ours holds no weights: its initializers point into the safetensors file beside it.

Both runtimes take external data at any byte of any file, so a safetensors file serves as it is. Both refuse a file
that lies, links followed, outside the graph's own directory.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.runtime import require, translate_errors
from stillhouse.backends.safetensors_index import StoredTensor, read_safetensors_index, read_tensor
from stillhouse.backends.signature import read_signature
from stillhouse.core import Array
from stillhouse.errors import PipelineError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

_FLOAT = 1  # TensorProto.FLOAT
_STORED = {_FLOAT: "F32", 10: "F16", 16: "BF16"}
_KINDS = {dtype: kind for kind, dtype in _STORED.items()}
_SMALL = 1024
"""Bytes. Below it, equal values with another name are a coincidence, and shape inference wants the value inline."""
_INLINE = 16 << 20
"""Bytes of weights that may stay in the .onnx itself; protobuf's own limit is 2 GiB."""
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class WeightMapping:
    """Where a graph's initializers lie: bytes in the weights file, bytes elsewhere, and the names of the latter."""

    mapped_bytes: int
    inline_bytes: int
    unmapped: tuple[str, ...]

    @property
    def mapped_fraction(self) -> float:
        """The part of the bytes that is mapped, from 0 to 1."""
        return self.mapped_bytes / max(self.mapped_bytes + self.inline_bytes, 1)


def save_graph(
    model: "ModelProto",
    path: Path,
    weights: Path,
    *,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
    base: Path | None = None,
) -> WeightMapping:
    """Point the model into `weights` (see `point_into`) and write it, whole or not at all.

    What cannot be mapped stays in the .onnx or, above 16 MiB, goes to `<path>.data` as external data of its own.

    Raises:
        PipelineError: the weights do not lie in the graph's directory or below it, or cannot be read.
    """
    try:
        location = weights.resolve().relative_to(path.parent.resolve()).as_posix()
    except ValueError:
        given = f"{weights} lies outside {path.parent}, where no runtime reads it"
        raise PipelineError(given, fix="put the weights beside the graph") from None
    placement = link_weights(model, weights, location=location, prefix=prefix, names=names, base=base)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _INLINE:
        _spill(model, path.with_name(f"{path.name}.data"))
    with _atomic_replace(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return placement


def load_graph(path: Path) -> "ModelProto":
    """Read a graph of any size, without the values that lie in other files.

    Raises:
        PipelineError: the file is missing or no graph.
    """
    read_signature(path, external=False)
    onnx = require("onnx")
    with translate_errors("onnx", path, "read"):
        model: ModelProto = onnx.load(str(path), load_external_data=False)
    return model


def load_external_data(tensor: "TensorProto", folder: Path) -> None:
    """Bring a tensor's values in from the file of `folder` that they lie in, if they do.

    onnx's own reader refuses a file that has a second hard link, as a large one of a sweep's directory has.
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


def link_weights(
    model: "ModelProto",
    weights: Path,
    *,
    location: str,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
    base: Path | None = None,
) -> WeightMapping:
    """Replace each floating initializer whose values `weights` holds by a pointer into that file, in place.

    A stored tensor is looked up by the initializer's name, through `names` or without `prefix`, then by its values;
    as it lies, or transposed. Where it is float16 or bfloat16 and casts to exactly the float32 values of the
    initializer, a Cast behind the pointer keeps the initializer's name, so that no other node changes.

    Args:
        model: its initializers may themselves lie in files of the directory `base`; they are read one at a time.
        weights: a .safetensors file.
        location: its path as the graph will name it, relative to the graph's directory.
        prefix: what the export put before the names of the stored tensors.
        names: from initializer to stored tensor, where they differ by more than the prefix.
        base: where the model's external data lies at present.

    Raises:
        PipelineError: `weights` is missing, cut short or no safetensors file.
    """
    shelf = _StoredTensors(weights)
    fed = {value.name for value in model.graph.input}
    links: list[NodeProto] = []
    mapped, strays = 0, dict[str, int]()
    for tensor in model.graph.initializer:
        load_external_data(tensor, base or Path())
        name = (names or {}).get(tensor.name, tensor.name.removeprefix(prefix))
        match = None if tensor.name in fed else shelf.find(name, tensor)
        if match:
            stored, transposed = match
            links += link_tensor(tensor, stored, location, transposed=transposed)
            mapped += stored.length
        else:
            strays[tensor.name] = tensor.ByteSize()
    nodes = [*links, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return WeightMapping(mapped, sum(strays.values()), tuple(strays))


def link_tensor(
    tensor: "TensorProto", stored: StoredTensor, location: str, *, transposed: bool = False
) -> "list[NodeProto]":
    """Point a floating initializer at what is stored, and return the nodes that make its values of that.

    The nodes, none where the stored type is the initializer's own, end in the initializer's old name; they belong
    before all others.
    """
    name, kind = tensor.name, tensor.data_type
    steps: list[tuple[str, dict[str, Any]]] = []
    if stored.dtype != _STORED[kind]:
        steps.append(("Cast", {"to": kind}))
    if transposed:
        steps.append(("Transpose", {"perm": [1, 0]}))
    values = [*(f"{name}.stored{place or ''}" for place in range(len(steps))), name]
    tensor.CopyFrom(type(tensor)(name=values[0], data_type=_KINDS[stored.dtype], dims=stored.shape))
    _set_external(tensor, location, stored.offset, stored.length)
    make = require("onnx.helper").make_node
    return [
        make(step, [before], [after], **attributes)
        for (step, attributes), before, after in zip(steps, values[:-1], values[1:], strict=True)
    ]


class _StoredTensors:
    """The floating tensors of a weights file, found by name or by what they hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = {n: stored for n, stored in read_safetensors_index(path).items() if stored.dtype in _KINDS}
        self._by_value: dict[tuple[int, ...], dict[bytes, StoredTensor]] = {}

    def find(self, name: str, tensor: "TensorProto") -> tuple[StoredTensor, bool] | None:
        """The stored tensor with these values, and whether it holds them transposed."""
        if tensor.data_type not in _STORED:
            return None
        array = require("onnx.numpy_helper").to_array(tensor).astype(np.float32, copy=False)
        views = ((array, False), (array.T, True)) if array.ndim == 2 else ((array, False),)
        for search in (partial(self._by_name, name), self._by_content):
            for view, transposed in views:
                stored = search(view)
                if stored and (tensor.data_type == _FLOAT or stored.dtype == _STORED[tensor.data_type]):
                    return stored, transposed
        return None

    def _by_name(self, name: str, array: Array) -> StoredTensor | None:
        stored = self.layout.get(name)
        same = stored and stored.shape == array.shape and np.array_equal(_bits(self._values(stored)), _bits(array))
        return stored if same else None

    def _by_content(self, array: Array) -> StoredTensor | None:
        if array.nbytes < _SMALL:
            return None
        if array.shape not in self._by_value:
            alike = [self.layout[name] for name in sorted(self.layout) if self.layout[name].shape == array.shape]
            self._by_value[array.shape] = {_digest(self._values(stored)): stored for stored in reversed(alike)}
        return self._by_value[array.shape].get(_digest(array))

    def _values(self, stored: StoredTensor) -> Array:
        return read_tensor(self.path, stored).astype(np.float32, copy=False)


def _bits(array: Array) -> NDArray[np.uint32]:
    return array.view(np.uint32)


def _digest(array: Array) -> bytes:
    return blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()


def _set_external(tensor: "TensorProto", location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _spill(model: "ModelProto", path: Path) -> None:
    """Move every initializer that is not small out of the model, to a file of its own."""
    with _atomic_replace(path) as temporary, temporary.open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= _SMALL:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset = file.tell()
                _set_external(tensor, path.name, offset, file.write(tensor.raw_data))


@contextmanager
def _atomic_replace(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place if all goes well and is removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
