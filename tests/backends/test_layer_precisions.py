"""What runs in which precision is read from a file, and agrees with the kernels that a runtime reports."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from stillhouse.backends import RunnerOptions, open_runner, quantize
from stillhouse.backends.layer_precisions import read_layer_precisions
from stillhouse.backends.precision import convert_to_float16
from tests.backends.networks import make_model, node, unet, unet_feeds, write_model

HALF = TensorProto.FLOAT16
INTEGER = {"QLinearConv", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "MatMulInteger"}


@pytest.mark.parametrize(
    ("nodes", "census"),
    [
        ([node("MatMul", ["x", "x"], ["y"])], {"f32": 1}),
        ([node("Cast", ["x"], ["h"], to=HALF), node("MatMul", ["h", "h"], ["y"])], {"f16": 1}),
        ([node("Cast", ["h"], ["w"], to=1), node("MatMul", ["x", "w"], ["y"])], {"f32": 1}),
        (
            [
                node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
                node("Neg", ["b"], ["n"]),
                node("Gemm", ["n", "n"], ["y"]),
            ],
            {"bf16": 1},
        ),
        # The shape of halves is no half, and neither is a choice between floats by a condition on halves.
        (
            [
                node("Shape", ["h"], ["s"]),
                node("Reshape", ["x", "s"], ["r"]),
                node("Greater", ["h", "h"], ["c"]),
                node("Where", ["c", "r", "x"], ["w"]),
                node("MatMul", ["w", "x"], ["y"]),
            ],
            {"f32": 1},
        ),
        (
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
                node("MatMulInteger", ["q", "q"], ["i"]),
                node("MatMul", ["x", "x"], ["y"]),
            ],
            {"f32": 1, "int8": 1},
        ),
        ([node("Relu", ["x"], ["y"])], {}),
    ],
)
def test_precisions_follow_the_casts(nodes: list[onnx.NodeProto], census: dict[str, int], tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [onnx.helper.make_tensor_value_info("x", 1, [2, 2]), onnx.helper.make_tensor_value_info("h", HALF, [2, 2])],
        [onnx.helper.make_tensor_value_info("y", 1, [2, 2])],
    )
    assert read_layer_precisions(write_model(onnx.helper.make_model(graph), tmp_path / "model.onnx")) == census


@pytest.mark.parametrize(("level", "census"), [(0, {"f32": 1}), (4, {"int8": 1})])
def test_packed_weights_are_multiplied_as_their_accuracy_level_says(
    level: int, census: dict[str, int], tmp_path: Path
) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], [("x", ["n", 32])], [("y", ["n", 32])])
    packed: dict[str, Any] = {"K": 32, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": level}
    model.graph.node[0].CopyFrom(node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **packed))
    assert read_layer_precisions(write_model(model, tmp_path / "model.onnx")) == census


@pytest.mark.parametrize("recipe", ["f32", "f16", "static", "dynamic"])
def test_agrees_with_the_kernels_that_ran(recipe: str, tmp_path: Path) -> None:
    """The profile of a run names every kernel and the types that it was given."""
    source, graph = write_model(unet(), tmp_path / "source.onnx"), tmp_path / "model.onnx"
    if recipe == "f32":
        graph = source
    elif recipe == "f16":
        convert_to_float16(source, graph)
    elif recipe == "static":
        quantize.quantize_static(source, graph, [unet_feeds(2)])
    else:
        quantize.quantize_dynamic(source, graph, operators=("Conv", "MatMul", "Gemm"))
    runner = open_runner(graph, options=RunnerOptions(settings={"count_layers": "1"}))
    assert runner.layer_precisions == _profiled(graph, tmp_path)
    assert sum(runner.layer_precisions.values()) == 7
    assert set(runner.layer_precisions) == ({"f32", "int8"} if recipe in ("static", "dynamic") else {"f32"})


def _profiled(graph: Path, directory: Path) -> dict[str, int]:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(directory / "profile")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    session.run(None, unet_feeds(2))
    events = [event["args"] for event in json.loads(Path(session.end_profiling()).read_text()) if "args" in event]
    counts: Counter[str] = Counter()
    for event in events:
        kind = event.get("op_name", "").removesuffix("_nchwc")
        if kind in INTEGER:
            counts["int8"] += 1
        elif kind in ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"):
            (first,) = event["input_type_shape"][0]
            counts[{"float": "f32", "float16": "f16"}[first]] += 1
    return dict(counts)


def test_the_types_of_inputs_and_weights_count(tmp_path: Path) -> None:
    weights = {"w": np.eye(2, dtype=np.float16)}
    model = make_model([node("MatMul", ["w", "w"], ["y"])], [], [("y", [2, 2], HALF)], weights)
    assert read_layer_precisions(write_model(model, tmp_path / "model.onnx")) == {"f16": 1}
