"""What depends on constants and static shapes has a value; what depends on an input has none."""

import numpy as np

from stillhouse.backends.openvino_values import constant_value, only_reader, readers_of
from stillhouse.backends.runtime import require

OPENVINO = require("openvino")
ops = require("openvino.opset13")


def test_constants_and_static_shapes_have_values() -> None:
    x = ops.parameter([2, 3, 8], np.float32)
    half = ops.divide(ops.gather(ops.shape_of(x), ops.constant([2]), ops.constant(0)), ops.constant(np.array([2])))
    value = constant_value(ops.concat([half, ops.constant(np.array([7]))], 0).output(0), OPENVINO)
    assert value is not None
    assert value.tolist() == [4, 7]
    halves = constant_value(ops.convert(ops.constant(np.array([0.5], np.float16)), "f32").output(0), OPENVINO)
    assert halves is not None
    assert halves.tolist() == [0.5]


def test_inputs_and_open_shapes_have_none() -> None:
    x = ops.parameter([2, -1], np.float32)
    assert constant_value(ops.add(x, ops.constant(np.float32(1))).output(0), OPENVINO) is None
    assert constant_value(ops.shape_of(x).output(0), OPENVINO) is None


def test_long_expressions_are_not_followed() -> None:
    value = ops.constant(np.float32(0))
    for _ in range(100):
        value = ops.add(value, ops.constant(np.float32(1)))
    assert constant_value(value.output(0), OPENVINO) is None


def test_a_shape_is_no_reading_of_the_values() -> None:
    x = ops.parameter([2, 3], np.float32)
    node = ops.relu(x)
    total, _ = ops.exp(node), ops.shape_of(node)
    assert only_reader(node) == total
    assert len(readers_of(node)) == 2
    ops.abs(node)
    assert only_reader(node) is None or len(readers_of(node)) == 2
