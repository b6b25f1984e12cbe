"""Graphs of old opsets are converted, and only where what they compute stays the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime.datasets import get_example

from stillhouse.backends import open_runner, ort
from stillhouse.backends.graph import load_graph
from stillhouse.backends.opset import set_standard_opset, standard_opset, with_opset
from stillhouse.backends.quantize import quantize_dynamic, quantize_static
from stillhouse.backends.signature import read_signature
from stillhouse.errors import InvalidRequest
from tests.backends.networks import node, relative_error, write_model

FEEDS = [{"x": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}]
WEIGHTS = {
    "w": (np.random.default_rng(1).standard_normal((16, 4, 3, 3)) / 6).astype(np.float32),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "bias": np.linspace(-1, 1, 16, dtype=np.float32),
    "region": np.array([], np.float32),
}


def old_model(version: int, ir: int = 4) -> onnx.ModelProto:
    """Operators whose meaning or form has changed since: Upsample, Softmax over the last three axes, Squeeze."""
    nodes = [
        node("Conv", ["x", "w", "bias"], ["a"], pads=[1] * 4),
        node("Upsample" if version < 10 else "Resize", ["a", "scales"], ["b"], mode="nearest"),
        node("Softmax", ["b"], ["c"]),
        node("ReduceMean", ["c"], ["d"], axes=[1], keepdims=1),
        node("Squeeze", ["d"], ["y"], axes=[1]),
    ]
    if version > 10:
        nodes[1].input[:] = ["a", "region", "scales"]
    values = [helper.make_tensor_value_info("x", 1, ["n", 4, 8, 8])]
    tensors = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    if ir < 4:
        values += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in tensors]
    result = [helper.make_tensor_value_info("y", 1, ["n", 16, 16])]
    graph = helper.make_graph(nodes, "old", values, result, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=ir)


def run(graph: Path) -> NDArray[Any]:
    return open_runner(graph)(FEEDS[0])["y"]


@pytest.mark.parametrize(("version", "ir"), [(9, 3), (9, 4), (10, 5), (11, 6), (12, 7)])
def test_an_old_graph_computes_the_same_in_a_later_opset(version: int, ir: int, tmp_path: Path) -> None:
    graph = write_model(old_model(version, ir), tmp_path / "old.onnx")
    with with_opset(graph, 13, FEEDS, tmp_path) as copy:
        model = load_graph(copy)
        assert (standard_opset(model), {tensor.name for tensor in model.graph.initializer} >= {"w"}) == (13, True)
        onnx.checker.check_model(onnx.load(copy), full_check=True)
        assert read_signature(copy).inputs == read_signature(graph).inputs == {"x": ("n", 4, 8, 8)}
        assert relative_error(run(copy), run(graph)) < 1e-5
    assert list(tmp_path.iterdir()) == [graph], "the copy is gone"


def test_a_graph_that_is_late_enough_is_taken_as_it_is(tmp_path: Path) -> None:
    graph = write_model(old_model(12, 7), tmp_path / "old.onnx")
    with with_opset(graph, 12, [], tmp_path) as path:
        assert path == graph
    classifier = Path(get_example("logreg_iris.onnx"))  # has no standard operators at all
    with with_opset(classifier, 13, [], tmp_path) as path:
        assert path == classifier


def test_weights_beside_the_graph_stay_beside_it(tmp_path: Path) -> None:
    graph = tmp_path / "old.onnx"
    onnx.save(old_model(9), graph, save_as_external_data=True, location="old.bin", size_threshold=64)
    before = (tmp_path / "old.bin").read_bytes()
    with with_opset(graph, 13, FEEDS, tmp_path) as copy:
        assert {path.name for path in copy.parent.iterdir()} == {"old.onnx", "old.bin"}
        assert copy.stat().st_size < WEIGHTS["w"].nbytes
        assert relative_error(run(copy), run(graph)) < 1e-5
    assert (tmp_path / "old.bin").read_bytes() == before


@pytest.mark.parametrize("recipe", ["static", "dynamic"])
def test_recipes_convert_old_graphs(recipe: str, tmp_path: Path) -> None:
    graph, out = write_model(old_model(9), tmp_path / "old.onnx"), tmp_path / "out.onnx"
    if recipe == "static":
        quantize_static(graph, out, FEEDS)
    else:
        quantize_dynamic(graph, out, operators=["Conv"], feeds=FEEDS)
    assert open_runner(out).layer_precisions == {"int8": 1}
    assert relative_error(run(out), run(graph)) < 0.05
    assert {path.name for path in tmp_path.iterdir()} == {"old.onnx", "out.onnx"}
    with pytest.raises(InvalidRequest, match=r"opset 9, and there are no inputs to check.*; allowed: 13 and later"):
        quantize_dynamic(graph, out, operators=["Conv"])


def test_a_conversion_to_another_meaning_is_refused_with_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opset 13 takes the softmax over the last axis alone, which a converter that sets the number only would forget."""

    def only_the_number(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        del model.graph.node[4].attribute[:]
        model.graph.node[4].input.append("axes")
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
        model.graph.node[1].input.insert(1, "") if len(model.graph.node[1].input) == 2 else None
        set_standard_opset(model, version)
        return model

    graph = write_model(old_model(12, 7), tmp_path / "old.onnx")
    monkeypatch.setattr(version_converter, "convert_version", only_the_number)
    match = r"is of opset 12, and the converted graph is -?\d+\.\d dB from the original, and needs 90; allowed: 13 and"
    with pytest.raises(InvalidRequest, match=match), with_opset(graph, 13, FEEDS, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [graph]


def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    model = old_model(9)
    model.graph.node[2].op_type = "Distil"
    graph = write_model(model, tmp_path / "old.onnx")
    with (
        pytest.raises(InvalidRequest, match="opset 9, and onnx cannot convert it to opset 13: .*Distil"),
        with_opset(graph, 13, FEEDS, tmp_path),
    ):
        pass


def test_old_operators_inside_of_branches_are_converted_or_refused(tmp_path: Path) -> None:
    """Nothing is let through that would fail later, or compute another thing."""
    inner = helper.make_tensor_value_info("r", 1, None)
    squeeze = helper.make_graph([node("ReduceSum", ["x"], ["r"], axes=[1], keepdims=1)], "inner", [], [inner])
    graph = helper.make_graph(
        [node("If", ["c"], ["y"], then_branch=squeeze, else_branch=squeeze)],
        "old",
        [helper.make_tensor_value_info("x", 1, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["n", 1, 8, 8])],
        [numpy_helper.from_array(np.array(True), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    path = write_model(model, tmp_path / "old.onnx")
    try:
        with with_opset(path, 13, FEEDS, tmp_path) as copy:
            np.testing.assert_allclose(run(copy), FEEDS[0]["x"].sum(axis=1, keepdims=True), rtol=1e-5)
    except InvalidRequest as error:
        assert "opset 11, and onnx cannot convert it to opset 13" in str(error)


def test_two_entries_of_the_standard_operators_are_one(tmp_path: Path) -> None:
    """Both names of the domain occur in one file, and runtimes take the file."""
    model = old_model(12, 7)
    model.opset_import.extend([helper.make_opsetid("ai.onnx", 12), helper.make_opsetid("com.example", 1)])
    assert standard_opset(model) == 12
    set_standard_opset(model, 13)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13), ("com.example", 1)]
    assert standard_opset(onnx.ModelProto()) == 0


def test_outputs_without_a_number_stay_so(tmp_path: Path) -> None:
    """The logarithm of 0 is infinite before and after, and integers are equal."""
    nodes = [node("Log", ["x"], ["l"]), node("Squeeze", ["l"], ["y"], axes=[0]), node("ArgMax", ["x"], ["i"])]
    values = [helper.make_tensor_value_info("y", 1, None), helper.make_tensor_value_info("i", TensorProto.INT64, None)]
    graph = helper.make_graph(nodes, "old", [helper.make_tensor_value_info("x", 1, [1, 4])], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    path, feeds = write_model(model, tmp_path / "old.onnx"), [{"x": np.array([[0, 1, -1, 2]], np.float32)}]
    with with_opset(path, 13, feeds, tmp_path) as copy:
        evaluate = ort.make_evaluator(copy.read_bytes(), copy.parent)
        np.testing.assert_allclose(evaluate(dict(feeds[0]))["y"], [-np.inf, 0, np.nan, np.log(2)], rtol=1e-6)
