"""Halves where they may be, float32 where they must not, and nothing clamped on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from stillhouse.backends import open_runner
from stillhouse.backends.layer_precisions import read_layer_precisions
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.signature import read_signature
from stillhouse.errors import InvalidRequest, PipelineError
from stillhouse.pipelines.load import find_pipeline
from tests.backends.networks import (
    BACKENDS,
    Value,
    make_model,
    node,
    unet,
    unet_feeds,
    unet_float64,
    unet_weights,
    write_model,
)


def sqnr(got: NDArray[Any], want: NDArray[Any]) -> float:
    return float(10 * np.log10((np.float64(want) ** 2).sum() / ((np.float64(want) - got) ** 2).sum()))


def write_float16(tmp_path: Path, model: onnx.ModelProto, keep: tuple[str, ...] = ()) -> Path:
    path = tmp_path / "half.onnx"
    convert_to_float16(write_model(model, tmp_path / "model.onnx"), path, keep=keep)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_computes_the_same_to_half_precision(backend: str, tmp_path: Path) -> None:
    """Rounding to 11 bits is noise of 2^-11 / sqrt(12) at most for a value, 77 dB below it; layers add theirs."""
    path, feeds = write_float16(tmp_path, unet()), unet_feeds(2)
    assert read_layer_precisions(path) == {"f16": 7}
    result = open_runner(path, backend)(feeds)["out_sample"]
    assert result.dtype == np.float32
    assert sqnr(result, unet_float64(feeds, unet_weights())) > 55


def test_inputs_and_outputs_are_as_they_were(tmp_path: Path) -> None:
    path = write_float16(tmp_path, unet())
    before, after = read_signature(tmp_path / "model.onnx"), read_signature(path)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert (before.arithmetic, after.arithmetic) == ("f32", "mixed")
    kinds = {value.type.tensor_type.elem_type for value in onnx.load(path).graph.input}
    assert kinds == {TensorProto.FLOAT}


def test_what_is_kept_stays_in_float32(tmp_path: Path) -> None:
    path = write_float16(tmp_path, unet(), keep=("a", "q", "mixed"))
    assert read_layer_precisions(path) == {"f16": 4, "f32": 3}
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["conv.weight"] == kinds["query.weight"] == TensorProto.FLOAT
    assert kinds["key.weight.half"] == kinds["out.weight.half"] == TensorProto.FLOAT16
    feeds = unet_feeds(1)
    assert sqnr(open_runner(path)(feeds)["out_sample"], unet_float64(feeds, unet_weights())) > 55
    with pytest.raises(InvalidRequest, match="no node 'queer'"):
        convert_to_float16(tmp_path / "model.onnx", path, keep=["queer"])


def test_an_overflow_is_infinite_in_weights_and_in_activations(tmp_path: Path) -> None:
    """By the standard's reference: onnxruntime computes products in float32 on x86, where 90000 is no overflow."""
    weights = {"w": np.diag([1, 1e5, 300]).astype(np.float32)}
    path = write_float16(
        tmp_path, make_model([node("MatMul", ["x", "w"], ["y"])], [("x", ["n", 3])], [("y", ["n", 3])], weights)
    )
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert np.isposinf(stored["w.half"][1, 1])
    x = np.array([[1, 1, 300]], np.float32)
    with np.errstate(all="ignore"):
        results: Any = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    assert not np.isfinite(results[0][0, 1:]).any()
    assert not np.isfinite(open_runner(path)({"x": x})["y"][0, 1])


def test_an_angle_keeps_its_fraction(tmp_path: Path) -> None:
    """In 11 bits 998.3 is 998.5; the sine of the difference is 0.2."""
    frequencies = np.exp(-np.log(1e4) * np.arange(16) / 16).astype(np.float32)
    nodes = [
        node("Unsqueeze", ["t", "axis"], ["column"]),
        node("Mul", ["column", "f"], ["angle"]),
        node("Sin", ["angle"], ["sine"]),
        node("Gemm", ["sine", "w"], ["y"], transB=1),
    ]
    weights = {"axis": np.array([1]), "f": frequencies, "w": np.eye(16, dtype=np.float32)}
    path = write_float16(tmp_path, make_model(nodes, [("t", ["n"])], [("y", ["n", 16])], weights))
    timesteps = np.linspace(0, 999, 37, dtype=np.float32)
    want = np.sin(timesteps[:, None].astype(np.float64) * frequencies)
    assert np.abs(open_runner(path)({"t": timesteps})["y"] - want).max() < 2**-10


def test_an_angle_that_a_product_of_positions_gives_keeps_its_fraction_too(tmp_path: Path) -> None:
    """Rotary embeddings; a layer with weights in front of the sine (here behind it) ends the exact part."""
    nodes = [
        node("Cast", ["positions"], ["p"], to=TensorProto.FLOAT),
        node("Expand", ["f", "shape"], ["frequencies"]),
        node("MatMul", ["p", "frequencies"], ["angle"]),
        node("Cos", ["angle"], ["cosine"]),
        node("MatMul", ["cosine", "w"], ["h"]),
        node("Sin", ["h"], ["y"]),
    ]
    weights = {"f": np.ones((1, 4), np.float32), "shape": np.array([1, 4]), "w": np.eye(4, dtype=np.float32)}
    inputs: list[Value] = [("positions", ["n", 1], TensorProto.INT64)]
    path = write_float16(tmp_path, make_model(nodes, inputs, [("y", ["n", 4])], weights))
    assert read_layer_precisions(path) == {"f16": 1, "f32": 1}
    positions = np.arange(0, 4000, 7)[:, None]
    want = np.sin(np.cos(np.repeat(positions, 4, 1).astype(np.float64)))
    assert np.abs(open_runner(path)({"positions": positions})["y"] - want).max() < 2**-10


@pytest.mark.parametrize("length", [2049, 4099])
def test_sizes_that_are_computed_in_floats_are_exact(length: int, tmp_path: Path) -> None:
    """Above 2048 not every whole number is a half, and an upsampling would get another size."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Shape", ["h"], ["shape"]),
        node("Cast", ["shape"], ["size"], to=TensorProto.FLOAT),
        node("Mul", ["size", "ones"], ["same"]),
        node("Cast", ["same"], ["whole"], to=TensorProto.INT64),
        node("Expand", ["b", "whole"], ["wide"]),
        node("Add", ["h", "wide"], ["y"]),
    ]
    weights = {"w": np.ones((1, 1), np.float32), "ones": np.ones(2, np.float32), "b": np.ones((1, 1), np.float32)}
    path = write_float16(tmp_path, make_model(nodes, [("x", ["n", 1])], [("y", ["n", 1])], weights))
    result = open_runner(path)({"x": np.ones((length, 1), np.float32)})["y"]
    np.testing.assert_array_equal(result, np.full((length, 1), 2))


def test_a_schema_that_wants_float32_gets_it(tmp_path: Path) -> None:
    """Resize takes halves, and scales in float32 alone."""
    nodes = [
        node("Conv", ["x", "w"], ["h"]),
        node("Sigmoid", ["h"], ["g"]),
        node("Resize", ["g", "", "scales"], ["y"], mode="nearest"),
    ]
    weights = {"w": np.ones((1, 1, 1, 1), np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    shape = [1, 1, "h", "w"]
    path = write_float16(tmp_path, make_model(nodes, [("x", shape)], [("y", [1, 1, "H", "W"])], weights))
    result = open_runner(path)({"x": np.zeros((1, 1, 2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(result, np.full((1, 1, 4, 6), 0.5))


def test_results_that_others_take_and_casts_between_floats(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["first"]),
        node("Cast", ["first"], ["same"], to=TensorProto.FLOAT),
        node("Relu", ["same"], ["second"]),
        node("Cast", ["second"], ["third"], to=TensorProto.INT64),
        node("Identity", ["x"], ["fourth"]),
    ]
    outputs: list[Value] = [("first", ["n", 2]), ("second", ["n", 2]), ("third", ["n", 2], TensorProto.INT64)]
    model = make_model(nodes, [("x", ["n", 2])], [*outputs, ("fourth", ["n", 2])], {"w": np.eye(2, dtype=np.float32)})
    results = open_runner(write_float16(tmp_path, model))({"x": np.array([[-3, 2.0001]], np.float32)})
    np.testing.assert_array_equal(results["first"], [[-3, 2]])
    np.testing.assert_array_equal(results["second"], [[0, 2]])
    np.testing.assert_array_equal(results["third"], [[0, 2]])
    np.testing.assert_array_equal(results["fourth"], np.array([[-3, 2.0001]], np.float32))


def test_graphs_inside_nodes_see_floats(tmp_path: Path) -> None:
    result = onnx.helper.make_tensor_value_info("r", 1, ["n", 2])
    then = onnx.helper.make_graph([node("Mul", ["h", "scale"], ["r"])], "then", [], [result])
    otherwise = onnx.helper.make_graph([node("Identity", ["h"], ["r"])], "otherwise", [], [result])
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("If", ["c"], ["i"], then_branch=then, else_branch=otherwise),
        node("Add", ["i", "h"], ["y"]),
    ]
    weights = {"w": np.eye(2, dtype=np.float32), "scale": np.array([3], np.float32)}
    inputs: list[Value] = [("x", ["n", 2]), ("c", [], TensorProto.BOOL)]
    runner = open_runner(write_float16(tmp_path, make_model(nodes, inputs, [("y", ["n", 2])], weights)))
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(runner({"x": x, "c": np.array(True)})["y"], 4 * x)
    np.testing.assert_array_equal(runner({"x": x, "c": np.array(False)})["y"], 2 * x)


def test_an_operator_without_a_schema_stays_in_float32(tmp_path: Path) -> None:
    model = make_model(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["g"]), node("MatMul", ["g", "w"], ["y"])],
        [("x", ["n", 2])],
        [("y", ["n", 2])],
        {"w": np.eye(2, dtype=np.float32)},
    )
    model.graph.node[1].CopyFrom(node("Gelu", ["h"], ["g"], domain="com.microsoft"))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    convert_to_float16(write_model(model, tmp_path / "model.onnx"), tmp_path / "half.onnx")
    x = np.array([[3, -1]], np.float32)
    want = open_runner(tmp_path / "model.onnx")({"x": x})["y"]
    np.testing.assert_allclose(open_runner(tmp_path / "half.onnx")({"x": x})["y"], want, rtol=2**-10)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    keep=st.frozensets(
        st.sampled_from(["a", "embedded", "b", "normal", "q", "k", "shares", "mixed", "m", "f", "out_sample"])
    ),
)
def test_any_nodes_may_be_kept(tmp_path_factory: pytest.TempPathFactory, seed: int, keep: frozenset[str]) -> None:
    path = write_float16(tmp_path_factory.mktemp("kept"), unet(unet_weights(seed)), keep=tuple(keep))
    feeds = unet_feeds(1, seed=seed)
    assert sqnr(open_runner(path)(feeds)["out_sample"], unet_float64(feeds, unet_weights(seed))) > 50


@pytest.mark.parametrize("name", ["unet/model", "text_encoder/model", "vae/decoder", "vae/encoder"])
def test_the_shapes_networks_take_half_of_the_space(name: str, tmp_path: Path) -> None:
    source, path = find_pipeline("shapes") / f"{name}.onnx", tmp_path / "half.onnx"
    convert_to_float16(source, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert read_layer_precisions(path) == {"f16": read_layer_precisions(source)["f32"]}
    assert open_runner(path).precision == "f32"  # x86 has no kernels for halves in onnxruntime, which says so


def test_a_missing_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="absent.onnx"):
        convert_to_float16(tmp_path / "absent.onnx", tmp_path / "half.onnx")


def test_a_graph_that_would_stay_as_it_is_is_refused(tmp_path: Path) -> None:
    """Else a candidate called f16 would be the original."""
    graph = write_model(make_model([node("Relu", ["x"], ["y"])], [("x", ["n"])], [("y", ["n"])]), tmp_path / "m.onnx")
    with pytest.raises(InvalidRequest, match="has nothing to convert to float16; allowed: a convolution"):
        convert_to_float16(graph, tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()
