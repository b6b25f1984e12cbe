"""Group normalisations of pictures are found in an OpenVINO model and replaced; all others stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, save_model

from stillhouse.backends.group_norm import GROUP_NORM
from stillhouse.backends.openvino_group_norm import replace_group_norms
from stillhouse.backends.openvino_nodes import FunctionNodes
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.backends.runtime import require
from stillhouse.cpu import processor_flags
from stillhouse.measure.fidelity import compare_tensors

REASON = GROUP_NORM.missing_reason(processor_flags())
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "it runs")
CHANNELS, GROUPS, SIDE = 16, 4, 6


class Net:
    """A graph of 3x3 convolutions and group normalisations in the form that torch's exporter writes."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {
            "flat": np.array([0, GROUPS, -1]),
            "ones": np.ones(GROUPS, np.float32),
            "zeros": np.zeros(GROUPS, np.float32),
        }

    def add(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, *shape: int) -> str:
        self.constants[name] = self.random.standard_normal(shape).astype(np.float32)
        return name

    def convolve(self, source: str, name: str) -> str:
        self.constant(f"{name}.weight", CHANNELS, CHANNELS, 3, 3)
        self.constants[f"{name}.weight"] = self.constants[f"{name}.weight"] / 12
        bias = self.constant(f"{name}.bias", CHANNELS)
        return self.add("Conv", [source, f"{name}.weight", bias], name, pads=[1, 1, 1, 1])

    def normalise(self, source: str, name: str, silu: bool = True) -> str:
        flat = self.add("Reshape", [source, "flat"], f"{name}.flat")
        normed = self.add("InstanceNormalization", [flat, "ones", "zeros"], f"{name}.normed", epsilon=1e-5)
        shape = self.add("Shape", [source], f"{name}.shape")
        back = self.add("Reshape", [normed, shape], f"{name}.back")
        scaled = self.add("Mul", [back, self.constant(f"{name}.scale", CHANNELS, 1, 1)], f"{name}.scaled")
        shifted = self.add("Add", [scaled, self.constant(f"{name}.shift", CHANNELS, 1, 1)], f"{name}.shifted")
        if not silu:
            return shifted
        return self.add("Mul", [shifted, self.add("Sigmoid", [shifted], f"{name}.sigmoid")], f"{name}.silu")

    def save(self, path: Path, output: str) -> Path:
        self.add("Identity", [output], "y")
        shape: list[str | int | None] = ["rows", CHANNELS, "height", "width"]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
        initializers = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], initializers)
        save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path


def feeds(rows: int = 2) -> dict[str, NDArray[np.float32]]:
    return {"x": np.random.default_rng(1).standard_normal((rows, CHANNELS, SIDE, SIDE + 1), np.float32)}


def run(path: Path, layers: str, precision: str = "bf16", streams: int = 1, rows: int = 2) -> NDArray[np.float32]:
    arrays = feeds(rows)
    shapes = {name: array.shape if streams == 1 else (1, *array.shape[1:]) for name, array in arrays.items()}
    options = RunnerOptions(precision, shapes=shapes, streams=streams, static=streams == 1, settings={"layers": layers})
    return np.asarray(open_runner(path, "openvino", options)(arrays)["y"])


def count_replaced(path: Path) -> int:
    runtime = require("openvino")
    model = runtime.Core().read_model(path)
    model.reshape({"x": list(feeds()["x"].shape)})
    count = replace_group_norms(model, FunctionNodes(runtime), threads=1)
    model.validate_nodes_and_infer_types()
    return count


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("silu", [False, True])
def test_a_normalisation_is_replaced_and_stays_what_it_is(tmp_path: Path, silu: bool, streams: int) -> None:
    net = Net()
    path = net.save(tmp_path / "net.onnx", net.convolve(net.normalise(net.convolve("x", "a"), "norm", silu), "b"))
    assert count_replaced(path) == 1
    exact = run(path, "plain", "f32")
    plain, rewritten = (
        compare_tensors(exact, run(path, layers, streams=streams)).sqnr for layers in ("plain", "rewritten")
    )
    assert rewritten > plain - 1.0
    assert rewritten > 35.0


def test_a_residual_block_with_a_shortcut_is_right(tmp_path: Path) -> None:
    """OpenVINO adds one convolution's result to another's in place, unless something else reads them."""
    net = Net()
    x = net.convolve("x", "first")
    total = net.add("Add", [net.convolve(x, "shortcut"), net.convolve(net.normalise(x, "norm1"), "conv")], "total")
    path = net.save(
        tmp_path / "net.onnx", net.add("Add", [total, net.convolve(net.normalise(total, "norm2"), "out")], "sum")
    )
    assert count_replaced(path) == 2
    assert compare_tensors(run(path, "plain", "f32"), run(path, "rewritten")).sqnr > 35.0


def test_a_quantised_graph_keeps_its_rounding(tmp_path: Path) -> None:
    from stillhouse.backends.quantize import quantize_openvino

    net = Net()
    path = net.save(tmp_path / "net.onnx", net.convolve(net.normalise(net.convolve("x", "a"), "norm"), "b"))
    quantised = tmp_path / "model.xml"
    quantize_openvino(path, quantised, [feeds()])
    exact = run(path, "plain", "f32")
    plain, rewritten = (compare_tensors(exact, run(quantised, layers)).sqnr for layers in ("plain", "rewritten"))
    assert rewritten > plain - 1.0


def test_a_normalisation_that_others_read_halfway_stays(tmp_path: Path) -> None:
    net = Net()
    normed = net.normalise(net.convolve("x", "a"), "norm", silu=False)
    halfway = net.add("Add", [normed, "norm.scaled"], "halfway")
    path = net.save(tmp_path / "net.onnx", net.convolve(halfway, "b"))
    assert compare_tensors(run(path, "plain", "f32"), run(path, "rewritten")).sqnr > 35.0


def test_other_precisions_keep_their_normalisations(tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "net.onnx", net.convolve(net.normalise(net.convolve("x", "a"), "norm"), "b"))
    assert np.array_equal(run(path, "plain", "f32"), run(path, "rewritten", "f32"))


def test_a_row_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "net.onnx", net.convolve(net.normalise(net.convolve("x", "a"), "norm"), "b"))
    assert np.array_equal(run(path, "rewritten", streams=2, rows=3)[:1], run(path, "rewritten", streams=2, rows=1))
