"""Static shapes for the inputs of a bare ONNX file whose axes are dynamic.

The file does not say what the network is used for. So the shapes follow from rules on the names of the inputs and on
the nodes that consume them; the first matching rule decides. Users override the result with shapes, a config, or a file
of inputs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.accelerate.auto_acceleration.config import AutoAccelerationConfig
from stillhouse.accelerate.calibration.graph_inputs import GraphInputs, read_graph_inputs
from stillhouse.backends.runner import bind_axes

Feeds: TypeAlias = dict[str, NDArray[Any]]

TOKENS, CONDITION, PICTURE, LATENT, FRAMES, CHANNELS, FEATURES = 128, 77, 224, 64, 8, 3, 64
"""Default lengths of dynamic axes: tokens of a text; tokens of a diffusion model's conditioning; side of a picture;
side of latents; frames of a video; channels; and vectors of unknown length.
"""
_KIND_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"batch|^b$|^bs$|^n$", "batch"),
    (r"height|width|^h$|^w$", "side"),
    (r"chan|^c$", "channels"),
    (r"frame|^f$", "frames"),
    (r"seq|token|text|len|^s$|^l$", "tokens"),
)
# Axis names that exporters generate carry no information.
_GENERATED_NAME = re.compile(r"_dynamic_axes_\d+$|^unk__\d+$|^s\d+$|^dim_\d+$|^\?$")


def infer_shapes(
    graph: Path, config: AutoAccelerationConfig | None = None, overrides: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return a static shape for every input of an ONNX file.

    Fixed axes are unchanged. Shapes in `overrides` come first, then `use_shape` of the config. A named axis fixed by
    one of these has the same length in every input. The length of any other axis follows from its name, or from its
    position where the name is generated: 1 for the batch (axis 0); 224 for a side of a picture (uint8, or 1 or 3
    channels) and 64 for other sides, such as latents; the length required by the first convolution or matrix product
    for channels and features; 128 for a text, or 77 for `encoder_hidden_states`, limited by the graph's position
    embedding; 8 for frames. A name that is a sum, such as `past + tokens`, gets the sum of its terms.

    Args:
        graph: an ONNX file.
        config: a config from `config.read_config`; it need not contain all inputs.
        overrides: complete shapes by input name.

    Raises:
        InvalidRequest: a shape belongs to no input or does not match the graph's axes.
        PipelineError: the file is missing or not an ONNX graph.
        RuntimeMissing: onnx is not installed.

    >>> infer_shapes(Path("model.onnx"), overrides={"sample": (2, 4, 32, 32)})  # doctest: +SKIP
    {'sample': (2, 4, 32, 32), 'timestep': (2,), 'encoder_hidden_states': (2, 77, 768)}
    """
    inputs = read_graph_inputs(graph)
    requested = {**(config.shapes if config else {}), **(overrides or {})}
    lengths = bind_axes(requested, inputs.axes)
    shapes = {}
    for name, axes in inputs.axes.items():
        indices = range(len(axes))
        shapes[name] = (
            tuple(requested[name])
            if name in requested
            else tuple(_axis_length(inputs, name, index, lengths) for index in indices)
        )
    return shapes


def _axis_length(inputs: GraphInputs, name: str, index: int, lengths: dict[str, int]) -> int:
    axis = inputs.axes[name][index]
    if isinstance(axis, int):
        return axis
    if axis is None:
        return _default_length(inputs, name, index, "")
    if axis not in lengths:
        terms = [term.strip() for term in axis.split("+")]
        for term in terms:
            if term not in lengths:
                lengths[term] = int(term) if term.isdecimal() else _default_length(inputs, name, index, term)
        lengths[axis] = sum(lengths[term] for term in terms)
    return lengths[axis]


def _default_length(inputs: GraphInputs, name: str, index: int, axis: str) -> int:
    kind = _kind_by_name(axis) or _kind_by_position(inputs, name, index)
    if kind == "side":
        return _side_length(inputs, name)
    if kind == "tokens":
        max_lengths = [
            inputs.max_positions,
            *(rows for table, rows in inputs.table_rows.items() if "position" in table.lower()),
        ]
        default = CONDITION if "encoder_hidden_states" in name.lower() else TOKENS
        return min([default, *(length for length in max_lengths if length)])
    if kind == "channels":
        return inputs.channels.get(name, CHANNELS)
    return {"batch": 1, "frames": FRAMES}.get(kind) or inputs.features.get(name, FEATURES)


def _kind_by_name(axis: str) -> str:
    text = "" if _GENERATED_NAME.search(axis) else axis.lower()
    return next((kind for pattern, kind in _KIND_PATTERNS if re.search(pattern, text)), "")


def _kind_by_position(inputs: GraphInputs, name: str, index: int) -> str:
    rank = len(inputs.axes[name])
    if index == 0:
        return "batch"
    if rank >= 4:
        if _is_channels_last(inputs, name):
            return "side"
        return "channels" if index == 1 else "side" if index >= rank - 2 else "frames"
    is_vector = inputs.dtypes[name].kind not in "iub" and index == rank - 1
    return "features" if is_vector and (rank == 3 or name in inputs.features) else "tokens"


def _side_length(inputs: GraphInputs, name: str) -> int:
    axes = inputs.axes[name]
    channels = inputs.channels.get(name, axes[1] if len(axes) >= 4 else None)
    is_picture = inputs.dtypes[name] == np.uint8 or _is_channels_last(inputs, name) or channels in (1, 3)
    return PICTURE if is_picture else LATENT


def _is_channels_last(inputs: GraphInputs, name: str) -> bool:
    """Return whether the last axis holds colour channels (NHWC)."""
    axes = inputs.axes[name]
    return len(axes) >= 4 and axes[-1] in (1, 3, 4) and not isinstance(axes[1], int)
