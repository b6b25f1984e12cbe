"""The work of layers follows from their shapes; products with weights and of two activations are told apart."""

from typing import Any

import numpy as np

from stillhouse.backends.openvino_operations import LayerOperations, count_operations


def model() -> Any:
    """A convolution of 3x3, a linear layer whose weights are stored in int8, and a product of two activations."""
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([2, 4, 8, 8], np.float32)
    convolved = ops.convolution(x, np.ones((6, 4, 3, 3), np.float32), [1, 1], [1, 1], [1, 1], [1, 1])
    convolved.set_friendly_name("conv")
    tokens = ops.reshape(convolved, ops.constant(np.array([2, 6, 64])), False)
    weights = ops.multiply(ops.convert(ops.constant(np.ones((5, 64), np.int8)), "f32"), np.float32(0.5))
    linear = ops.matmul(tokens, weights, False, True)
    linear.set_friendly_name("linear")
    product = ops.matmul(linear, linear, True, False)
    product.set_friendly_name("product")
    return openvino.Model([product], [x])


def test_operations_follow_from_shapes() -> None:
    assert list(count_operations(model())) == [
        LayerOperations("conv", "convolution", 2 * (2 * 6 * 8 * 8) * (4 * 3 * 3)),
        LayerOperations("linear", "linear", 2 * (2 * 6 * 5) * 64),
        LayerOperations("product", "product", 2 * (2 * 5 * 5) * 6),
    ]


def test_a_convolution_of_groups_reads_the_channels_of_its_group() -> None:
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([1, 4, 8, 8], np.float32)
    grouped = ops.group_convolution(x, np.ones((2, 3, 2, 3, 3), np.float32), [1, 1], [1, 1], [1, 1], [1, 1])
    (layer,) = count_operations(openvino.Model([grouped], [x]))
    assert layer.operations == 2 * (6 * 8 * 8) * (2 * 3 * 3)


def test_layers_of_unknown_shapes_are_left_out() -> None:
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4], np.float32)
    product = ops.matmul(x, np.ones((4, 4), np.float32), False, False)
    assert list(count_operations(openvino.Model([product], [x]))) == []
