"""Invariant 1: what a row of a batch comes to does not depend on its neighbours, nor on how many it has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.backends import Runner, RunnerOptions, backends, open_runner
from stillhouse.core import Array
from stillhouse.errors import BackendFailed, InvalidRequest
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

ROWS = 8
FEEDS = unet_feeds(ROWS, 8, 12)


@pytest.fixture(scope="module", params=BACKENDS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return open_runner(write_model(unet(), tmp_path_factory.mktemp("rows") / "model.onnx"), request.param)


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, Runner]:
    """The same network with its rows apart, and together."""
    shapes = {name: (1, *array.shape[1:]) for name, array in FEEDS.items()}
    path = write_model(unet(), tmp_path_factory.mktemp("apart") / "model.onnx")
    return open_runner(path, "openvino", RunnerOptions(shapes=shapes, streams=3)), open_runner(path, "openvino")


@settings(max_examples=25, deadline=None)
@given(picked=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
def test_float32_rows_are_equal_to_the_last_bit_in_any_company(runner: Runner, picked: list[int]) -> None:
    together = _rows(runner, picked)
    alone = np.concatenate([_rows(runner, [row]) for row in picked])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_rows_are_equal_whether_shapes_are_static_or_not(backend: str, tmp_path: Path) -> None:
    path = write_model(unet(), tmp_path / "model.onnx")
    shapes = {name: (2, *array.shape[1:]) for name, array in FEEDS.items()}
    fixed, free = open_runner(path, backend, RunnerOptions(shapes=shapes)), open_runner(path, backend)
    np.testing.assert_array_equal(_rows(fixed, [3, 5]), np.concatenate([_rows(free, [3]), _rows(free, [5])]))


@settings(max_examples=10, deadline=None)
@given(picked=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
def test_rows_that_run_apart_come_to_the_same(both_ways: tuple[Runner, Runner], picked: list[int]) -> None:
    alone, together = both_ways
    np.testing.assert_array_equal(_rows(alone, picked), _rows(together, picked))


def test_rows_that_run_apart_still_have_to_be_as_many_everywhere(both_ways: tuple[Runner, Runner]) -> None:
    feeds = {**FEEDS, "timestep": FEEDS["timestep"][:3]}
    with pytest.raises(InvalidRequest):
        both_ways[0](feeds)


@pytest.mark.parametrize(
    ("operator", "shape", "problem"),
    [
        ("Transpose", (3, 2), r"output 'y' has shape \[2, 1\] for one row, so rows cannot be joined"),
        ("ReduceSum", (3, 2), r"output 'y' has shape \[\] for one row"),
        ("Neg", (), r"rows cannot be split: 'x' of shape \[\]"),
        ("Neg", (0, 2), r"rows cannot be split: 'x' of shape \[0, 2\]"),
    ],
)
def test_what_has_no_batch_axis_is_refused_and_not_joined_wrongly(
    operator: str, shape: tuple[int, ...], problem: str, tmp_path: Path
) -> None:
    attributes: dict[str, Any] = {"keepdims": 0} if operator == "ReduceSum" else {}
    axes = ["n", "m"][: len(shape)]
    out = {"ReduceSum": [], "Transpose": ["m", "n"]}.get(operator, axes)
    model = make_model([node(operator, ["x"], ["y"], **attributes)], [("x", axes)], [("y", out)])
    runner = open_runner(write_model(model, tmp_path / "model.onnx"), "openvino", RunnerOptions(streams=2))
    with pytest.raises(BackendFailed, match=f"{problem}.*open the network with streams=1"):
        runner({"x": np.ones(shape, np.float32)})


def test_inputs_of_other_lengths_are_no_batch(tmp_path: Path) -> None:
    nodes, axes = [node("Neg", ["x"], ["y"]), node("Neg", ["state"], ["new"])], {"x": ["n", 2], "state": ["layers", 2]}
    outputs: list[Value] = [("y", axes["x"]), ("new", axes["state"])]
    model = make_model(nodes, list(axes.items()), outputs)
    graph, options = write_model(model, tmp_path / "model.onnx"), RunnerOptions(streams=2)
    feeds = {"x": np.ones((3, 2), np.float32), "state": np.eye(2, dtype=np.float32)}
    with pytest.raises(BackendFailed, match=r"rows cannot be split: 'x' of shape \[3, 2\], 'state' of shape \[2, 2\]"):
        open_runner(graph, "openvino", options)(feeds)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_half_precisions_are_executed_where_the_processor_has_them(precision: str, tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits, so each of five layers rounds by 2e-3 at most; a row alone or in company is as close."""
    offered = {status.name: status.precisions for status in backends()}["openvino"]
    if precision not in offered:
        pytest.skip(f"this processor has no {precision}; refusing it is tested in test_openvino.py")
    runner = open_runner(write_model(unet(), tmp_path / "model.onnx"), "openvino", RunnerOptions(precision=precision))
    assert runner.precision in (precision, "mixed")
    want = unet_float64(FEEDS, unet_weights())
    for company in ([0], [0, 3], list(range(ROWS))):
        assert relative_error(_rows(runner, company), want[company]) < 3e-2


def _rows(runner: Runner, picked: list[int]) -> Array:
    return runner({name: array[picked] for name, array in FEEDS.items()})["out_sample"]
