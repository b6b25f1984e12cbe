"""Further shapes that an ONNX file allows, inputs of these shapes, and shapes written as command-line options.

A candidate is checked on further shapes, because it may be right only for the shapes at which it was made.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.accelerate.calibration.graph_inputs import GraphInputs, read_graph_inputs
from stillhouse.accelerate.calibration.infer_shapes import axis_kind, axis_terms, max_tokens
from stillhouse.accelerate.calibration.real_pictures import STRIP_RATIO
from stillhouse.backends.runner import bind_axes

Shapes: TypeAlias = dict[str, tuple[int, ...]]
_MORE_TOKENS = 3
_SIDE_MULTIPLE = 32
"""Number of pixels of which larger heights and widths are multiples, as networks with several scales require."""


def other_shapes(
    graph: Path,
    shapes: Mapping[str, tuple[int, ...]],
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> list[Shapes]:
    """Return up to two further sets of shapes that a user or an ONNX file allows, each by input name.

    With ranges these are the smallest and the largest shape. Without ranges there are two sets. The first has two rows
    in place of one, if the batch is open. The second has larger lengths of all other open axes: heights, widths, frames
    and samples 1.5 times as long, rounded up to a multiple of 32, or twice as long up to 32; and three more tokens, or
    three fewer where the graph has no position for more. Axes of one name keep one length. Channels, features and the
    height of lines of text do not change.

    Args:
        graph: an ONNX file.
        shapes: shapes of all inputs of the graph, from `infer_shapes`.
        ranges: (minimum, maximum) shape by input name; an input without a range keeps its shape, except for axes whose
            name an input with a range has; empty: the file's open axes count.

    Returns:
        sets of shapes that differ from `shapes` and from each other; empty where no axis is open.

    Raises:
        InvalidRequest: a shape does not match the graph's axes.
        PipelineError: the file is missing or not an ONNX graph.
    """
    inputs = read_graph_inputs(graph)
    bind_axes(shapes, inputs.axes)
    if ranges:
        found = [_change_lengths(inputs, shapes, _range_lengths(inputs, ranges, end)) for end in (0, 1)]
    else:
        found = [_change_lengths(inputs, shapes, _free_lengths(inputs, shapes, batch=batch)) for batch in (True, False)]
    others: list[Shapes] = []
    for candidate in found:
        if candidate != dict(shapes) and candidate not in others:
            others.append(candidate)
    return others


def resize_feeds(
    sets: Sequence[Mapping[str, NDArray[Any]]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[Any]]:
    """Return inputs of other shapes: along each axis the values of the first set are cut off, or other sets follow.

    Rows of other sets differ from those of the first, as a network may compare rows: repeated ones would prove nothing.
    After the last set comes the first again. Sets of other shapes are left out. An axis of length 0 grows by zeros.
    Element types stay. All arguments have the names of all inputs as keys, and shapes have as many axes as the arrays.

    >>> resize_feeds([{"x": np.array([[1, 2, 3]])}, {"x": np.array([[7, 8, 9]])}], {"x": (2, 5)})["x"].tolist()
    [[1, 2, 3, 7, 8], [7, 8, 9, 1, 2]]
    """
    usable = [feeds for feeds in sets if all(array.shape == sets[0][name].shape for name, array in feeds.items())]
    return {name: _resize([feeds[name] for feeds in usable], shape) for name, shape in shapes.items()}


def shape_arguments(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return shapes by input name as command-line options of `stillhouse accelerate`; inputs without axes are left out.

    >>> shape_arguments({"images": (1, 3, 320, 320), "t": ()})
    '--shape images=1x3x320x320'
    """
    texts = [f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items() if shape]
    return " ".join(f"--shape {shlex.quote(text)}" for text in texts)


def _resize(arrays: Sequence[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    if arrays[0].size == 0:
        return np.zeros(shape, arrays[0].dtype)
    for axis, length in enumerate(shape):
        parts = -(-length // arrays[0].shape[axis])
        arrays = [_join([*arrays[first:], *arrays[:first]], parts, axis, length) for first in range(len(arrays))]
    return np.asarray(arrays[0], order="C")


def _join(arrays: Sequence[NDArray[Any]], parts: int, axis: int, length: int) -> NDArray[Any]:
    """Return the first `length` elements along an axis of so many arrays joined, in turn; of one where `parts` is 0."""
    joined = np.concatenate([arrays[part % len(arrays)] for part in range(max(1, parts))], axis)
    return np.take(joined, range(length), axis)


_Key: TypeAlias = str | tuple[str, int]
"""Name of an axis; or name of an input and number of an axis, for an axis without a name."""


def _key(inputs: GraphInputs, name: str, index: int) -> _Key:
    axis = inputs.axes[name][index]
    return axis if isinstance(axis, str) else (name, index)


def _range_lengths(
    inputs: GraphInputs, ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], end: int
) -> dict[_Key, int]:
    """Return the smallest (`end` 0) or largest (`end` 1) length of each axis that all ranges allow.

    Where inputs share an axis, the largest minimum and the smallest maximum count.
    """
    lengths: dict[_Key, int] = {}
    for name, shapes in ranges.items():
        for index, length in enumerate(shapes[end]):
            key = _key(inputs, name, index)
            lengths[key] = (max, min)[end](length, lengths.get(key, length))
    return lengths


def _free_lengths(inputs: GraphInputs, shapes: Mapping[str, tuple[int, ...]], *, batch: bool) -> dict[_Key, int]:
    """Return new lengths of the open axes: only of those that count rows of a batch, or only of all others."""
    lengths: dict[_Key, int] = {}
    for name, axes in inputs.axes.items():
        for index, axis in enumerate(axes):
            key = _key(inputs, name, index)
            if isinstance(axis, int) or key in lengths or (isinstance(axis, str) and len(axis_terms(inputs, axis)) > 1):
                continue
            kind = axis_kind(inputs, name, index, axis or "")
            length = shapes[name][index]
            if kind == "side" and index == len(axes) - 2 and shapes[name][-1] >= STRIP_RATIO * length:
                kind = "height of a line"
            if batch == (kind == "batch"):
                lengths[key] = _larger_length(inputs, kind, length)
    return lengths


def _larger_length(inputs: GraphInputs, kind: str, length: int) -> int:
    if kind == "batch":
        return 2 if length == 1 else length
    if kind == "past":
        return length + _MORE_TOKENS
    if kind == "tokens":
        most = max_tokens(inputs)
        return length + _MORE_TOKENS if most is None or length + _MORE_TOKENS <= most else max(1, length - _MORE_TOKENS)
    if kind in ("side", "frames", "sound", "items"):
        multiples = -(-3 * length // (2 * _SIDE_MULTIPLE))
        return multiples * _SIDE_MULTIPLE if length > _SIDE_MULTIPLE else 2 * length
    return length


def _change_lengths(
    inputs: GraphInputs, shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[_Key, int]
) -> dict[str, tuple[int, ...]]:
    """Return shapes with new lengths of some axes; a sum such as `past + tokens` changes by as much as its terms."""
    old = bind_axes(shapes, inputs.axes)

    def new_length(name: str, index: int) -> int:
        key, length = _key(inputs, name, index), shapes[name][index]
        if key in lengths or not isinstance(key, str):
            return lengths.get(key, length)
        return length + sum(lengths[term] - old[term] for term in axis_terms(inputs, key) if term in lengths)

    return {name: tuple(new_length(name, index) for index in range(len(shape))) for name, shape in shapes.items()}
