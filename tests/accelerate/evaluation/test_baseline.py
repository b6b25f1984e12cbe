"""The baseline: what is found out about a network by running it, before anything is compared with it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, Probe, write_probes
from stillhouse.accelerate.evaluation.baseline import measure_baseline, unexcited_outputs
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, NETWORK, Candidate
from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.candidates import BASELINE_BACKEND
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.backends.registry import open_runner
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.network import open_network
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.accelerate.networks import FLOAT, GraphBuilder, ValueInfo, detector

POINTS, WIDTH = 6, 16
RNG = np.random.default_rng(0)
QUICK_SWEEP = AccelerateOptions(
    backends=("onnxruntime", "openvino"), recipes=("f32",), timing_budget=QUICK, final_timing_budget=QUICK_FINAL
)


def points(path: Path) -> Path:
    """A network of points whose mean is subtracted, as PointNet does: axis 0 is open and is no batch."""
    net = GraphBuilder(0)
    hidden = net.add_node("Relu", net.linear("points", WIDTH, 64))
    mean = net.add_node("ReduceMean", hidden, net.constant(np.array([0])))
    net.add_node("Add", net.linear(net.add_node("Sub", hidden, mean), 64, WIDTH), "points", out="y")
    return net.write_model(path, [("points", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])


def layers(path: Path) -> Path:
    """Rows of their own: axis 0 is a batch."""
    net = GraphBuilder(0)
    net.add_node("Relu", net.linear("points", WIDTH, WIDTH), out="y")
    return net.write_model(path, [("points", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])


def table(path: Path) -> Path:
    """Rows of their own, beside an output that is a table without rows."""
    net = GraphBuilder(0)
    net.add_node("Relu", net.linear("points", WIDTH, WIDTH), out="y")
    net.add_node("Identity", net.weight(4, WIDTH), out="anchors")
    outputs: list[ValueInfo] = [("y", ["n", WIDTH], FLOAT), ("anchors", [4, WIDTH], FLOAT)]
    return net.write_model(path, [("points", ["n", WIDTH], FLOAT)], outputs)


def recurrent(path: Path) -> Path:
    """A recurrent network, time first: axis 0 is the time, and the later steps depend on the earlier ones."""
    net = GraphBuilder(0)
    weights = (net.weight(1, 4 * 8, WIDTH), net.weight(1, 4 * 8, 8))
    net.add_node("LSTM", "points", *weights, out="y", hidden_size=8)
    return net.write_model(path, [("points", ["time", 1, WIDTH], FLOAT)], [("y", ["time", 1, 1, 8], FLOAT)])


def ranked(path: Path) -> Path:
    """Each column in falling order, as a detector sorts its boxes by score: rows that are in order stay alone."""
    net = GraphBuilder(0)
    count = net.add_node("Slice", net.add_node("Shape", "points"), net.constant([0]), net.constant([1]))
    net.nodes.append(helper.make_node("TopK", ["points", count], ["y", "order"], axis=0))
    return net.write_model(path, [("points", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])


def counted(path: Path) -> Path:
    """Each row divided by how often it comes, as duplicates are removed: different rows stay alone."""
    net = GraphBuilder(0)
    first = net.add_node("Slice", "points", net.constant([0]), net.constant([1]), net.constant([1]))
    equal = net.add_node("Equal", first, net.add_node("Transpose", first, perm=[1, 0]))
    count = net.add_node("ReduceSum", net.add_node("Cast", equal, to=FLOAT), net.constant([1]), keepdims=1)
    net.add_node("Div", "points", count, out="y")
    return net.write_model(path, [("points", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])


@contextmanager
def opened(folder: Path, graph: Path, *inputs: NDArray[np.float32], name: str = "points") -> Iterator[BaselineRun]:
    write_probes(folder / PROBES_FILE, [Probe(f"input {n}", {name: array}) for n, array in enumerate(inputs)])
    context = EvaluationContext(
        folder / "trials", folder, graph, folder / PROBES_FILE, Bounds(), timing_budget=QUICK, measure_batches=True
    )
    trial, baseline = measure_baseline(Candidate(NETWORK, BASELINE_BACKEND, options=BASELINE_OPTIONS), context)
    assert baseline, trial.reason
    try:
        yield baseline
    finally:
        baseline.process.kill()


def normal(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("build", "is_batch", "shape"),
    [
        (layers, True, (1, WIDTH)),
        (layers, True, (3, WIDTH)),
        (points, False, (POINTS, WIDTH)),
        (points, False, (1, WIDTH)),
        (table, False, (1, WIDTH)),
        (recurrent, False, (5, 1, WIDTH)),
    ],
)
def test_whether_an_open_axis_is_a_batch_is_found_by_running_rows_together_and_alone(
    tmp_path: Path, build: Callable[[Path], Path], is_batch: bool, shape: tuple[int, ...]
) -> None:
    with opened(tmp_path, build(tmp_path / "model.onnx"), normal(*shape)) as baseline:
        assert baseline.has_independent_rows == is_batch


@pytest.mark.parametrize("build", [ranked, counted])
def test_rows_that_mix_only_in_some_orders_or_where_they_are_equal_are_no_batch(
    tmp_path: Path, build: Callable[[Path], Path]
) -> None:
    falling = [np.full((1, WIDTH), -number, np.float32) for number in range(4)]
    with opened(tmp_path, build(tmp_path / "model.onnx"), *falling) as baseline:
        assert not baseline.has_independent_rows


def test_an_output_that_no_input_excites_is_named(tmp_path: Path) -> None:
    zeros = np.zeros((1, WIDTH), np.float32)
    with opened(tmp_path, layers(tmp_path / "model.onnx"), zeros - 100, zeros - 100) as baseline:
        assert unexcited_outputs(baseline) == (() if baseline.outputs[0].feeds["y"].any() else ("y",))


def test_a_second_run_warns_again_of_an_output_that_nothing_excites(tmp_path: Path) -> None:
    net = GraphBuilder(0)
    net.add_node("Mul", net.linear("x", WIDTH, WIDTH), net.constant(np.zeros(1, np.float32)), out="y")
    net.write_model(tmp_path / "zero.onnx", [("x", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])
    workspace = prepare_workspace(str(tmp_path / "zero.onnx"), tmp_path / "out")
    for _ in range(2):
        warnings = run_sweep(workspace, QUICK_SWEEP).warnings
        assert any("no probe excites the output y" in warning for warning in warnings)


def test_rows_that_depend_on_each_other_are_neither_split_nor_joined(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(points(tmp_path / "points.onnx")), tmp_path / "out")
    report = run_sweep(workspace, QUICK_SWEEP)
    measured = [trial for trial in report.trials if trial.ratio]
    assert {trial.status for trial in measured} == {"accepted"}
    assert all(set(trial.batch) == {"1"} for trial in measured)
    streams = [trial for trial in report.trials if "streams" in trial.candidate.options]
    assert streams and {trial.status for trial in streams} == {"excluded"}
    feeds = {"points": normal(5, WIDTH)}
    expected = open_runner(tmp_path / "points.onnx")(feeds)["y"]
    assert np.allclose(open_network(tmp_path / "out")(feeds)["y"], expected, atol=1e-4)


def unrunnable(path: Path) -> Path:
    """A graph that is valid and runs for 8 features only, although its axis is open."""
    net = GraphBuilder(0)
    net.add_node("MatMul", "x", net.weight(8, 8), out="m")
    net.add_node("Reshape", "m", net.constant(np.array([3, 8])), out="y")
    return net.write_model(path, [("x", ["rows", 8], FLOAT)], [("y", [3, 8], FLOAT)])


def test_a_guessed_shape_on_which_the_model_fails_ends_with_the_line_to_write(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(unrunnable(tmp_path / "model.onnx")), tmp_path / "out")
    with pytest.raises(InvalidRequest, match=r"does not run with the guessed shapes x \[1, 8\].*--shape x=1x8"):
        run_sweep(workspace, QUICK_SWEEP)
    options = AccelerateOptions(
        backends=("onnxruntime",),
        recipes=("f32",),
        shapes={"x": (3, 8)},
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
    )
    with pytest.warns(UserWarning, match="options, machine or runtime versions have changed"):
        report = run_sweep(workspace, options)
    assert report.chosen


def test_a_model_that_cannot_be_opened_is_not_blamed_on_its_shapes(tmp_path: Path) -> None:
    """An operator that no runtime knows: no shape would help."""
    net = GraphBuilder(0)
    net.nodes.append(helper.make_node("Unknown", ["x"], ["y"], domain="my.operators"))
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["rows", 8]) for name in "xy")
    graph = helper.make_graph(net.nodes, "unknown", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.operators", 1)]
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    workspace = prepare_workspace(str(tmp_path / "model.onnx"), tmp_path / "out")
    report = run_sweep(workspace, QUICK_SWEEP)
    assert not report.chosen
    assert any("could not open" in warning for warning in report.warnings)


def test_nothing_is_compared_with_a_network_that_draws_random_numbers(tmp_path: Path) -> None:
    net = GraphBuilder(0)
    mean = net.linear("x", WIDTH, WIDTH)
    net.add_node("Add", mean, net.add_node("RandomNormalLike", mean), out="y")
    graph = net.write_model(tmp_path / "model.onnx", [("x", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])
    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), QUICK_SWEEP)
    assert not report.chosen and not any(trial.fidelity for trial in report.trials)
    (warning,) = report.warnings
    assert "differ from call to call, because it draws random numbers by RandomNormalLike: the output y" in warning


def test_an_output_that_is_nan_is_named_as_such(tmp_path: Path) -> None:
    """The logarithm of negative numbers, beside an output that is finite."""
    net = GraphBuilder(0)
    hidden = net.linear("x", WIDTH, WIDTH)
    net.add_node("Log", hidden, out="y")
    net.add_node("Tanh", hidden, out="z")
    outputs: list[ValueInfo] = [("y", ["n", WIDTH], FLOAT), ("z", ["n", WIDTH], FLOAT)]
    graph = net.write_model(tmp_path / "model.onnx", [("x", ["n", WIDTH], FLOAT)], outputs)
    (warning,) = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), QUICK_SWEEP).warnings
    assert re.search(r"the model as given returns NaN for \d+% of the output y on the probes", warning)


def test_a_model_that_cannot_be_run_is_no_reason_to_compare_others_with_each_other(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(unrunnable(tmp_path / "model.onnx")), tmp_path / "out")
    options = AccelerateOptions(
        backends=("onnxruntime", "openvino"),
        recipes=("f32",),
        shapes={"x": (2, 8)},
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
    )
    report = run_sweep(workspace, options)
    assert not report.chosen and not report.baselines
    assert "nothing was chosen for network: the baseline" in report.warnings[0]
    statuses = {trial.status for trial in report.trials}
    assert "accepted" not in statuses and statuses <= {"failed", "skipped", "excluded"}


def test_the_baseline_is_the_graph_as_onnxruntime_opens_it_by_default(tmp_path: Path) -> None:
    report = run_sweep(prepare_workspace(str(detector(tmp_path / "model.onnx")), tmp_path / "out"), QUICK_SWEEP)
    baseline = report.trial(NETWORK, report.baselines[NETWORK])
    tuned: list[Trial] = [trial for trial in report.trials if trial.candidate == Candidate(NETWORK, "onnxruntime")]
    assert baseline.candidate.options == {"spinning": "1"} and baseline.ratio and baseline.ratio.value == 1.0
    assert len(tuned) == 1 and tuned[0].ratio and tuned[0].baseline_seconds
