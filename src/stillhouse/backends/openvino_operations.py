"""Multiplications and additions of the layers of an OpenVINO model."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

__all__ = ["LayerOperations", "count_operations"]

Kind = Literal["convolution", "linear", "product"]


@dataclass(frozen=True, slots=True)
class LayerOperations:
    """The work of one layer.

    Args:
        name: OpenVINO's name of the layer.
        kind: "convolution"; "linear", a matrix product with weights; or "product", of two tensors that depend on the
            inputs, as in attention.
        operations: number of multiplications and additions.
    """

    name: str
    kind: Kind
    operations: int


def count_operations(model: Any) -> Iterator[LayerOperations]:
    """Yield the work of each convolution and matrix product of an OpenVINO model, in the order of computation.

    Layers of unknown shapes, and those inside branches and loops, are left out.
    """
    varying: set[str] = set()  # names of the nodes that depend on an input
    for node in model.get_ordered_ops():
        operator, name = node.get_type_name(), node.get_friendly_name()
        depends = [value.get_node().get_friendly_name() in varying for value in node.input_values()]
        if operator == "Parameter" or any(depends):
            varying.add(name)
        if operator not in ("Convolution", "GroupConvolution", "MatMul") or node.output(0).partial_shape.is_dynamic:
            continue
        count = 2 * prod(node.output(0).get_shape())
        if operator != "MatMul":
            outer = 1 if operator == "Convolution" else 2  # [outputs, inputs, ...] or [groups, outputs, inputs, ...]
            yield LayerOperations(name, "convolution", count * prod(list(node.input_value(1).get_shape())[outer:]))
        elif node.input_value(0).partial_shape.is_static:
            inner = -2 if node.get_attributes()["transpose_a"] else -1
            operations = count * node.input_value(0).get_shape()[inner]
            yield LayerOperations(name, "product" if all(depends) else "linear", operations)
