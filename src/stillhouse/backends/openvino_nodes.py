"""Nodes of an OpenVINO model that are computed by a function of this package."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Compute = Callable[[Sequence[NDArray[Any]], NDArray[Any]], None]
"""Computes the output, its second argument, from the inputs. A tensor of bf16 comes as uint16, its bits."""

UNFUSED_RANK = 7
"""Number of axes with which OpenVINO keeps a conversion apart from other layers.

A node that computes in bf16 needs a conversion before and after it, which is nothing where the layers around compute in
bf16 already. OpenVINO leaves such a conversion out, but only where it has not joined it with neighbours to a generated
kernel, which then copies the tensor. It does not join layers of more than six axes.
"""


class FunctionNodes:
    """The nodes of one model, which lets go of the model once it is compiled.

    A compiled model keeps such nodes, and each of these would keep all nodes before it with their weights.

    Args:
        runtime: the package openvino.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self._nodes: list[Any] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def add(
        self, name: str, compute: Compute, inputs: Sequence[Any], *, is_bf16: bool = False, unread: Sequence[Any] = ()
    ) -> Any:
        """Return the output of a new node, of the shape and the type of its first input.

        Args:
            name: name of the node in profiles.
            compute: the function.
            inputs: outputs of other nodes, of static shapes.
            is_bf16: whether inputs and output are converted to bf16 and back.
            unread: further outputs that the node depends on and the function does not get.
        """
        arguments = [_to_bf16(value, self.runtime.opset13) for value in inputs] if is_bf16 else list(inputs)
        node = _node_class(self.runtime)(self._nodes, compute, len(inputs))
        node.set_friendly_name(name)
        node.set_arguments([*arguments, *unread])
        node.constructor_validate_and_infer_types()
        return _from_bf16(node, inputs[0], self.runtime.opset13) if is_bf16 else node.output(0)

    def release(self) -> None:
        """Cut all nodes that were made, copies by the compiler included, off the model."""
        parameter = self.runtime.opset13.parameter
        for node in self._nodes:
            for place in node.inputs():
                place.replace_source_output(parameter(list(place.get_shape()), place.get_element_type()).output(0))
        self._nodes.clear()


def _to_bf16(value: Any, opset: Any) -> Any:
    shape = list(value.get_shape())
    widened = _reshape(value, [*[1] * (UNFUSED_RANK - len(shape)), *shape], opset)
    return opset.convert(widened, "bf16").output(0)


def _from_bf16(node: Any, model: Any, opset: Any) -> Any:
    """Return the output of a node in the shape and the type of another output."""
    converted = opset.convert(node, model.get_element_type())
    return _reshape(converted, list(model.get_shape()), opset).output(0)


def _reshape(value: Any, shape: Sequence[int], opset: Any) -> Any:
    return opset.reshape(value, opset.constant(np.array(shape, np.int64)), False)


@cache
def _node_class(runtime: Any) -> Any:
    """Return the class of the nodes, which is made on first use, because openvino may not be installed."""

    class FunctionNode(runtime.Op):  # type: ignore[misc]
        def __init__(self, nodes: list[Any], compute: Compute, count: int) -> None:
            super().__init__(self, None)
            self._state = nodes, compute, count
            nodes.append(self)

        def validate_and_infer_types(self) -> None:
            self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

        def clone_with_new_inputs(self, inputs: list[Any]) -> Any:
            node = FunctionNode(*self._state)
            node.set_arguments(inputs)
            node.constructor_validate_and_infer_types()
            return node

        def visit_attributes(self, visitor: Any) -> bool:
            # Tells nodes with the same inputs apart, which OpenVINO would join otherwise.
            visitor.on_attributes({"function": id(self._state[1])})
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
            _, compute, count = self._state
            compute([_array(tensor) for tensor in inputs[:count]], _array(outputs[0]))
            return True

    return FunctionNode


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.data
    return array.view(np.uint16) if array.itemsize == 2 else array
