"""Values in an OpenVINO model that do not depend on its inputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_NODES = 64


def constant_value(output: Any, runtime: Any) -> NDArray[Any] | None:
    """Return the value of an output that depends on constants and static shapes only; None for any other.

    Folding the constants of a whole model takes seconds and expands its weights; this computes only what is asked for.
    Expressions of more than _MOST_NODES nodes are not followed.

    Args:
        output: output of a node of an OpenVINO model.
        runtime: the package openvino.
    """
    tensor = _evaluate(output, runtime) if _is_constant(output) else None
    return None if tensor is None else np.array(tensor.data)


def only_reader(node: Any) -> Any | None:
    """Return the node that reads the output of a node; None where there are several or none. Shapes may be read."""
    readers = [reader for reader in readers_of(node) if reader.get_type_name() != "ShapeOf"]
    return readers[0] if len(readers) == 1 else None


def readers_of(node: Any) -> list[Any]:
    """Return the nodes that read the first output of a node."""
    return [place.get_node() for place in node.output(0).get_target_inputs()]


def _is_constant(output: Any) -> bool:
    seen: set[str] = set()
    waiting = [output.get_node()]
    while waiting:
        node = waiting.pop()
        kind = node.get_type_name()
        if kind in ("Parameter", "ReadValue") or len(seen) > _MOST_NODES:
            return False
        if kind != "ShapeOf" and node.get_friendly_name() not in seen:
            seen.add(node.get_friendly_name())
            waiting += [value.get_node() for value in node.input_values()]
    return True


def _evaluate(output: Any, runtime: Any) -> Any | None:
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return runtime.Tensor(np.array(node.data)) if node.get_element_type() != runtime.Type.bf16 else None
    if kind == "ShapeOf":
        shape = node.input_value(0).get_partial_shape()
        return runtime.Tensor(np.array(shape.to_shape(), np.int64)) if shape.is_static else None
    inputs = [_evaluate(value, runtime) for value in node.input_values()]
    if not inputs or any(value is None for value in inputs):
        return None
    if any(place.get_partial_shape().is_dynamic for place in node.outputs()):
        return None
    outputs = [runtime.Tensor(place.get_element_type(), place.get_shape()) for place in node.outputs()]
    return outputs[output.get_index()] if node.evaluate(outputs, inputs) else None
