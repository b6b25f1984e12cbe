"""A runner computes what the graph says, on every backend, and refuses what does not fit it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from stillhouse.backends import RunnerOptions, open_runner
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.signature import Axes
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest, PipelineError, UnsupportedPrecision
from tests.backends.networks import (
    BACKENDS,
    Value,
    make_model,
    node,
    relative_error,
    unet,
    unet_feeds,
    unet_float64,
    unet_weights,
    write_model,
)

EXACT = 1e-5
"""float32 rounds at 6e-8; the sums here have at most 300 terms of either sign, so errors stay near 1e-6."""

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_model(unet(), tmp_path / "model.onnx")


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 8, 8), (3, 8, 8), (2, 5, 9)])
def test_computes_what_the_definitions_say_at_every_size(
    backend: str, graph: Path, rows: int, height: int, width: int
) -> None:
    runner = open_runner(graph, backend)
    feeds = unet_feeds(rows, height, width)
    assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, unet_weights())) < EXACT


def test_says_what_it_is(backend: str, graph: Path) -> None:
    runner = open_runner(graph, backend)
    assert (runner.backend, runner.precision) == (backend, "f32")
    assert runner.inputs == (
        TensorSpec("sample", "float32", (None, 4, None, None)),
        TensorSpec("timestep", "float32", (None,)),
    )
    assert [(spec.name, spec.dtype, len(spec.shape)) for spec in runner.outputs] == [("out_sample", "float32", 4)]


def test_static_shapes_are_kept_and_shown(backend: str, graph: Path) -> None:
    shapes = {"sample": (2, 4, 8, 8), "timestep": (2,)}
    runner = open_runner(graph, backend, RunnerOptions(shapes=shapes))
    feeds = unet_feeds(2)
    assert {spec.name: spec.shape for spec in runner.inputs} == shapes
    assert runner.outputs[0].shape == (2, 4, 8, 8)
    assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, unet_weights())) < EXACT
    with pytest.raises(InvalidRequest, match=r"shape \[3, 4, 8, 8\]; allowed: \[2, 4, 8, 8\]"):
        runner(unet_feeds(3))


def test_a_static_shape_fixes_an_axis_wherever_its_name_stands(backend: str, graph: Path) -> None:
    runner = open_runner(graph, backend, RunnerOptions(shapes={"sample": (2, 4, 8, 8)}))
    assert [spec.shape for spec in runner.inputs] == [(2, 4, 8, 8), (2,)]


def test_a_static_shape_holds_on_an_axis_without_a_name(backend: str, tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], [("x", [None, 3])], [("y", [None, 3])])
    runner = open_runner(write_model(model, tmp_path / "relu.onnx"), backend, RunnerOptions(shapes={"x": (2, 3)}))
    assert runner({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)
    with pytest.raises(InvalidRequest, match=r"\[4, 3\]"):
        runner({"x": np.ones((4, 3), np.float32)})


@pytest.mark.parametrize(
    "shapes",
    [
        {"sample": (2, 4, 8)},
        {"sample": (2, 5, 8, 8)},
        {"sample": (-1, 4, 8, 8)},
        {"sample": (2, 4, 8, 8), "timestep": (3,)},
        {"simple": (2, 4, 8, 8)},
    ],
)
def test_static_shapes_that_do_not_fit_are_refused(
    backend: str, graph: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(InvalidRequest):
        open_runner(graph, backend, RunnerOptions(shapes=shapes))


def test_two_outputs_integers_and_an_input_that_nothing_reads(backend: str, tmp_path: Path) -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    model = make_model(
        [node("Gather", ["table", "ids"], ["rows"]), node("ReduceSum", ["rows"], ["sum"], keepdims=0)],
        [("ids", ["n"], TensorProto.INT64), ("idle", ["n"])],
        [("sum", []), ("rows", ["n", 3])],
        {"table": table},
    )
    runner = open_runner(write_model(model, tmp_path / "text.onnx"), backend)
    ids = np.array([2, 0], np.int64)
    results = runner({"idle": np.zeros(2, np.float32), "ids": ids})
    assert [spec.dtype for spec in runner.inputs] == ["int64", "float32"]
    assert list(results) == ["sum", "rows"]
    np.testing.assert_array_equal(results["rows"], table[ids])
    np.testing.assert_array_equal(results["sum"], table[ids].sum())


def test_results_belong_to_the_caller(backend: str, tmp_path: Path) -> None:
    model = make_model(
        [node("Identity", ["x"], ["same"]), node("Neg", ["x"], ["y"])],
        [("x", ["n"])],
        [("same", ["n"]), ("y", ["n"])],
    )
    runner = open_runner(write_model(model, tmp_path / "neg.onnx"), backend)
    x = np.array([1, 2], np.float32)
    first = runner({"x": x})
    runner({"x": x * 5})
    x[:] = 9
    np.testing.assert_array_equal(first["y"], [-1, -2])
    np.testing.assert_array_equal(first["same"], [1, 2])
    first["y"][:] = 0  # and may be written to
    np.testing.assert_array_equal(runner({"x": x})["y"], [-9, -9])


@settings(max_examples=20, deadline=None)
@given(
    layout=st.sampled_from(["strided", "reversed", "fortran", "swapped", "read-only", "unaligned"]),
    seed=st.integers(0, 9),
)
def test_how_a_feed_lies_in_memory_does_not_matter(
    backend: str, tmp_path_factory: pytest.TempPathFactory, layout: str, seed: int
) -> None:
    model = make_model([node("Neg", ["x"], ["y"])], [("x", ["n", 3])], [("y", ["n", 3])])
    runner = open_runner(write_model(model, tmp_path_factory.mktemp("layout") / "neg.onnx"), backend)
    x = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
    unaligned = np.frombuffer(b"0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    fixed = x.copy()
    fixed.setflags(write=False)
    laid = {
        "strided": np.repeat(x, 2, axis=0)[::2],
        "reversed": x[::-1].copy()[::-1],
        "fortran": np.asfortranarray(x),
        "swapped": x.astype(">f4"),
        "read-only": fixed,
        "unaligned": unaligned,
    }[layout]
    np.testing.assert_array_equal(runner({"x": laid})["y"], -x)


def test_feeds_that_do_not_fit_are_refused(backend: str, graph: Path) -> None:
    runner = open_runner(graph, backend)
    feeds = unet_feeds(2)
    sample, timestep = feeds["sample"], feeds["timestep"]
    with pytest.raises(InvalidRequest, match="no array for input timestep"):
        runner({"sample": sample})
    with pytest.raises(InvalidRequest, match=r"no input 'time_step'; .* did you mean 'timestep'"):
        runner({"sample": sample, "time_step": timestep})
    with pytest.raises(InvalidRequest, match=r"an array of float64; allowed: float32; use .astype\('float32'\)"):
        runner({"sample": sample.astype(np.float64), "timestep": timestep})
    for misfit in (sample[0], sample[:, :3], sample[:, :0]):
        with pytest.raises(InvalidRequest, match=r"input 'sample' has shape \[.*\]; allowed: \[B, 4, h, w\]"):
            runner({"sample": misfit, "timestep": timestep})
    with pytest.raises(InvalidRequest, match=r"input 'timestep' has shape \[2\]; allowed: \[B\], .*one length"):
        runner({"sample": sample[:0], "timestep": timestep})
    with pytest.raises(InvalidRequest, match=r"input 'timestep' has shape \[1\]; allowed: \[B\], .*one length"):
        runner({"sample": sample, "timestep": timestep[:1]})
    assert runner(feeds)["out_sample"].shape == sample.shape  # and goes on working


@pytest.mark.parametrize("is_static", [True, False])
@pytest.mark.parametrize("length", [0, 3])
def test_a_cache_may_be_empty(backend: str, length: int, is_static: bool, tmp_path: Path) -> None:
    """An exported decoder of text starts with keys of length 0, to which it appends its own."""
    weights = np.array([[1, 2], [3, 4]], np.float32)
    nodes = [node("Concat", ["past", "x"], ["keys"], axis=1), node("MatMul", ["keys", "w"], ["y"])]
    inputs: list[Value] = [("past", [1, "length", 2]), ("x", [1, 1, 2])]
    model = make_model(nodes, inputs, [("keys", [1, "total", 2]), ("y", [1, "total", 2])], {"w": weights})
    past, x = np.ones((1, length, 2), np.float32), np.full((1, 1, 2), 5, np.float32)
    options = RunnerOptions(shapes={"past": past.shape, "x": x.shape} if is_static else {})
    runner = open_runner(write_model(model, tmp_path / "past.onnx"), backend, options)
    result, keys = runner({"past": past, "x": x}), np.concatenate([past, x], axis=1)
    np.testing.assert_array_equal(result["keys"], keys)
    np.testing.assert_array_equal(result["y"], keys @ weights)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_networks_run_at_every_length(backend: str, kind: str, tmp_path: Path) -> None:
    """Sequences come first in ONNX's recurrent operators, and the batch second. Weights of 0 keep a part of the state.

    Without weights, every gate is 0.5 and every new value 0: after n steps, 0.5**n of a GRU's state is left, and an
    LSTM gives 0.5 * tanh(0.5**n * cell).
    """
    gates = {"LSTM": 4, "GRU": 3}[kind]
    weights = {"w": np.zeros((1, gates * 2, 3), np.float32), "r": np.zeros((1, gates * 2, 2), np.float32)}
    states: list[Value] = [("h", [1, "rows", 2]), *([("c", [1, "rows", 2])] if kind == "LSTM" else [])]
    nodes = [node(kind, ["x", "w", "r", "", "", *(name for name, *_ in states)], ["", "last"], hidden_size=2)]
    model = make_model(nodes, [("x", ["length", "rows", 3]), *states], [("last", [1, "rows", 2])], weights)
    runner = open_runner(write_model(model, tmp_path / "recurrent.onnx"), backend)
    for length, rows in ((1, 1), (4, 2), (2, 3)):
        feeds = {name: np.full((1, rows, 2), 0.75, np.float32) for name, *_ in states}
        left = 0.75 * 0.5**length
        want = 0.5 * np.tanh(left) if kind == "LSTM" else left
        result = runner({"x": np.ones((length, rows, 3), np.float32), **feeds})["last"]
        np.testing.assert_allclose(result, np.full((1, rows, 2), want), rtol=1e-5)


def test_axes_that_are_written_as_minus_one_are_open(backend: str, tmp_path: Path) -> None:
    model = make_model([node("Neg", ["x"], ["y"])], [("x", [-1, 3, -1])], [("y", [-1, 3, -1])])
    graph = write_model(model, tmp_path / "paddle.onnx")
    x = np.ones((2, 3, 5), np.float32)
    for options in (RunnerOptions(), RunnerOptions(shapes={"x": (2, 3, 5)})):
        runner = open_runner(graph, backend, options)
        np.testing.assert_array_equal(runner({"x": x})["y"], -x)
        assert runner.inputs[0].shape == (options.shapes.get("x") or (None, 3, None))
    with pytest.raises(InvalidRequest, match=r"input 'x' has shape \[2, 4, 5\]; allowed: \[any, 3, any\]"):
        open_runner(graph, backend, RunnerOptions(shapes={"x": (2, 4, 5)}))


def test_an_operator_that_no_runtime_knows_is_named(backend: str, tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], [("x", [1])], [("y", [1])])
    model.graph.node[0].op_type = "Distil"
    with pytest.raises(BackendFailed, match="Distil"):
        open_runner(write_model(model, tmp_path / "odd.onnx"), backend)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.99])
def test_a_part_of_a_graph_is_refused_by_name(backend: str, graph: Path, part: float) -> None:
    whole = graph.read_bytes()
    graph.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(PipelineError, match=graph.name):
        open_runner(graph, backend)


def test_a_directory_and_nothing_are_refused_by_name(backend: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.onnx"):
        with pytest.raises(PipelineError, match=path.name):
            open_runner(path, backend)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_result(backend: str, graph: Path, threads: int) -> None:
    feeds = unet_feeds(2)
    runner = open_runner(graph, backend, RunnerOptions(threads=threads))
    assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, unet_weights())) < EXACT


def test_no_threads_and_unknown_precisions_are_refused(backend: str, graph: Path) -> None:
    with pytest.raises(InvalidRequest, match="threads is 0"):
        open_runner(graph, backend, RunnerOptions(threads=0))
    with pytest.raises(UnsupportedPrecision, match=rf"^{backend} cannot .* in precision 'f8'.*; allowed: f32"):
        open_runner(graph, backend, RunnerOptions(precision="f8"))


def test_a_failure_while_running_is_ours_in_one_line(backend: str, graph: Path) -> None:
    def fail(_: object) -> list[NDArray[Any]]:
        raise RuntimeError("Exception from src/core.cpp:132:\nCheck 'false' failed at a.cpp:4:\nNo such port\nand more")

    runner = open_runner(graph, backend)
    assert isinstance(runner, GraphRunner)
    with pytest.raises(BackendFailed, match=f"^{backend} could not run .*model.onnx: No such port$"):
        replace(runner, run=fail)(unet_feeds(1))


def test_several_runners_live_side_by_side(backend: str, tmp_path: Path) -> None:
    feeds = unet_feeds(1)
    runners = []
    for seed in (1, 2):
        path = write_model(unet(unet_weights(seed)), tmp_path / f"{seed}.onnx")
        runners.append((open_runner(path, backend), unet_weights(seed)))
    for runner, weights in runners * 2:
        assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, weights)) < EXACT


def test_what_was_checked_once_is_checked_again_only_where_it_differs(backend: str) -> None:
    calls: list[list[str]] = []

    def run(feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        calls.append(list(feeds))
        return [feeds["a"] + feeds["b"]]

    specs = tuple(TensorSpec(name, "float32", (None, 2)) for name in ("a", "b"))
    axes: dict[str, Axes] = {"a": ("rows", 2), "b": ("rows", 2)}
    runner = GraphRunner(Path("m.onnx"), backend, "f32", specs, specs[:1], axes, run)
    ones = np.ones((3, 2), np.float32)
    for _ in range(2):
        assert (runner({"b": ones, "a": ones})["a"] == 2).all()
    assert calls == [["a", "b"]] * 2 and len(runner.checked) == 1
    mistakes: list[dict[str, NDArray[Any]]] = [
        {"a": ones},
        {"a": ones, "b": ones[:2].copy()},
        {"a": ones, "b": ones.astype(np.float64)},
    ]
    for mistake in mistakes:
        with pytest.raises(InvalidRequest):
            runner(mistake)
    assert runner({"a": ones[:, ::-1], "b": ones})["a"].shape == (3, 2)
    assert len(runner.checked) == 1 and len(calls) == 3
