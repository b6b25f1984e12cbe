"""Replaces group normalisation in an OpenVINO model by `group_norm`.

OpenVINO normalises groups on a layout whose channels are outermost, and convolutions compute on one whose channels are
innermost, so that each normalisation between two convolutions costs two changes of the layout: a seventh of the time of
a decoder in int8. `group_norm` reads and writes the layout of the convolutions.

Replaced are normalisations of pictures, [rows, channels, height, width], with the SiLU behind them. A scaling for each
channel and a rounding (FakeQuantize) behind these are computed on the same layout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.group_norm import GROUP_NORM, group_norm
from stillhouse.backends.openvino_nodes import FunctionNodes
from stillhouse.backends.openvino_values import constant_value, only_reader, readers_of

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Permutations that make channels the last axis, and the second one again."""


@dataclass(frozen=True, slots=True)
class _GroupNorm:
    """A group normalisation in a model.

    Args:
        source: output of a node, [rows, channels, height, width].
        result: the last node of the normalisation, and of its SiLU.
        scale, shift: factor and term of each channel, float32.
        groups: number of groups.
        epsilon: added to the variances.
        has_silu: whether the SiLU of the normalised values is taken.
    """

    source: Any
    result: Any
    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    groups: int
    epsilon: float
    has_silu: bool


def replace_group_norms(model: Any, nodes: FunctionNodes, threads: int) -> int:
    """Replace the group normalisations of a model with static shapes, and return how many there were.

    Args:
        model: OpenVINO's model, which is changed in place and will be compiled for bf16.
        nodes: where the new nodes are added.
        threads: number of threads of each normalisation.
    """
    GROUP_NORM.load()
    opset = nodes.runtime.opset13
    found = list(_find_group_norms(model, nodes.runtime))
    for norm in found:
        compute = partial(
            _normalise,
            scale=norm.scale,
            shift=norm.shift,
            groups=norm.groups,
            epsilon=norm.epsilon,
            silu=norm.has_silu,
            threads=threads,
        )
        last = _transpose(norm.source, _TO_LAST, opset)
        name = f"{norm.result.get_friendly_name()}/group_norm"
        value = nodes.add(name, compute, [last], is_bf16=True, unread=_pin_sum(norm.source, nodes.runtime))
        replaced = norm.result
        for node in _scaling_and_rounding(norm.result, nodes.runtime):
            value = _with_channels_last(node, value, nodes.runtime)
            replaced = node
        first = _transpose(value, _TO_FIRST, opset)
        for reader in list(replaced.output(0).get_target_inputs()):
            reader.replace_source_output(first)
    return len(found)


def _pin_sum(source: Any, runtime: Any) -> list[Any]:
    """Return outputs that keep OpenVINO from adding a convolution's result to another's in place.

    OpenVINO spares the change of the layout before a normalisation where a convolution or an addition wrote the tensor,
    but not where a convolution added its result to another's in place. It does so only where nothing else reads the
    results. The outputs are one value of each; there are none where `source` is no sum of two convolutions.
    """
    node = source.get_node()
    if node.get_type_name() == "Divide" and _is_one(
        node.input_value(1), runtime
    ):  # the output scale of diffusers' blocks
        node = node.input_value(0).get_node()
    terms = node.input_values()
    if node.get_type_name() != "Add" or not all(_is_convolved(value, runtime) for value in terms):
        return []
    opset = runtime.opset13
    start, one, axes = (opset.constant(np.array(values)) for values in ([0] * 4, [1] * 4, [0, 1, 2, 3]))
    return [opset.slice(value, start, one, one, axes).output(0) for value in terms]


def _is_convolved(value: Any, runtime: Any) -> bool:
    """Return whether a tensor is the result of a convolution, with a bias or without."""
    node = value.get_node()
    if node.get_type_name() == "Add":
        varying = [place for place in node.input_values() if _constant(place, runtime) is None]
        node = varying[0].get_node() if len(varying) == 1 else node
    return bool(node.get_type_name() == "Convolution")


def _is_one(value: Any, runtime: Any) -> bool:
    values = _constant(value, runtime)
    return values is not None and bool((values == 1).all())


def _transpose(value: Any, order: Sequence[int], opset: Any) -> Any:
    return opset.transpose(value, opset.constant(np.array(order))).output(0)


def _normalise(inputs: Sequence[NDArray[Any]], out: NDArray[Any], **arguments: Any) -> None:
    (x,) = inputs
    # [1, ..., rows, height, width, channels]
    group_norm(x.reshape(-1, *x.shape[-3:]), out=out.reshape(-1, *out.shape[-3:]), **arguments)


def _find_group_norms(model: Any, runtime: Any) -> Iterator[_GroupNorm]:
    """Yield the group normalisations of pictures in a model with static shapes.

    OpenVINO reads ONNX's InstanceNormalization, with which torch's exporter writes a group normalisation, as
    Reshape to [rows, groups, values], MVN over the values, Multiply and Add of constants, Reshape to the picture's
    shape, and Multiply and Add of constants for each channel.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MVN" or (reshape := node.input_value(0).get_node()).get_type_name() != "Reshape":
            continue
        source, attributes = reshape.input_value(0), node.get_attributes()
        shape, flat = list(source.get_shape()), list(node.output(0).get_shape())
        axes = _constant(node.input_value(1), runtime)
        is_plain = attributes["normalize_variance"] and str(attributes["eps_mode"]).upper() == "INSIDE_SQRT"
        if not is_plain or len(shape) != 4 or len(flat) != 3 or axes is None or list(axes % 3) != [2]:
            continue
        rows, groups = flat[:2]
        if rows == shape[0] and shape[1] % groups == 0 and groups * flat[2] == prod(shape[1:]):
            last, scale, shift = _affine_end(node, groups, shape, runtime)
            if list(last.output(0).get_shape()) == shape:
                silu = _silu_of(last)
                result = last if silu is None else silu
                yield _GroupNorm(source, result, scale, shift, groups, attributes["eps"], silu is not None)


def _affine_end(
    node: Any, groups: int, shape: Sequence[int], runtime: Any
) -> tuple[Any, NDArray[np.float32], NDArray[np.float32]]:
    """Follow the multiplications and additions of constants behind a node; return the last node, factors and terms.

    Args:
        node: an MVN on [rows, groups, values].
        groups: number of groups.
        shape: shape of the picture, [rows, channels, height, width].
        runtime: the package openvino.
    """
    channels = shape[1]
    scale, shift = np.ones(channels), np.zeros(channels)
    while (reader := only_reader(node)) is not None:
        kind = reader.get_type_name()
        if kind == "Reshape" and list(reader.output(0).get_shape()) == list(shape):
            node = reader
            continue
        operand = reader.input_value(1 - _place(node, reader)) if kind in ("Multiply", "Add") else None
        values = None if operand is None else _per_channel(operand, node, groups, channels, runtime)
        if values is None:
            break
        scale, shift = (scale * values, shift * values) if kind == "Multiply" else (scale, shift + values)
        node = reader
    return node, scale.astype(np.float32), shift.astype(np.float32)


def _place(node: Any, reader: Any) -> int:
    """Return which input of a reader a node is."""
    places = node.output(0).get_target_inputs()
    return int(next(place.get_index() for place in places if place.get_node() == reader))


def _per_channel(operand: Any, node: Any, groups: int, channels: int, runtime: Any) -> NDArray[np.float64] | None:
    """Return the constant that is multiplied with or added to the output of a node, for each channel.

    None where it is no constant, or has another form than one value for all, for each group or for each channel.
    """
    values = _constant(operand, runtime)
    axis = len(node.output(0).get_shape()) - len(operand.get_shape())
    if values is None or axis < 0 or (values.size > 1 and _wide_axes(operand) != [1 - axis]):
        return None
    is_flat = len(node.output(0).get_shape()) == 3
    is_known = values.size in (1, groups if is_flat else channels)
    return np.repeat(values, channels // values.size) if is_known else None


def _wide_axes(output: Any) -> list[int]:
    """Return the axes of an output that are longer than 1."""
    return [axis for axis, length in enumerate(output.get_shape()) if length > 1]


def _constant(output: Any, runtime: Any) -> NDArray[np.float64] | None:
    """Return the values of a constant, flat; None for anything else."""
    value = constant_value(output, runtime)
    return None if value is None else value.astype(np.float64).ravel()


def _silu_of(node: Any) -> Any | None:
    """Return the node x * sigmoid(x) of a node x that nothing else reads; None where there is none."""
    readers = {reader.get_type_name(): reader for reader in readers_of(node)}
    if len(readers_of(node)) == 1 and "Swish" in readers and len(readers["Swish"].inputs()) == 1:
        return readers["Swish"]
    if sorted(reader.get_type_name() for reader in readers_of(node)) != ["Multiply", "Sigmoid"]:
        return None
    product = only_reader(readers["Sigmoid"])
    return product if product is not None and product == readers["Multiply"] else None


def _scaling_and_rounding(node: Any, runtime: Any) -> list[Any]:
    """Return the Multiply and the FakeQuantize of constants behind a node of a picture's shape that nothing else reads.

    Both must have one constant for all values or for each channel. Where no FakeQuantize follows, the list is empty.
    """
    found: list[Any] = []
    while (reader := only_reader(node)) is not None:
        kind = reader.get_type_name()
        is_known = kind == "FakeQuantize" or (kind == "Multiply" and not found)
        if not is_known or not all(_is_for_channels(place, runtime) for place in reader.input_values()[1:]):
            break
        found.append(reader)
        if kind == "FakeQuantize":
            return found
        node = reader
    return []


def _is_for_channels(output: Any, runtime: Any) -> bool:
    values, shape = _constant(output, runtime), list(output.get_shape())
    return values is not None and (prod(shape) == 1 or (len(shape) == 4 and _wide_axes(output) == [1]))


def _with_channels_last(node: Any, value: Any, runtime: Any) -> Any:
    """Return the output of a node like a Multiply or FakeQuantize of constants, for a value whose channels are last."""
    opset, constants = runtime.opset13, []
    for place in node.input_values()[1:]:
        array = _constant(place, runtime)
        assert array is not None
        constants.append(opset.constant(array.astype(np.float32).reshape(() if array.size == 1 else (1, 1, 1, -1))))
    if node.get_type_name() == "Multiply":
        return opset.multiply(value, constants[0]).output(0)
    return opset.fake_quantize(value, *constants, node.get_attributes()["levels"]).output(0)
