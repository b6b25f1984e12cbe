"""Properties of an ONNX graph's inputs that follow from the nodes which read them.

Examples are the channels that a convolution requires, and the size of an embedding table that an input indexes.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from stillhouse.backends.graph import load_graph
from stillhouse.backends.runtime import require
from stillhouse.backends.signature import Axes, read_signature

Dims: TypeAlias = tuple[int, ...]
_ELEMENTWISE_OPS = {
    "Cast",
    "Identity",
    "Dropout",
    "Clip",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "QuantizeLinear",
    "DequantizeLinear",
}
"""Operators whose output has the axes of their first input. What a later node requires of an axis therefore holds for
this input, too.
"""
_PASS_THROUGH_OPS = _ELEMENTWISE_OPS | {
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Transpose",
    "Slice",
    "Concat",
    "Expand",
    "Max",
    "Min",
}
"""Operators through which an index into a table may pass on its way from an input of the graph to a Gather node."""
_CONSTANT_OPS = {"Cast", "Identity", "DequantizeLinear"}
_CONSTANT_PAIR_OPS = {"Add", "Sub", "Mul", "Div"}
_RESHAPING_OPS = {"Cast", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
"""Operators through which a sound may pass on its way from an input of the graph to the first convolution."""
_LOOKUP_OPS = {"Gather", "GatherBlockQuantized"}
_RECURRENT_OPS: Mapping[str, tuple[int, ...]] = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Positions of the initial states among the inputs of the recurrent operators."""
_LENGTHS_SLOT = 4
"""Position of the rows' numbers of steps among the inputs of the recurrent operators."""
_STATE_NAME = r"(^|[_.])([hc]_?[0n]|[hc]x|state|states)(_?(in|prev))?$"
_AUDIO_NAME = r"wave|audio|pcm|speech|sound|(^|_)wav($|_)|^(input_)?samples$|^input_values$"
_NO_AUDIO_NAME = r"feat|mel|spec|embed|len|mask|rate|bank|mfcc|token|code|prompt|state"
_MIN_TAPS = 8
"""Least number of samples that the first convolution of a sound covers."""
_MIN_SAMPLES = 160
"""Least number of samples of a sound: a hundredth of a second at 16 kHz."""
_SIZE_KEYS = ("imgsz", "image_size", "input_size", "img_size")
"""Keys of an ONNX file's metadata under which exporters write the height and width of pictures, or one side."""
_TEXT_KEY, _TEXT_SIDES = "character", (48, 320)
"""Key of the metadata of PaddleOCR's recognisers of text in ONNX files, and the height and width that they read."""
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_MAX_ANCHORS, _MIN_SIDE, _MAX_SIDE = 3, 160, 1536
_MIN_POSITIONS = 8
"""Minimum number of rows of a position embedding. A smaller table is not taken for a position embedding."""


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """Inputs of a graph, and what the nodes that read them require.

    All mappings have names of inputs as keys. An input without the property is missing from the mapping.

    Args:
        axes: fixed length, name or None (unknown) of each axis.
        dtypes: numpy dtype; "object" for strings.
        channels: length of axis 1 that the first convolution after the input requires.
        features: length of the last axis that the first matrix product after the input requires.
        table_rows: number of rows of the smallest embedding table that the input indexes.
        max_positions: number of rows of the smallest position embedding (a table that no input indexes), which limits
            the sequence length; None: the graph has no position embedding.
        states: inputs that are the state of a recurrent network.
        lengths: inputs that tell a recurrent network the number of steps of each row.
        positive: inputs of which a logarithm or a square root is taken, so that they are never negative.
        boxes: inputs that hold the corners of boxes for RoiAlign.
        row_numbers: inputs that tell RoiAlign to which picture of the batch each box belongs.
        waves: inputs that a convolution along one axis reads as one channel, as networks read sound.
        time_first: inputs of recurrent networks whose first axis is time and second axis is the batch.
        pixels: range of the pixels of pictures of floats, one of `real_pictures.PIXELS`, if the file's metadata tell by
            which exporter it was made; empty: they do not tell.
        sides: height and width of the pictures for which the file was made; None: the file does not tell.
    """

    axes: Mapping[str, Axes]
    dtypes: Mapping[str, np.dtype[Any]]
    channels: Mapping[str, int]
    features: Mapping[str, int]
    table_rows: Mapping[str, int]
    max_positions: int | None
    states: frozenset[str] = frozenset()
    lengths: frozenset[str] = frozenset()
    positive: frozenset[str] = frozenset()
    boxes: frozenset[str] = frozenset()
    row_numbers: frozenset[str] = frozenset()
    waves: frozenset[str] = frozenset()
    time_first: frozenset[str] = frozenset()
    sides: tuple[int, int] | None = None
    pixels: str = ""

    def is_float(self, name: str) -> bool:
        """Return whether an input consists of floating-point numbers."""
        return self.dtypes[name].kind == "f" or self.dtypes[name].name == "bfloat16"

    def is_audio(self, name: str) -> bool:
        """Return whether an input is a waveform: floats or int16 of one sound per row.

        The name of the input says so, such as `waveform`, or a convolution reads it as sound, see `waves`, or another
        input is a sampling rate. Samples lie on the axis `sound_axis`.
        """
        axes, lower_name = self.axes[name], name.lower()
        is_number = self.is_float(name) or self.dtypes[name] == np.int16
        has_one_sound = len(axes) in (1, 2) or (len(axes) == 3 and (axes[1] in (1, 2) or axes[2] == 1))
        if not (is_number and has_one_sound) or name in self.states or name in self.features:
            return False
        samples = axes[self.sound_axis(name)]
        is_long = not isinstance(samples, int) or samples >= _MIN_SAMPLES
        has_rate = any(is_sampling_rate(other) for other in self.axes)
        is_named = re.search(_AUDIO_NAME, lower_name) and not re.search(_NO_AUDIO_NAME, lower_name)
        return is_long and bool(is_named or name in self.waves or has_rate)

    def sound_axis(self, name: str) -> int:
        """Return the number of the axis of samples of a waveform: the last, or the one before a last axis of 1."""
        axes = self.axes[name]
        return len(axes) - (2 if len(axes) == 3 and axes[-1] == 1 else 1)


def is_sampling_rate(name: str) -> bool:
    """Return whether the name of an input says that it is the number of samples per second of a sound."""
    return re.search(r"^sr$|sampl(e|ing)_?rate", name.lower()) is not None


def read_graph_inputs(graph: Path) -> GraphInputs:
    """Return the inputs of an ONNX file and what its nodes require of them. External weights are not read.

    Raises:
        PipelineError: the file is missing or not an ONNX graph.
        RuntimeMissing: onnx is not installed.
    """
    axes = read_signature(graph, external=False).inputs
    model = load_graph(graph)
    onnx_graph = model.graph
    as_numpy = require("onnx.helper").tensor_dtype_to_np_dtype
    dtypes = {
        value.name: as_numpy(value.type.tensor_type.elem_type) for value in onnx_graph.input if value.name in axes
    }
    nodes = list(onnx_graph.node)
    constants = _constant_shapes(onnx_graph.initializer, nodes)
    consumers = _Consumers(nodes)
    # `tables` gives the number of rows of each constant table that a node looks up. Its keys are names of outputs,
    # because nodes may have no name, while an output's name is unique in a graph.
    tables = {node.output[0]: rows for node in nodes if (rows := _lookup_rows(node, constants))}
    uses = {name: [node.output[0] for node, slot in consumers(name, _PASS_THROUGH_OPS) if slot == 1] for name in axes}
    indexed = {name: [tables[output] for output in outputs if output in tables] for name, outputs in uses.items()}
    unindexed_rows = [
        rows
        for output, rows in tables.items()
        if rows >= _MIN_POSITIONS and not any(output in uses[name] for name in axes)
    ]
    return GraphInputs(
        axes=axes,
        dtypes=dtypes,
        channels=_first_lengths(axes, consumers, lambda node: _conv_channels(node, constants)),
        features=_first_lengths(axes, consumers, lambda node: _matmul_features(node, constants)),
        table_rows={name: min(rows) for name, rows in indexed.items() if rows},
        max_positions=min(unindexed_rows, default=None),
        states=frozenset(name for name in axes if _is_state(name, len(axes[name]), dtypes[name], consumers)),
        lengths=frozenset(name for name in axes if _is_lengths(name, consumers)),
        positive=frozenset(
            name for name in axes if any(node.op_type in ("Log", "Sqrt") for node, _ in consumers(name, _RESHAPING_OPS))
        ),
        boxes=frozenset(name for name in axes if _feeds_roi_align(name, 1, consumers)),
        row_numbers=frozenset(name for name in axes if _feeds_roi_align(name, 2, consumers)),
        waves=frozenset(name for name in axes if _is_wave(name, consumers, constants)),
        time_first=frozenset(name for name in axes if _is_time_first(name, consumers)),
        pixels=_pixels_of_metadata(model.metadata_props),
        sides=_sides_of_metadata(model.metadata_props) or _sides_of_anchors(onnx_graph.output),
    )


def _is_state(name: str, rank: int, dtype: np.dtype[Any], consumers: "_Consumers") -> bool:
    """Return whether an input is the initial state of a recurrent operator, or has a name of such a state."""
    if dtype.kind != "f" or rank < 2 or "hidden_states" in name.lower():
        return False
    is_fed = any(slot in _RECURRENT_OPS.get(node.op_type, ()) for node, slot in consumers(name, _PASS_THROUGH_OPS))
    return is_fed or re.search(_STATE_NAME, name.lower()) is not None


def _is_lengths(name: str, consumers: "_Consumers") -> bool:
    """Return whether an input is the number of steps of each row for a recurrent operator."""
    users = consumers(name, {"Cast", "Identity"})
    return any(slot == _LENGTHS_SLOT and node.op_type in _RECURRENT_OPS for node, slot in users)


def _feeds_roi_align(name: str, place: int, consumers: "_Consumers") -> bool:
    """Return whether an input arrives at a place among the inputs of RoiAlign: 1 for boxes, 2 for row numbers."""
    users = consumers(name, _PASS_THROUGH_OPS)
    return any(node.op_type == "RoiAlign" and slot == place for node, slot in users)


def _is_wave(name: str, consumers: "_Consumers", constants: Mapping[str, Dims]) -> bool:
    """Return whether an input reaches, unmixed, a convolution of one channel along one axis, of 8 samples or more."""
    weights = (
        constants.get(node.input[1], ())
        for node, slot in consumers(name, _RESHAPING_OPS)
        if node.op_type == "Conv" and slot == 0
    )
    return any(
        len(weight) in (3, 4) and weight[1] == 1 and _MIN_TAPS <= max(weight[2:]) == math.prod(weight[2:])
        for weight in weights
    )


def _is_time_first(name: str, consumers: "_Consumers") -> bool:
    """Return whether the first axis of an input is time: for a recurrent operator of layout 0, or a Scan over it."""
    return any(
        (slot == 0 and node.op_type in _RECURRENT_OPS and not _attributes(node).get("layout"))
        or (node.op_type == "Scan" and _scanned_axis(node, slot) == 0)
        for node, slot in consumers(name, _ELEMENTWISE_OPS)
    )


def _scanned_axis(node: Any, slot: int) -> int | None:
    """Return the axis of an input of a Scan that the loop goes along; None for a state. States come first."""
    attributes = _attributes(node)
    number = slot - (len(node.input) - attributes["num_scan_inputs"])
    axes = attributes.get("scan_input_axes") or [0] * len(node.input)
    return axes[number] if number >= 0 else None


def _attributes(node: Any) -> dict[str, Any]:
    """Return the whole numbers, and lists of them, among the attributes of a node, by name."""
    return {attribute.name: list(attribute.ints) if attribute.ints else attribute.i for attribute in node.attribute}


def _pixels_of_metadata(properties: Iterable[Any]) -> str:
    """Return the range of pixels of exporters that have only one: Ultralytics' 0..1, and PaddleOCR's -1..1 for text."""
    author = next((entry.value for entry in properties if entry.key == "author"), "")
    has_characters = any(entry.key == _TEXT_KEY for entry in properties)
    return "0..1" if author == "Ultralytics" else "-1..1" if has_characters else ""


def _sides_of_metadata(properties: Iterable[Any]) -> tuple[int, int] | None:
    """Return the height and width that an exporter wrote into the metadata of a file, such as imgsz: [320, 320].

    A list of characters means a recogniser of lines of text.
    """
    for entry in properties:
        sides = [int(number) for number in re.findall(r"\d+", entry.value)]
        if entry.key == _TEXT_KEY:
            return _TEXT_SIDES
        if entry.key in _SIZE_KEYS and len(sides) in (1, 2) and all(0 < side <= 8192 for side in sides):
            return sides[0], sides[-1]
    return None


def _sides_of_anchors(outputs: Iterable[Any]) -> tuple[int, int] | None:
    """Return the height and width of square pictures that give a detector's fixed number of candidate boxes.

    The network predicts one to three boxes for each cell of grids of 8, 16, 32 and maybe 64 pixels. An output
    [1, 5, 2100], for example, has the boxes of 320 x 320 pixels: 40 * 40 + 20 * 20 + 10 * 10.
    """
    shapes = ([axis.dim_value for axis in output.type.tensor_type.shape.dim] for output in outputs)
    lengths = {max(shape) for shape in shapes if len(shape) == 3}
    for side in range(_MIN_SIDE, _MAX_SIDE + 1, 32):
        for strides in _STRIDES:
            cells = sum((-(-side // stride)) ** 2 for stride in strides)
            if any(cells * anchors in lengths for anchors in range(1, _MAX_ANCHORS + 1)):
                return side, side
    return None


class _Consumers:
    """Finds the nodes that use a tensor, directly or through nodes of given operators.

    A call takes the name of a tensor and the operators to pass through. The call yields each node that the tensor
    reaches, with the position (from 0) among the node's inputs at which the tensor arrives.
    """

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.consumers: defaultdict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in nodes:
            for slot, name in enumerate(node.input):
                self.consumers[name].append((node, slot))

    def __call__(self, name: str, through: Collection[str]) -> Iterator[tuple[Any, int]]:
        queue, visited = [name], {name}
        while queue:
            for node, slot in self.consumers[queue.pop(0)]:
                yield node, slot
                new = [output for output in node.output if output not in visited] if node.op_type in through else []
                visited.update(new)
                queue += new


def _constant_shapes(initializers: Iterable[Any], nodes: Iterable[Any]) -> dict[str, Dims]:
    """Return the shapes of a graph's constants by name.

    Constants are initializers, outputs of Constant nodes, and outputs of Cast, Mul or similar nodes whose inputs are
    constant, as of weights that are stored in int8.
    """
    shapes: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in initializers}
    for node in nodes:
        if node.op_type == "Constant":
            shapes.update(
                (node.output[0], tuple(attribute.t.dims)) for attribute in node.attribute if attribute.name == "value"
            )
        elif node.op_type in _CONSTANT_OPS and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        elif node.op_type in _CONSTANT_PAIR_OPS and all(name in shapes for name in node.input):
            shapes[node.output[0]] = np.broadcast_shapes(*(shapes[name] for name in node.input))
    return shapes


def _lookup_rows(node: Any, stored: Mapping[str, Dims]) -> int | None:
    """Return the number of rows of the constant table that a Gather or GatherBlockQuantized node indexes.

    The result is None for other operators, and where the node does not index the rows of a constant matrix.

    Args:
        node: the ONNX node.
        stored: shapes of the graph's constants by name.
    """
    axis = [attribute.i for attribute in node.attribute if attribute.name in ("axis", "gather_axis")]
    table = stored.get(node.input[0], ()) if node.op_type in _LOOKUP_OPS and axis in ([], [0]) else ()
    return table[0] if len(table) == 2 else None


def _first_lengths(
    axes: Collection[str], follow: _Consumers, read_length: Callable[[Any], int | None]
) -> dict[str, int]:
    lengths = {}
    for name in axes:
        lengths_of_consumers = (read_length(node) for node, slot in follow(name, _ELEMENTWISE_OPS) if slot == 0)
        length = next(filter(None, lengths_of_consumers), None)
        if length:
            lengths[name] = length
    return lengths


def _conv_channels(node: Any, stored: Mapping[str, Dims]) -> int | None:
    weight = stored.get(node.input[1], ()) if node.op_type == "Conv" else ()
    group = _attributes(node).get("group", 1)
    return weight[1] * group if len(weight) > 1 else None


def _matmul_features(node: Any, stored: Mapping[str, Dims]) -> int | None:
    weight = stored.get(node.input[1], ()) if node.op_type in ("MatMul", "Gemm") else ()
    is_transposed = bool(_attributes(node).get("transB"))
    return weight[-1 if is_transposed else -2] if len(weight) > 1 else None
