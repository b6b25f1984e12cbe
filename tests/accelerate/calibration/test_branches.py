"""Inputs are found that take the branches of If which other inputs do not take; the rest is named."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper, numpy_helper

from stillhouse.accelerate.calibration.branches import UntakenBranch, find_branches
from stillhouse.backends.registry import open_runner
from tests.accelerate.networks import GraphBuilder, ValueInfo

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WIDTH = 4
ROW = np.ones((1, WIDTH), np.float32)


def branch(name: str, kind: str = "Mul", factor: float = 1.0) -> GraphProto:
    """Returns x * factor, or x unchanged where `kind` moves values only."""
    inputs = ["x", f"{name}.factor"] if kind == "Mul" else ["x"]
    node = helper.make_node(kind, inputs, [f"{name}.y"])
    constants = [numpy_helper.from_array(np.array(factor, np.float32), f"{name}.factor")]
    values = [helper.make_tensor_value_info(f"{name}.y", FLOAT, None)]
    return helper.make_graph([node], name, [], values, constants)


def choosing(
    path: Path, nodes: Sequence[tuple[str, Sequence[Any]]], decides: tuple[str, int], kind: str = "Mul"
) -> Path:
    """A graph whose input `decides`, a scalar, goes through nodes of two arguments: 3 * x, or 5 * x where it is not."""
    net = GraphBuilder(0)
    name = decides[0]
    for operator, arguments in nodes:
        others = [argument if isinstance(argument, str) else net.constant(argument) for argument in arguments]
        name = net.add_node(operator, name, *others)
    branches = {"then_branch": branch("then", kind, 3.0), "else_branch": branch("else", kind, 5.0)}
    net.add_node("If", name, out="y", **branches)
    return net.write_model(
        path, [("x", ["n", WIDTH], FLOAT), (*decides[:1], [], decides[1])], [("y", ["n", WIDTH], FLOAT)]
    )


def int64(value: int) -> NDArray[np.int64]:
    return np.array(value, np.int64)


@pytest.mark.parametrize(
    ("nodes", "decides", "value", "other"),
    [
        ([("Equal", [int64(16000)])], ("sr", INT64), int64(16000), 8000),
        ([("Equal", [int64(16000)])], ("sr", INT64), int64(8000), 16000),
        ([("Greater", [int64(5)])], ("count", INT64), int64(7), 5),
        ([("Less", [int64(5)]), ("Not", [])], ("count", INT64), int64(7), 2),
        ([("Greater", [np.float32(0.5)])], ("level", FLOAT), np.array(0.1, np.float32), 1.0),
        ([], ("is_loud", BOOL), np.array(True), False),
        ([("Cast", [])], ("flag", INT64), int64(1), 0),
    ],
)
def test_an_input_near_what_the_condition_compares_takes_the_other_branch(
    tmp_path: Path, nodes: Sequence[Any], decides: tuple[str, int], value: NDArray[Any], other: float
) -> None:
    if nodes == [("Cast", [])]:
        net = GraphBuilder(0)
        net.add_node("Cast", "flag", out="c", to=BOOL)
        net.add_node("If", "c", out="y", then_branch=branch("then", factor=3), else_branch=branch("else", factor=5))
        values: list[ValueInfo] = [("x", ["n", WIDTH], FLOAT), ("flag", [], INT64)]
        graph = net.write_model(tmp_path / "if.onnx", values, [("y", ["n", WIDTH], FLOAT)])
    else:
        graph = choosing(tmp_path / "if.onnx", nodes, decides)
    found = find_branches(graph, [{"x": ROW, decides[0]: value}])
    assert found.untaken == []
    (change,) = found.changes
    ((name, changed),) = change.items()
    assert name == decides[0] and changed.item() == other and changed.dtype == value.dtype
    run = open_runner(graph)
    assert {run({"x": ROW, decides[0]: v})["y"][0, 0] for v in (value, changed)} == {3.0, 5.0}


def test_nothing_is_sought_where_the_inputs_take_both_branches(tmp_path: Path) -> None:
    graph = choosing(tmp_path / "if.onnx", [("Equal", [int64(16000)])], ("sr", INT64))
    found = find_branches(graph, [{"x": ROW, "sr": int64(rate)} for rate in (16000, 8000)])
    assert (found.changes, found.untaken) == ([], [])


def test_a_branch_that_nothing_takes_is_named(tmp_path: Path) -> None:
    graph = choosing(tmp_path / "if.onnx", [("Equal", [int64(16000)])], ("sr", INT64))
    sets: list[Mapping[str, NDArray[Any]]] = [{"x": ROW, "sr": int64(16000)}]
    assert find_branches(graph, sets, vary=False).untaken == [UntakenBranch("y", ("sr",))]
    never = choosing(tmp_path / "never.onnx", [("Mul", [int64(0)]), ("Equal", [int64(1)])], ("sr", INT64))
    assert find_branches(never, sets).untaken == [UntakenBranch("y", ("sr",))]


def test_branches_that_only_move_values_or_follow_from_shapes_do_not_count(tmp_path: Path) -> None:
    moving = choosing(tmp_path / "if.onnx", [("Equal", [int64(16000)])], ("sr", INT64), kind="Identity")
    assert find_branches(moving, [{"x": ROW, "sr": int64(16000)}]).untaken == []
    net = GraphBuilder(0)
    size = net.add_node("Size", "x")
    net.add_node(
        "If",
        net.add_node("Equal", size, net.constant(int64(WIDTH))),
        out="y",
        then_branch=branch("then"),
        else_branch=branch("else"),
    )
    shaped = net.write_model(tmp_path / "size.onnx", [("x", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])
    found = find_branches(shaped, [{"x": ROW}])
    assert (found.changes, found.untaken) == ([], [])


def test_a_condition_on_what_a_network_computes_is_answered_by_its_input(tmp_path: Path) -> None:
    net = GraphBuilder(0)
    total = net.add_node("ReduceSum", net.add_node("Abs", net.linear("x", WIDTH, WIDTH)), keepdims=0)
    net.add_node(
        "If",
        net.add_node("Greater", total, net.constant(np.array(100, np.float32))),
        out="y",
        then_branch=branch("then"),
        else_branch=branch("else"),
    )
    graph = net.write_model(tmp_path / "if.onnx", [("x", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])
    found = find_branches(graph, [{"x": ROW}])
    assert found.untaken == [] and len(found.changes) == 1
