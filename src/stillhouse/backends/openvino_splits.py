"""Splits layers of an OpenVINO model where the parts are faster than the whole. The results stay the same.

Models have static shapes. Weights may be stored in any type and scaled, as quantised ones are.
"""

from typing import Any

import numpy as np

from stillhouse.backends.openvino_values import constant_value, only_reader, readers_of

_WIDTH, _OUTPUTS = 128, 320
"""Largest width of an output, and largest number of its channels, with which OpenVINO's convolutions in int8 keep their
speed: one of 512 channels at 256x256 takes 1.8 times as long as two of 256 channels (OpenVINO 2026.4, Zen 5)."""
_ALIGNMENT = 64
_SCALINGS = ("Multiply", "Subtract")


def split_convolutions(model: Any, runtime: Any) -> int:
    """Split wide quantised convolutions of many outputs in two, and return how many there were.

    `runtime` is the package openvino.
    """
    opset, count = runtime.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or not _is_slow(node):
            continue
        half = node.output(0).get_shape()[1] // 2
        weights = [_take(node.input_value(1), 0, start, start + half, runtime) for start in (0, half)]
        if all(weights):
            attributes = node.get_attributes()
            sizes = [list(attributes[name]) for name in ("strides", "pads_begin", "pads_end", "dilations")]
            halves = [opset.convolution(node.input_value(0), part, *sizes) for part in weights]
            _replace(node, opset.concat(halves, 1).output(0))
            count += 1
    return count


def _is_slow(node: Any) -> bool:
    """Return whether a convolution is quantised, and wide with many outputs."""
    shape, is_explicit = list(node.output(0).get_shape()), node.get_attributes()["auto_pad"] == "explicit"
    if node.input_value(0).get_node().get_type_name() != "FakeQuantize" or len(shape) != 4 or not is_explicit:
        return False
    channels, width = shape[1], shape[3]
    return bool(channels > _OUTPUTS and width > _WIDTH and channels % (2 * _ALIGNMENT) == 0)


def split_gates(model: Any, runtime: Any) -> int:
    """Split linear layers whose outputs are taken apart, as before a gated activation; return how many there were.

    A gated activation is x[:, :n] * gelu(x[:, n:]). Taking the halves apart copies the tensor once.
    `runtime` is the package openvino.
    """
    opset, count = runtime.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
            continue
        last, bias = _with_bias(node, runtime)
        readers = [reader for reader in readers_of(last) if reader.get_type_name() != "ShapeOf"]
        found = [(_taken_from_last(reader, last, runtime), reader) for reader in readers]
        spans = sorted([(*span, reader) for span, reader in found if span is not None], key=lambda span: span[:2])
        borders = [*(start for start, *_ in spans[1:]), node.output(0).get_shape()[-1]]
        if len(readers) != len(spans) or len(spans) < 2 or [end for _, end, _ in spans] != borders:
            continue
        is_transposed = node.get_attributes()["transpose_b"]
        axis = len(node.input_value(1).get_shape()) - (2 if is_transposed else 1)
        parts = {}
        for start, end, reader in spans:
            weights = _take(node.input_value(1), axis, start, end, runtime)
            term = None if bias is None else _take(bias, -1, start, end, runtime)
            if weights is None or (term is None) != (bias is None):
                break
            product = opset.matmul(node.input_value(0), weights, False, is_transposed)
            parts[reader] = product if term is None else opset.add(product, term)
        if len(parts) == len(spans):
            for reader, part in parts.items():
                _replace(reader, part.output(0))
            count += 1
    return count


def _with_bias(node: Any, runtime: Any) -> tuple[Any, Any]:
    """Return the addition of a constant for each output behind a product, and the constant; else the product, None."""
    reader = only_reader(node)
    if reader is not None and reader.get_type_name() == "Add":
        for place in reader.input_values():
            is_wide = list(place.get_shape())[-1:] == list(node.output(0).get_shape())[-1:]
            if is_wide and place.get_node() != node and constant_value(place, runtime) is not None:
                return reader, place
    return node, None


def _taken_from_last(reader: Any, node: Any, runtime: Any) -> tuple[int, int] | None:
    """Return the first and the last place of a Slice of the last axis of a node; None for any other reader."""
    if reader.get_type_name() != "Slice" or len(reader.inputs()) != 5:
        return None
    values = [constant_value(place, runtime) for place in reader.input_values()[1:]]
    if any(value is None or value.size != 1 for value in values):
        return None
    start, end, step, axis = (int(value.item()) for value in values if value is not None)
    shape = list(node.output(0).get_shape())
    is_plain = step == 1 and axis % len(shape) == len(shape) - 1 and 0 <= start < end
    return (start, min(end, shape[-1])) if is_plain else None


def _take(output: Any, axis: int, start: int, end: int, runtime: Any) -> Any | None:
    """Return an output with a part of the weights of another, or of a bias; None where these are no constants.

    Weights stay in the type in which they are stored. Constants that broadcast along the axis stay whole.

    Args:
        output: a constant, possibly converted, scaled, shifted and transposed.
        axis: axis that is cut.
        start, end: first place, and the one behind the last.
        runtime: the package openvino.
    """
    opset, node = runtime.opset13, output.get_node()
    kind, rank = node.get_type_name(), len(output.get_shape())
    axis %= max(rank, 1)
    if kind == "Constant":
        if node.get_element_type().to_string() in ("bf16", "i4", "u4"):  # types that NumPy does not have
            return None
        if rank == 0 or output.get_shape()[axis] == 1:
            return output
        return opset.constant(np.array(np.asarray(node.data)[(slice(None),) * axis + (slice(start, end),)])).output(0)
    if kind == "Convert":
        part = _take(node.input_value(0), axis, start, end, runtime)
        return part and opset.convert(part, output.get_element_type().to_string()).output(0)
    if kind == "Transpose":
        order = constant_value(node.input_value(1), runtime)
        part = None if order is None else _take(node.input_value(0), int(order[axis]), start, end, runtime)
        return part and opset.transpose(part, node.input_value(1)).output(0)
    if kind in _SCALINGS and all(len(place.get_shape()) in (0, rank) for place in node.input_values()):
        parts = [_take(place, axis, start, end, runtime) for place in node.input_values()]
        if all(parts):
            return (opset.multiply if kind == "Multiply" else opset.subtract)(*parts).output(0)
    return None


def _replace(node: Any, output: Any) -> None:
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(output)
