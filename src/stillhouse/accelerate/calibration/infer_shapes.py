"""Inputs for a bare ONNX file: shapes where the graph leaves them open, plausible values, or the user's own.

Nothing says what a network from outside is fed, so the shapes and values here are guesses, by these rules. The first
rule that fits decides; whoever knows better gives shapes, a config, or a file of inputs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.accelerate.auto_acceleration.config import AutoAccelerationConfig
from stillhouse.accelerate.calibration.graph_inputs import GraphInputs, read_graph_inputs
from stillhouse.backends.input_checks import bind_axes

Feeds: TypeAlias = dict[str, NDArray[Any]]

TOKENS, CONDITION, PICTURE, LATENT, FRAMES, CHANNELS, FEATURES = 128, 77, 224, 64, 8, 3, 64
"""Lengths of open axes: of a text; of the text that conditions a diffusion network; sides of pictures and of latents;
of a film; of colours; and of vectors of which the graph does not say how long they are."""
_KIND_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"batch|^b$|^bs$|^n$", "batch"),
    (r"height|width|^h$|^w$", "side"),
    (r"chan|^c$", "channels"),
    (r"frame|^f$", "frames"),
    (r"seq|token|text|len|^s$|^l$", "tokens"),
)
# Exporters that are told no name make one up.
_GENERATED_NAME = re.compile(r"_dynamic_axes_\d+$|^unk__\d+$|^s\d+$|^dim_\d+$|^\?$")


def infer_shapes(
    graph: Path, config: AutoAccelerationConfig | None = None, overrides: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """A static shape for every input of an ONNX file.

    Fixed axes are as they are. Shapes in `overrides` come first, then `use_shape` of the config; a named axis that
    one of them fixes has that length in every input. An open axis gets, by its name, or by its place where the name
    says nothing: 1 for the batch (axis 0); 224 for a side of a picture (uint8, or 1 or 3 channels) and 64 for any
    other, such as latents; what the convolution or the matrix product behind it takes, for channels and features;
    128 for a text, or 77 for `encoder_hidden_states`, but not more than the graph has positions; 8 for frames. A
    name that is a sum, such as `past + tokens`, is summed.

    Args:
        graph: an ONNX file.
        config: as from `config.read_config`; may name some of the inputs only.
        overrides: whole shapes by input name.

    Raises:
        InvalidRequest: a shape for an input that is not there, or one that does not fit the graph's axes.
        PipelineError: the file is missing, or no ONNX graph.
        RuntimeMissing: onnx is not installed.

    >>> infer_shapes(Path("unet.onnx"), overrides={"sample": (2, 4, 32, 32)})  # doctest: +SKIP
    {'sample': (2, 4, 32, 32), 'timestep': (2,), 'encoder_hidden_states': (2, 77, 768)}
    """
    wiring = read_graph_inputs(graph)
    given = {**(config.shapes if config else {}), **(overrides or {})}
    lengths = bind_axes(given, wiring.axes)
    shapes = {}
    for name, axes in wiring.axes.items():
        places = range(len(axes))
        shapes[name] = (
            tuple(given[name]) if name in given else tuple(_axis_length(wiring, name, p, lengths) for p in places)
        )
    return shapes


def _axis_length(inputs: GraphInputs, name: str, place: int, lengths: dict[str, int]) -> int:
    axis = inputs.axes[name][place]
    if isinstance(axis, int):
        return axis
    if axis is None:
        return _default_length(inputs, name, place, "")
    if axis not in lengths:
        terms = [term.strip() for term in axis.split("+")]
        for term in terms:
            if term not in lengths:
                lengths[term] = int(term) if term.isdecimal() else _default_length(inputs, name, place, term)
        lengths[axis] = sum(lengths[term] for term in terms)
    return lengths[axis]


def _default_length(inputs: GraphInputs, name: str, place: int, axis: str) -> int:
    kind = _kind_by_name(axis) or _kind_by_position(inputs, name, place)
    if kind == "side":
        return _side_length(inputs, name)
    if kind == "tokens":
        limits = [inputs.max_positions, *(rows for one, rows in inputs.table_rows.items() if "position" in one.lower())]
        most = CONDITION if "encoder_hidden_states" in name.lower() else TOKENS
        return min([most, *(limit for limit in limits if limit)])
    if kind == "channels":
        return inputs.channels.get(name, CHANNELS)
    return {"batch": 1, "frames": FRAMES}.get(kind) or inputs.features.get(name, FEATURES)


def _kind_by_name(axis: str) -> str:
    known = "" if _GENERATED_NAME.search(axis) else axis.lower()
    return next((kind for pattern, kind in _KIND_PATTERNS if re.search(pattern, known)), "")


def _kind_by_position(inputs: GraphInputs, name: str, place: int) -> str:
    rank = len(inputs.axes[name])
    if place == 0:
        return "batch"
    if rank >= 4:
        if _is_channels_last(inputs, name):
            return "side"
        return "channels" if place == 1 else "side" if place >= rank - 2 else "frames"
    is_vector = inputs.dtypes[name].kind not in "iub" and place == rank - 1
    return "features" if is_vector and (rank == 3 or name in inputs.features) else "tokens"


def _side_length(inputs: GraphInputs, name: str) -> int:
    axes = inputs.axes[name]
    channels = inputs.channels.get(name, axes[1] if len(axes) >= 4 else None)
    is_picture = inputs.dtypes[name] == np.uint8 or _is_channels_last(inputs, name) or channels in (1, 3)
    return PICTURE if is_picture else LATENT


def _is_channels_last(inputs: GraphInputs, name: str) -> bool:
    """Whether the colours come last, as pictures lie in memory."""
    axes = inputs.axes[name]
    return len(axes) >= 4 and axes[-1] in (1, 3, 4) and not isinstance(axes[1], int)
