"""Graphs without weights: their initializers point into a safetensors file, and every runtime follows them there."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from safetensors.numpy import save_file

from stillhouse.backends import open_runner
from stillhouse.backends.graph import load_external_data, load_graph
from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.errors import PipelineError
from tests.backends.networks import (
    BACKENDS,
    make_model,
    node,
    relative_error,
    unet,
    unet_feeds,
    unet_float64,
    unet_weights,
    write_linked,
    write_model,
)

both = pytest.mark.parametrize("backend", BACKENDS)
LINEAR = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)


def linear(weight: NDArray[Any], name: str = "linear.weight") -> onnx.ModelProto:
    rows, columns = weight.shape
    return make_model(
        [node("MatMul", ["x", name], ["y"])], [("x", ["n", rows])], [("y", ["n", columns])], {name: weight}
    )


def rounded(dtype: type) -> dict[str, NDArray[np.float32]]:
    return {name: array.astype(dtype).astype(np.float32) for name, array in unet_weights().items()}


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_a_weightless_graph_computes_what_the_full_one_does(backend: str, dtype: type, tmp_path: Path) -> None:
    weights, path, file = rounded(dtype), tmp_path / "model.onnx", tmp_path / "weights.safetensors"
    save_file({name: array.astype(dtype) for name, array in weights.items()}, file)
    write_linked(unet(weights), path, file)
    assert path.stat().st_size < 4000
    feeds = unet_feeds(2)
    runner = open_runner(path, backend)
    whole = open_runner(write_model(unet(weights), tmp_path / "whole.onnx"), backend)
    assert runner.precision == "f32"
    assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, weights)) < 1e-5
    np.testing.assert_array_equal(runner(feeds)["out_sample"], whole(feeds)["out_sample"])


@both
@settings(max_examples=12, deadline=None)
@given(padding=st.integers(0, 7), seed=st.integers(0, 99))
def test_tensors_may_lie_at_any_byte(
    backend: str, tmp_path_factory: pytest.TempPathFactory, padding: int, seed: int
) -> None:
    room = tmp_path_factory.mktemp("bytes")
    weights = unet_weights(seed)
    _write_unaligned(room / "w.safetensors", weights, padding)
    write_linked(unet(weights), room / "model.onnx", room / "w.safetensors")
    feeds = unet_feeds(1, seed=seed)
    got = open_runner(room / "model.onnx", backend)(feeds)["out_sample"]
    assert relative_error(got, unet_float64(feeds, weights)) < 1e-5


@both
def test_tensors_may_lie_beyond_two_gibibytes(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    _write_far(file, LINEAR, gap=(2 << 30) + 12345)
    write_linked(linear(LINEAR), tmp_path / "model.onnx", file)
    x = np.ones((2, 24), np.float32)
    assert (
        relative_error(open_runner(tmp_path / "model.onnx", backend)({"x": x})["y"], x.astype(np.float64) @ LINEAR)
        < 1e-5
    )


@both
@pytest.mark.large
def test_graphs_may_have_more_than_two_gibibytes_of_weights(backend: str, tmp_path: Path) -> None:
    """A lookup in a table of 2.1 GiB that is one hole on disk, but for its last row."""
    rows, columns, file = (2 << 30) // 4096 + 30_000, 1024, tmp_path / "w.safetensors"
    last = np.arange(columns, dtype=np.float32)
    header = {"table": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}}
    _write_header(file, header)
    with file.open("r+b") as stream:
        stream.seek((rows - 1) * columns * 4, os.SEEK_END)
        stream.write(last.tobytes())
    model = make_model(
        [node("Gather", ["table", "ids"], ["y"])],
        [("ids", ["n"], onnx.TensorProto.INT64)],
        [("y", ["n", columns])],
        {"table": np.zeros((1, columns), np.float32)},
    )
    stored = read_safetensors_index(file)["table"]
    table = onnx.TensorProto(name="table", data_type=1, dims=stored.shape, data_location="EXTERNAL")
    for key, value in (("location", file.name), ("offset", stored.offset), ("length", stored.length)):
        table.external_data.add(key=key, value=str(value))
    model.graph.initializer[0].CopyFrom(table)
    runner = open_runner(write_model(model, tmp_path / "model.onnx"), backend)
    np.testing.assert_array_equal(runner({"ids": np.array([0, rows - 1])})["y"], [np.zeros(columns), last])


@both
def test_weights_may_lie_in_a_directory_below_the_graph(backend: str, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    save_file({"linear.weight": LINEAR}, tmp_path / "below/w.safetensors")
    write_linked(linear(LINEAR), tmp_path / "model.onnx", tmp_path / "below/w.safetensors")
    assert open_runner(tmp_path / "model.onnx", backend)({"x": np.ones((1, 24), np.float32)})["y"].shape == (1, 16)


@both
def test_a_graph_that_points_out_of_its_directory_is_refused(backend: str, tmp_path: Path) -> None:
    model = linear(LINEAR)
    save_file({"linear.weight": LINEAR}, tmp_path / "w.safetensors")
    (tmp_path / "unet").mkdir()
    write_linked(model, tmp_path / "unet/model.onnx", tmp_path / "w.safetensors", "../w.safetensors")
    with pytest.raises(PipelineError, match=r"w\.safetensors', outside its own directory"):
        open_runner(tmp_path / "unet/model.onnx", backend)


def test_what_was_saved_is_loaded_with_its_values(tmp_path: Path) -> None:
    weights = rounded(np.float16)
    save_file({name: array.astype(np.float16) for name, array in weights.items()}, tmp_path / "w.safetensors")
    write_linked(unet(weights), tmp_path / "model.onnx", tmp_path / "w.safetensors")
    (tmp_path / "elsewhere").hardlink_to(tmp_path / "w.safetensors")  # which onnx itself would not read
    loaded = {tensor.name: tensor for tensor in load_graph(tmp_path / "model.onnx").graph.initializer}
    for name, array in weights.items():
        tensor = loaded[f"{name}.stored"]
        load_external_data(tensor, tmp_path)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array.astype(np.float16))
    (tmp_path / "w.safetensors").unlink()
    assert load_graph(tmp_path / "model.onnx").graph.node


def _write_header(path: Path, header: Mapping[str, object], padding: int = 0) -> None:
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def _write_unaligned(path: Path, tensors: Mapping[str, NDArray[np.float32]], padding: int) -> None:
    header, end = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end := end + array.nbytes]}
    _write_header(path, header, padding)
    with path.open("ab") as stream:
        stream.writelines(array.tobytes() for array in tensors.values())


def _write_far(path: Path, weight: NDArray[np.float32], gap: int) -> None:
    """The weight behind a hole of `gap` bytes, which takes no room on disk."""
    entry = {"dtype": "F32", "shape": weight.shape, "data_offsets": [gap, gap + weight.nbytes]}
    _write_header(path, {"linear.weight": entry})
    with path.open("r+b") as stream:
        stream.seek(gap, os.SEEK_END)
        stream.write(weight.tobytes())
