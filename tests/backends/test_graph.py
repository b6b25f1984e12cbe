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
from stillhouse.backends.graph import link_weights, load_external_data, load_graph, save_graph
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
    placement = save_graph(unet(weights), path, file)
    assert placement.mapped_bytes == sum(tensor.length for tensor in read_safetensors_index(file).values())
    assert not set(placement.unmapped) & set(weights)
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
    save_graph(unet(weights), room / "model.onnx", room / "w.safetensors")
    feeds = unet_feeds(1, seed=seed)
    got = open_runner(room / "model.onnx", backend)(feeds)["out_sample"]
    assert relative_error(got, unet_float64(feeds, weights)) < 1e-5


@both
def test_tensors_may_lie_beyond_two_gibibytes(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    _write_far(file, LINEAR, gap=(2 << 30) + 12345)
    save_graph(linear(LINEAR), tmp_path / "model.onnx", file)
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
    save_graph(linear(LINEAR), tmp_path / "model.onnx", tmp_path / "below/w.safetensors")
    assert open_runner(tmp_path / "model.onnx", backend)({"x": np.ones((1, 24), np.float32)})["y"].shape == (1, 16)


def test_weights_elsewhere_are_refused_since_no_runtime_reads_them(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"linear.weight": LINEAR}, tmp_path / "w.safetensors")
    (tmp_path / "unet/link.safetensors").symlink_to(tmp_path / "w.safetensors")
    for weights in (tmp_path / "w.safetensors", tmp_path / "unet/link.safetensors"):
        with pytest.raises(PipelineError, match="lies outside"):
            save_graph(linear(LINEAR), tmp_path / "unet/model.onnx", weights)
    assert [entry.name for entry in (tmp_path / "unet").iterdir()] == ["link.safetensors"]


@both
def test_a_graph_that_points_out_of_its_directory_is_refused(backend: str, tmp_path: Path) -> None:
    model = linear(LINEAR)
    save_file({"linear.weight": LINEAR}, tmp_path / "w.safetensors")
    link_weights(model, tmp_path / "w.safetensors", location="../w.safetensors")
    (tmp_path / "unet").mkdir()
    with pytest.raises(PipelineError, match=r"w\.safetensors', outside its own directory"):
        open_runner(write_model(model, tmp_path / "unet/model.onnx"), backend)


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_weight_that_is_stored_transposed_is_found(backend: str, dtype: type, tmp_path: Path) -> None:
    """torch keeps linear weights as [out, in]; exporters may fold the transposition into the initializer."""
    weight, file = LINEAR.astype(dtype).astype(np.float32), tmp_path / "w.safetensors"
    save_file({"proj.weight": np.ascontiguousarray(weight.T, dtype)}, file)
    placement = save_graph(linear(weight, "onnx::MatMul_17"), tmp_path / "model.onnx", file)
    assert (placement.unmapped, placement.mapped_fraction) == ((), 1.0)
    x = np.ones((3, 24), np.float32)
    assert (
        relative_error(open_runner(tmp_path / "model.onnx", backend)({"x": x})["y"], x.astype(np.float64) @ weight)
        < 1e-5
    )


def test_names_are_tried_before_values(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a.weight": LINEAR, "b.weight": LINEAR}, file)
    layout = read_safetensors_index(file)
    for name, prefix, names in (
        ("b.weight", "", {}),
        ("wrapped.b.weight", "wrapped.", {}),
        ("val_3", "", {"val_3": "b.weight"}),
    ):
        model = linear(LINEAR, name)
        link_weights(model, file, location=file.name, prefix=prefix, names=names)
        assert _offset(model) == layout["b.weight"].offset
    model = linear(LINEAR, "val_3")
    link_weights(model, file, location=file.name)
    assert _offset(model) == layout["a.weight"].offset


def test_other_values_small_coincidences_and_integers_stay_inside(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"linear.weight": LINEAR, "zeros": np.zeros(9, np.float32), "ids": np.arange(900)}, file)
    inside: dict[str, NDArray[Any]] = {
        "linear.weight": LINEAR + 1,
        "other": np.zeros(9, np.float32),
        "ids": np.arange(900),
    }
    model = linear(LINEAR)
    del model.graph.initializer[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in inside.items())
    before = model.SerializeToString()
    placement = link_weights(model, file, location=file.name)
    assert (placement.mapped_bytes, placement.mapped_fraction, set(placement.unmapped)) == (0, 0.0, set(inside))
    assert model.SerializeToString() == before


def test_a_cast_is_used_only_where_it_gives_the_very_values(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"linear.weight": LINEAR.astype(np.float16)}, file)
    assert link_weights(linear(LINEAR), file, location=file.name).mapped_bytes == 0
    half = linear(LINEAR)
    half.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(LINEAR.astype(np.float16), "linear.weight"))
    assert link_weights(half, file, location=file.name).mapped_fraction == 1.0
    assert [step.op_type for step in half.graph.node] == ["MatMul"]
    save_file({"linear.weight": LINEAR.astype(np.float16).astype(np.float32)}, file)
    half.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(LINEAR.astype(np.float16), "linear.weight"))
    assert link_weights(half, file, location=file.name).mapped_bytes == 0


def test_a_weight_that_is_an_input_too_is_left_alone(tmp_path: Path) -> None:
    file, model = tmp_path / "w.safetensors", linear(LINEAR)
    save_file({"linear.weight": LINEAR}, file)
    model.graph.input.append(onnx.helper.make_tensor_value_info("linear.weight", 1, LINEAR.shape))
    assert link_weights(model, file, location=file.name).mapped_bytes == 0


@both
def test_what_is_large_and_not_mapped_goes_to_a_second_file(backend: str, tmp_path: Path) -> None:
    large = np.random.default_rng(0).standard_normal((24, 200_000)).astype(np.float32)
    file, path = tmp_path / "w.safetensors", tmp_path / "model.onnx"
    save_file({"other": LINEAR}, file)
    placement = save_graph(linear(large), path, file)
    assert (placement.mapped_bytes, placement.unmapped) == (0, ("linear.weight",))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data", "w.safetensors"]
    assert path.stat().st_size < 1000
    x = np.ones((1, 24), np.float32)
    assert relative_error(open_runner(path, backend)({"x": x})["y"], x.astype(np.float64) @ large) < 1e-5


def test_a_model_whose_weights_lie_in_another_file_is_moved_one_tensor_at_a_time(tmp_path: Path) -> None:
    """As an exporter leaves a network that is too large for one protobuf."""
    exported, home = tmp_path / "exported", tmp_path / "home"
    exported.mkdir()
    home.mkdir()
    onnx.save(unet(), exported / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    save_file(unet_weights(), home / "w.safetensors")
    model = load_graph(exported / "model.onnx")
    placement = save_graph(model, home / "model.onnx", home / "w.safetensors", base=exported)
    assert not set(placement.unmapped) & set(unet_weights())
    feeds = unet_feeds(1)
    got = open_runner(home / "model.onnx")(feeds)["out_sample"]
    assert relative_error(got, unet_float64(feeds, unet_weights())) < 1e-5


def test_what_was_saved_is_loaded_with_its_values(tmp_path: Path) -> None:
    weights = rounded(np.float16)
    save_file({name: array.astype(np.float16) for name, array in weights.items()}, tmp_path / "w.safetensors")
    save_graph(unet(weights), tmp_path / "model.onnx", tmp_path / "w.safetensors")
    (tmp_path / "elsewhere").hardlink_to(tmp_path / "w.safetensors")  # which onnx itself would not read
    loaded = {tensor.name: tensor for tensor in load_graph(tmp_path / "model.onnx").graph.initializer}
    for name, array in weights.items():
        tensor = loaded[f"{name}.stored"]
        load_external_data(tensor, tmp_path)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array.astype(np.float16))
    (tmp_path / "w.safetensors").unlink()
    assert load_graph(tmp_path / "model.onnx").graph.node


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, path = tmp_path / "w.safetensors", tmp_path / "model.onnx"
    save_file({"linear.weight": LINEAR}, file)
    save_graph(linear(LINEAR), path, file)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_graph(linear(LINEAR), path, file)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "w.safetensors"]


def _offset(model: onnx.ModelProto) -> int:
    return int({entry.key: entry.value for entry in model.graph.initializer[0].external_data}["offset"])


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
