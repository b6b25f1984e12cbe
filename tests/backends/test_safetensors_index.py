"""A safetensors file is read as the safetensors library wrote it."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from stillhouse.backends.safetensors_index import read_safetensors_index, read_tensor
from stillhouse.errors import PipelineError

DTYPES = st.sampled_from(
    [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
)
SHAPES = arrays.array_shapes(min_dims=0, min_side=0, max_side=4)


@settings(max_examples=50)
@given(
    tensors=st.dictionaries(st.text(max_size=8).filter(lambda n: n != "__metadata__"), arrays.arrays(DTYPES, SHAPES))
)
def test_reads_what_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    layout = read_safetensors_index(path)
    assert layout.keys() == tensors.keys()
    for name, array in tensors.items():
        read = read_tensor(path, layout[name])
        assert (read.dtype, read.tobytes()) == (array.dtype, array.tobytes())
        stored = layout[name]
        assert path.read_bytes()[stored.offset : stored.offset + stored.length] == array.tobytes()


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    _write(path, {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, struct.pack("<HH", 0x3F80, 0xC040))
    np.testing.assert_array_equal(read_tensor(path, read_safetensors_index(path)["w"]), np.array([1, -3], np.float32))


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"w": []},
        {"w": {"dtype": "F32", "shape": [2]}},
        {"w": {**ENTRY, "shape": [3]}},
        {"w": {**ENTRY, "data_offsets": [0, 12]}},
        {"w": {**ENTRY, "data_offsets": [4, 12]}},
        {"w": {**ENTRY, "data_offsets": [-4, 4]}},
        {"w": {**ENTRY, "data_offsets": "08"}},
    ],
)
def test_headers_that_do_not_describe_the_file_are_refused(header: object, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    _write(path, header, bytes(8))
    with pytest.raises(PipelineError, match=path.name):
        read_safetensors_index(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 40, -1])
def test_a_part_of_a_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": np.ones(3, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PipelineError, match=path.name):
        read_safetensors_index(path)


def test_no_file_and_types_without_a_plain_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(PipelineError, match="there is no file"):
        read_safetensors_index(path)
    _write(path, {"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8))
    with pytest.raises(PipelineError, match="type F8_E4M3; allowed: F64, F32"):
        read_tensor(path, read_safetensors_index(path)["w"])


def _write(path: Path, header: object, buffer: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + buffer)
