"""Positions of tensors in a .safetensors file: 8 bytes with the header's length, a JSON header, then all values."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import PipelineError

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Type, shape and position of a tensor in a .safetensors file.

    Args:
        dtype: safetensors type: "F32", "BF16", ...
        shape: shape of the values.
        offset: position of the values, in bytes from the start of the file.
        length: number of bytes of the values.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_safetensors_index(path: Path) -> dict[str, StoredTensor]:
    """Return type, shape and position of every tensor of a .safetensors file, by name. Values are not read.

    Raises:
        PipelineError: the file is missing, cut short, or no safetensors file.
    """
    if not path.is_file():
        raise PipelineError(f"there is no file {path}", fix="download or copy the file again")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        start = 8 + length
        layout = {name: _stored_tensor(entry, start) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{path} is no safetensors file, or is cut short", fix="download or copy the file again"
        ) from error
    for name, tensor in layout.items():
        if not start <= tensor.offset <= tensor.offset + tensor.length <= size:
            raise PipelineError(
                f"{path} is cut short: it has {size} bytes, "
                f"but tensor {name} ends at byte {tensor.offset + tensor.length}",
                fix="download or copy the file again",
            )
    return layout


def read_tensor(path: Path, tensor: StoredTensor) -> NDArray[Any]:
    """Read the values of a tensor from a .safetensors file and return them as an array of the tensor's shape.

    bfloat16, which NumPy does not have, is returned as float32.

    Raises:
        PipelineError: NumPy has no type for the values.
    """
    if tensor.dtype not in _DTYPES:
        raise PipelineError(f"{path} holds a tensor of type {tensor.dtype}", allowed=", ".join(_DTYPES))
    flat = np.fromfile(path, _DTYPES[tensor.dtype], math.prod(tensor.shape), offset=tensor.offset)
    if tensor.dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(tensor.shape)


def _stored_tensor(entry: dict[str, Any], start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype in _DTYPES and end - begin != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError
    return StoredTensor(dtype, shape, start + begin, end - begin)
