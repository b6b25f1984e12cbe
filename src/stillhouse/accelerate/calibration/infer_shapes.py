"""Static shapes for the inputs of a single ONNX file whose axes are dynamic.

The file does not say what the network is used for. Shapes are therefore inferred from the names of inputs and axes, and
from the nodes that read the inputs. Users may give other shapes, a config file, or a file of inputs.
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
PAST, SOUND, CHUNK, ITEMS = 16, 16_000, 576, 16
"""More default lengths: tokens before the present ones, in a cache; samples of a sound; samples of a sound for a
network that keeps a state from one chunk to the next; and items of a set, which a network may compare with one another.
The voice detector Silero VAD takes 512 new samples after 64 old.
"""
_KIND_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"past|cache", "past"),
    (r"batch|^b$|^bs$|^n$", "batch"),
    (r"height|width|^h$|^w$", "side"),
    (r"chan|^c$", "channels"),
    (r"frame|^f$", "frames"),
    (r"seq|token|text|len|^s$|^l$", "tokens"),
    (r"point|node|edge|atom|box|anchor|propos|candidate|object|item|detection|^roi", "items"),
)
# Exporters generate axis names of these forms. A generated name does not tell what the axis is, such as the batch or
# the height.
_GENERATED_NAME = re.compile(r"_dynamic_axes_\d+$|^unk__\d+$|^s\d+$|^dim_\d+$|^\?$")


def infer_shapes(
    graph: Path, config: AutoAccelerationConfig | None = None, overrides: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return a static shape for every input of an ONNX file, by name.

    A shape in `overrides` is used as it is, else `use_shape` of the config. If a named axis gets a length from such a
    shape, it has this length in every input. Fixed axes of the graph keep their length. The kind of any other axis
    follows from its name, or from its position where the name is generated or unknown. Lengths by kind:
        - batch (axis 0, or axis 1 where time or layers come first): 1;
        - side: for a picture (uint8, channels last, or 1 or 3 channels), the height or width that the file's metadata
            or a detector's fixed number of boxes tells, else 224; for latents 64;
        - channels, features: the length that the first convolution or matrix product requires, else 3 and 64;
        - tokens: 128, or 77 for `encoder_hidden_states`, but at most the rows of the graph's position embedding;
        - past tokens in a cache: 16; frames: 8; items of a set, such as points or boxes: 16;
        - samples of a sound: 16000, or 576 if the graph keeps a state from chunk to chunk.
    An axis whose name is a sum, such as `past + tokens`, gets the sum of the lengths of its terms.

    Args:
        graph: an ONNX file.
        config: a config from `config.read_config`, which may lack inputs; None: no config.
        overrides: complete shapes by input name; None: no shapes.

    Raises:
        InvalidRequest: a given shape belongs to no input or does not match the graph's axes.
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


def axis_kind(inputs: GraphInputs, name: str, index: int, term: str = "") -> str:
    """Return what an open axis of an input counts.

    Args:
        inputs: inputs of a graph.
        name: name of the input.
        index: number of the axis, from 0.
        term: name of the axis, or one term of a name that is a sum; empty: the axis has no name.

    Returns:
        "batch", "side" (height or width), "channels", "frames", "tokens", "past" (tokens before the present ones),
            "sound" (samples), "items" (of a set) or "features".
    """
    if inputs.is_audio(name) and index == inputs.sound_axis(name):
        return "sound"
    return _kind_by_name(term) or _kind_by_position(inputs, name, index)


def axis_terms(inputs: GraphInputs, axis: str) -> list[str]:
    """Return the names and whole numbers whose sum is the length of a named axis; usually the name alone.

    Names such as `past + tokens` are sums. A name such as `total_sequence_length` is the sum of the past and the
    present tokens, if axes of other inputs have names for both.
    """
    if re.search("total", axis.lower()) and _kind_by_name(axis) == "tokens":
        names = dict.fromkeys(other for axes in inputs.axes.values() for other in axes if isinstance(other, str))
        simple = [other for other in names if "+" not in other and "total" not in other.lower()]
        parts = [[other for other in simple if _kind_by_name(other) == kind] for kind in ("past", "tokens")]
        if all(len(part) == 1 for part in parts):
            return [part[0] for part in parts]
    return [term.strip() for term in axis.split("+")]


def _axis_length(inputs: GraphInputs, name: str, index: int, lengths: dict[str, int]) -> int:
    axis = inputs.axes[name][index]
    if isinstance(axis, int):
        return axis
    if axis is None:
        return _default_length(inputs, name, index, "")
    if axis not in lengths:
        terms = axis_terms(inputs, axis)
        for term in terms:
            if term not in lengths:
                lengths[term] = int(term) if term.isdecimal() else _default_length(inputs, name, index, term)
        lengths[axis] = sum(lengths[term] for term in terms)
    return lengths[axis]


def _default_length(inputs: GraphInputs, name: str, index: int, term: str) -> int:
    kind = axis_kind(inputs, name, index, term)
    if kind == "side":
        return _side_length(inputs, name, index)
    if kind == "tokens":
        default = CONDITION if "encoder_hidden_states" in name.lower() else TOKENS
        return min(default, max_tokens(inputs) or default)
    if kind == "channels":
        return inputs.channels.get(name, CHANNELS)
    if kind == "sound":
        return CHUNK if inputs.states else SOUND
    return {"batch": 1, "frames": FRAMES, "past": PAST, "items": ITEMS}.get(kind) or inputs.features.get(name, FEATURES)


def max_tokens(inputs: GraphInputs) -> int | None:
    """Return the largest number of tokens that a graph's position embeddings allow; None: it has none."""
    rows = (rows for table, rows in inputs.table_rows.items() if "position" in table.lower())
    return min(filter(None, (inputs.max_positions, *rows)), default=None)


def _kind_by_name(axis: str) -> str:
    text = "" if _GENERATED_NAME.search(axis) else axis.lower()
    return next((kind for pattern, kind in _KIND_PATTERNS if re.search(pattern, text)), "")


def _kind_by_position(inputs: GraphInputs, name: str, index: int) -> str:
    rank = len(inputs.axes[name])
    if rank == 3 and (name in inputs.states or name in inputs.time_first):
        return ("features" if name in inputs.states else "tokens", "batch", "features")[index]
    if index == 0:
        return "batch"
    if rank >= 4:
        if re.search("past|cache", name.lower()):
            return "past"
        if _is_channels_last(inputs, name):
            return "side"
        return "channels" if index == 1 else "side" if index >= rank - 2 else "frames"
    is_vector = inputs.dtypes[name].kind not in "iub" and index == rank - 1
    return "features" if is_vector and (rank == 3 or name in inputs.features) else "tokens"


def _side_length(inputs: GraphInputs, name: str, index: int) -> int:
    axes = inputs.axes[name]
    channels = inputs.channels.get(name, axes[1] if len(axes) >= 4 else None)
    is_channels_last = _is_channels_last(inputs, name)
    if not (inputs.dtypes[name] == np.uint8 or is_channels_last or channels in (1, 3)):
        return LATENT
    height_index = len(axes) - (3 if is_channels_last else 2)
    return inputs.sides[index != height_index] if inputs.sides else PICTURE


def _is_channels_last(inputs: GraphInputs, name: str) -> bool:
    """Return whether the last axis of an input holds colour channels (NHWC)."""
    axes = inputs.axes[name]
    return len(axes) >= 4 and axes[-1] in (1, 3, 4) and not isinstance(axes[1], int)
