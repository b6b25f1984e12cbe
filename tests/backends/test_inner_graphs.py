"""Graphs inside of graphs are walked through at any depth, in the order in which tensors are written."""

import onnx
from onnx import TensorProto

from stillhouse.backends.inner_graphs import inner_graphs, iterate_graphs, iterate_nodes
from tests.backends.networks import node


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
    return onnx.helper.make_graph(list(nodes), name, [], [value])


def test_every_node_at_every_depth_comes_once_and_in_order() -> None:
    deep = node("If", ["c"], ["d"], then_branch=branch("e", node("Neg", ["x"], ["e"])), else_branch=branch("x"))
    outer = node("If", ["c"], ["b"], then_branch=branch("d", deep), else_branch=branch("f", node("Abs", ["x"], ["f"])))
    graph = branch("y", node("Relu", ["x"], ["a"]), outer, node("Add", ["a", "b"], ["y"]))
    assert [one.output[0] for one in iterate_nodes(graph)] == ["a", "b", "f", "d", "e", "y"]
    assert [one.name for one in iterate_graphs(graph)] == ["y", "f", "d", "x", "e"]
    assert [one.name for one in inner_graphs(outer)] == ["f", "d"]  # attributes are sorted by name
    assert list(inner_graphs(node("Relu", ["x"], ["a"]))) == []
