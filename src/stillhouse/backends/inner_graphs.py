"""The graphs inside an ONNX graph: the branches of If, and the bodies of Loop and Scan."""

from collections.abc import Iterator
from typing import Any


def inner_graphs(node: Any) -> Iterator[Any]:
    """Iterate over the graphs inside a node, a NodeProto: branches and loop bodies.

    Graphs inside these graphs are left out, see `iterate_graphs`.
    """
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def nodes_inside(node: Any) -> Iterator[Any]:
    """Iterate over the nodes of all graphs inside a node, a NodeProto, at any depth."""
    for inner in inner_graphs(node):
        yield from iterate_nodes(inner)


def iterate_graphs(graph: Any) -> Iterator[Any]:
    """Iterate over a graph, a GraphProto, and all graphs inside it at any depth. The outer graph comes first."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from iterate_graphs(inner)


def iterate_nodes(graph: Any) -> Iterator[Any]:
    """Iterate over the nodes of a graph, a GraphProto, and of all graphs inside it at any depth.

    A node comes before the nodes inside it, and these come before the next node. So every node that writes a tensor
    comes before the nodes that read it.
    """
    for node in graph.node:
        yield node
        yield from nodes_inside(node)
