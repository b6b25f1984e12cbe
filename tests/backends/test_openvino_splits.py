"""Layers that are faster in parts are split, with the same results; all others stay."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.backends.openvino_splits import split_convolutions, split_gates
from stillhouse.backends.runtime import require

OPENVINO = require("openvino")
ops = require("openvino.opset13")


def draw(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def integer_weights(*shape: int) -> Any:
    """Weights as NNCF stores them: int8 with a scale for each output."""
    values = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    scales = np.abs(draw(shape[0], *[1] * (len(shape) - 1))) / 127
    return ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scales))


def run(model: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    compiled = OPENVINO.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([x])[0])


def convolution(channels: int, width: int, is_rounded: bool = True) -> Any:
    x = ops.parameter([1, 4, 2, width], np.float32)
    ends = [ops.constant(np.float32(end)) for end in (-4, 4, -4, 4)]
    source = ops.fake_quantize(x, *ends, 256) if is_rounded else x
    y = ops.convolution(source, integer_weights(channels, 4, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    return OPENVINO.Model([ops.add(y, ops.constant(draw(1, channels, 1, 1)))], [x])


def test_a_wide_convolution_of_many_channels_is_split() -> None:
    x = draw(1, 4, 2, 160)
    model = convolution(384, 160)
    before = run(model, x)
    assert split_convolutions(model, OPENVINO) == 1
    assert run(model, x) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize(("channels", "width", "is_rounded"), [(384, 128, True), (320, 160, True), (384, 160, False)])
def test_other_convolutions_stay(channels: int, width: int, is_rounded: bool) -> None:
    assert split_convolutions(convolution(channels, width, is_rounded), OPENVINO) == 0


def gate(
    halves: tuple[int, ...] = (0, 1), is_transposed: bool = True, has_bias: bool = True, stored: str = "int8"
) -> Any:
    """x[:, :8] * gelu(x[:, 8:]) of a linear layer, as torch's exporter writes it: with bounds made of shapes."""
    x = ops.parameter([2, 3, 6], np.float32)
    floats = ops.convert(ops.constant(draw(16, 6).astype(np.float16 if stored == "float16" else np.float32)), "f32")
    weights = integer_weights(16, 6) if stored == "int8" else floats
    if not is_transposed:
        weights = ops.transpose(weights, ops.constant([1, 0]))
    y = ops.matmul(x, weights, False, is_transposed)
    if has_bias:
        y = ops.add(ops.constant(draw(16)), y)
    width = ops.gather(ops.shape_of(y), ops.constant([2]), ops.constant(0))
    size = ops.divide(width, ops.constant(np.array([2])))
    bounds = [ops.multiply(size, ops.constant(np.array([place]))) for place in range(3)]
    one, last = ops.constant(np.array([1])), ops.constant(np.array([-1]))
    parts = [ops.slice(y, bounds[half], bounds[half + 1], one, last) for half in halves]
    result = ops.multiply(parts[0], ops.gelu(parts[1], "erf")) if len(parts) == 2 else parts[0]
    return OPENVINO.Model([result], [x])


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("stored", ["int8", "float16", "float32"])
def test_a_linear_layer_before_a_gate_is_split(stored: str, is_transposed: bool, has_bias: bool) -> None:
    model, x = gate(is_transposed=is_transposed, has_bias=has_bias, stored=stored), draw(2, 3, 6)
    before = run(model, x)
    assert split_gates(model, OPENVINO) == 1
    assert not any(node.get_type_name() == "Slice" for node in model.get_ops())
    assert run(model, x) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("halves", [(0,), (1,), (0, 0)])
def test_parts_that_are_not_the_whole_stay(halves: tuple[int, ...]) -> None:
    assert split_gates(gate(halves), OPENVINO) == 0
