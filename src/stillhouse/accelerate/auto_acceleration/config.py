"""The config.yml of Auto-Acceleration (github.com/visionhong/Auto-Acceleration, readme.md), with additional keys.

The file gives device, input shapes, precisions and limits of an acceleration. Missing keys get defaults.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.accelerate.auto_acceleration.layout import ProjectLayout, find_layout
from stillhouse.accelerate.auto_acceleration.yaml_strict import read_yaml
from stillhouse.accelerate.records.candidate import GRAPH_RECIPES
from stillhouse.accelerate.records.report import GOALS, Bounds, Goal
from stillhouse.backends.runner import bind_axes
from stillhouse.backends.signature import Axes, Signature
from stillhouse.check import check_choice, check_integer
from stillhouse.errors import InvalidRequest

__all__ = [
    "ONES",
    "PRECISIONS",
    "AutoAccelerationConfig",
    "InputShapes",
    "ProjectLayout",
    "check_config",
    "find_layout",
    "read_config",
]

ONES = "ones"
"""Value of the config key `probe` that requests measurement on inputs filled with ones, as in Auto-Acceleration."""
DEVICES = ("auto", "cpu", "gpu")
PRECISIONS = ("f32", "bf16", *GRAPH_RECIPES)
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "fp32": ("f32",),
    "fp16": ("f16",),
    "int8": ("int8-static", "int8-dynamic", "int8-weights"),
    "uint8": ("uint8-dynamic",),
    "int4": ("int4-weights",),
    "fp8": ("fp8-static",),
}
_KEYS = ("device", "input", "output", "precision", "goal", "objective", "tolerance", "iterations", "probe")
_SHAPE_KEYS = ("min_shape", "max_shape", "use_shape")
_TOLERANCE_RANGES: Mapping[str, tuple[float, float]] = {
    "min_sqnr": (-math.inf, 999.0),
    "max_mae": (0.0, math.inf),
    "min_psnr": (0.0, 99.0),
    "min_ssim": (-1.0, 1.0),
    "max_score_drop": (0.0, 100.0),
    "min_score": (0.0, 1.0),
    "max_memory": (1, 2**63),
}
_MAX_GPU_INDEX, _MAX_ITERATIONS = 1023, 1_000_000
_MAX_AXIS_LENGTH = 2**31 - 1
_EXAMPLE = "[1, 3, 224, 224]"


@dataclass(frozen=True, slots=True)
class InputShapes:
    """Allowed shapes of one input of a network.

    Args:
        min, max: smallest and largest length of each axis.
        use: shape to measure and to optimize for.
    """

    min: tuple[int, ...]
    use: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Return the length of each axis; None where its smallest and largest length differ.

        >>> InputShapes(min=(1, 9, 32), use=(1, 9, 64), max=(4, 9, 64)).axes
        (None, 9, None)
        """
        return tuple(low if low == high else None for low, high in zip(self.min, self.max, strict=True))


@dataclass(frozen=True, slots=True)
class AutoAccelerationConfig:
    """Content of a config.yml of Auto-Acceleration, with additional keys of Stillhouse.

    Args:
        device: auto, cpu, gpu, or the index of a GPU.
        inputs: shapes by input name; empty: the graph's own shapes, and inferred lengths of dynamic axes.
        outputs: shapes by output name; may be empty.
        precision: precisions and quantizations to try, out of PRECISIONS; empty: all that apply to the model.
        goal: objective of the choice among the measured configurations; None: not given.
        tolerance: limits on accuracy and memory of the choice.
        iterations: number of timing rounds; None: time until the confidence interval of the speed-up is narrow.
        probe: path of an .npz file of inputs (see `inputs.read_npz_inputs`), or ONES; None: inputs are generated.
    """

    device: str | int = "auto"
    inputs: Mapping[str, InputShapes] = field(default_factory=dict)
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    precision: tuple[str, ...] = ()
    goal: Goal | None = None
    tolerance: Bounds = field(default_factory=Bounds)
    iterations: int | None = None
    probe: Path | str | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape at which each input is measured (`InputShapes.use`), by input name."""
        return {name: shapes.use for name, shapes in self.inputs.items()}

    @property
    def shape_ranges(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the (minimum, maximum) shape of each input, by name."""
        return {name: (shapes.min, shapes.max) for name, shapes in self.inputs.items()}


def read_config(path: Path) -> AutoAccelerationConfig:
    """Read a config.yml of Auto-Acceleration, with or without additional keys of Stillhouse.

    Input names are read as text: an input `0` has the name "0". `min_shape` and `max_shape` default to `use_shape`, so
    an input with only `use_shape` has a static shape. The path `probe` is relative to the directory of the config.

    Raises:
        InvalidRequest: the file is missing, not YAML, or contains an unknown key or an invalid value.
        RuntimeMissing: PyYAML is not installed.

    >>> read_config(Path("input/config/config.yml")).device  # doctest: +SKIP
    'cpu'
    """
    document = {
        key: value for key, value in _read_mapping(f"{path}", read_yaml(path), _KEYS).items() if value is not None
    }
    inputs = _read_mapping(f"{path}: input", document.get("input", {}))
    outputs = _read_mapping(f"{path}: output", document.get("output", {}))
    return AutoAccelerationConfig(
        device=_read_device(f"{path}", document.get("device", "auto")),
        inputs={name: _read_shapes(f"{path}: input {name!r}", value) for name, value in inputs.items()},
        outputs={name: _read_shapes(f"{path}: output {name!r}", value).use for name, value in outputs.items()},
        precision=_read_precision(f"{path}", document.get("precision", [])),
        goal=_read_goal(f"{path}", [document[key] for key in ("goal", "objective") if key in document]),
        tolerance=_read_tolerance(f"{path}: tolerance", document.get("tolerance", {})),
        iterations=_read_iterations(f"{path}: iterations", document.get("iterations")),
        probe=_read_probe(path, document.get("probe")),
    )


def check_config(config: AutoAccelerationConfig, signature: Signature) -> None:
    """Check that the shapes of a config match the inputs and outputs of a graph.

    A config without inputs and outputs matches every graph. `signature` holds the names and axes of the graph's inputs
    and outputs.

    Raises:
        InvalidRequest: the graph lacks an input or output of the config, the config lacks an input of the graph, a
            shape has the wrong number of axes, an axis that is fixed in the graph has another length or a range, or
            axes of equal names have different lengths.
    """
    for name in config.inputs:
        check_choice("input", name, signature.inputs)
    for name in config.outputs:
        check_choice("output", name, signature.outputs)
    if config.inputs:
        _check_has_all_inputs(config, signature)
    for name, shapes in config.inputs.items():
        _check_axes(name, shapes, signature.inputs[name])
    bind_axes(config.shapes, signature.inputs)


def _check_has_all_inputs(config: AutoAccelerationConfig, signature: Signature) -> None:
    if missing := [name for name in signature.inputs if name not in config.inputs]:
        axes = [1 if axis is None else axis for axis in signature.inputs[missing[0]]]
        raise InvalidRequest(
            f"the config lacks input {', '.join(map(repr, missing))}",
            allowed=f"a shape for each of {', '.join(signature.inputs)}, or no key `input`, to have shapes inferred",
            fix=f"add under `input`:  {missing[0]}: {{use_shape: {_format_axes(axes)}}}",
        )


def _check_axes(name: str, shapes: InputShapes, axes: Axes) -> None:
    if len(shapes.use) != len(axes):
        message = f"the config gives input {name!r} {len(shapes.use)} axes: {_format_axes(shapes.use)}"
        raise InvalidRequest(message, allowed=f"{len(axes)} axes, as in the graph: {_format_axes(axes)}")
    for index, axis in enumerate(axes):
        low, high = shapes.min[index], shapes.max[index]
        if isinstance(axis, int) and (low, high) != (axis, axis):
            description = f"ranges from {low} to {high}" if low < high else f"is {low}"
            raise InvalidRequest(
                f"axis {index} of input {name!r} {description}, but is fixed in the graph",
                allowed=f"{axis}",
                fix=f"write {axis} into the config, or export the model with this axis dynamic",
            )


def _read_mapping(where: str, value: object, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Return a value of the config unchanged, after checking that it is a mapping with allowed keys.

    Args:
        where: position of the value in the config, for error messages.
        value: the value to check.
        keys: allowed keys; empty: all keys are allowed.

    Raises:
        InvalidRequest: the value is no mapping, or has a key that is not allowed.
    """
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} is {_shorten(value)}", allowed="a mapping: `name:` with indented keys below")
    for key in value if keys else ():
        _check_choice_in(where, "key", key, keys)
    return value


def _check_choice_in(where: str, what: str, value: object, allowed: Iterable[str]) -> None:
    """Raise InvalidRequest where a value of the config is not among the allowed ones.

    Args:
        where: position of the value in the config; the message begins with it.
        what: kind of the value, for the message, such as "device".
        value: the value to check.
        allowed: allowed values.
    """
    try:
        check_choice(what, value, allowed)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.problem}", allowed=error.allowed, fix=error.fix) from None


def _read_shapes(where: str, value: object) -> InputShapes:
    mapping = _read_mapping(where, value, _SHAPE_KEYS)
    if mapping.get("use_shape") is None:
        allowed = f"the shape to measure, such as use_shape: {_EXAMPLE}"
        raise InvalidRequest(f"{where} has no use_shape", allowed=allowed)
    use, minimum, maximum = (
        _read_shape(f"{where}: {key}", mapping.get(key)) for key in ("use_shape", "min_shape", "max_shape")
    )
    assert use is not None
    shapes = InputShapes(use if minimum is None else minimum, use, use if maximum is None else maximum)
    _check_shapes(where, shapes)
    return shapes


def _check_shapes(where: str, shapes: InputShapes) -> None:
    use = shapes.use
    for key, shape in (("min_shape", shapes.min), ("max_shape", shapes.max)):
        if len(shape) != len(use):
            message = f"{where}: {key} {_format_axes(shape)} and use_shape {_format_axes(use)} differ in rank"
            raise InvalidRequest(message, allowed="the same number of axes in both shapes")
    for index, (low, length, high) in enumerate(zip(shapes.min, use, shapes.max, strict=True)):
        if low > high:
            message = f"{where}: on axis {index}, min_shape {low} is larger than max_shape {high}"
            raise InvalidRequest(message, allowed="min_shape at most max_shape on every axis")
        if not low <= length <= high:
            message = f"{where}: on axis {index}, use_shape {length} is not between min_shape and max_shape"
            raise InvalidRequest(message, allowed=f"{low} to {high}")


def _read_shape(where: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(axis) is int and 0 < axis <= _MAX_AXIS_LENGTH for axis in value):
        allowed = f"a list of integers of at least 1, such as {_EXAMPLE}; [] for a scalar"
        raise InvalidRequest(f"{where} is {_shorten(value)}", allowed=allowed)
    return tuple(value)


def _read_device(where: str, value: object) -> str | int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is int and 0 <= value <= _MAX_GPU_INDEX:
        return value
    _check_choice_in(where, "device", value, (*DEVICES, "0", "1", "2"))
    return str(value)


def _read_precision(where: str, value: object) -> tuple[str, ...]:
    chosen: list[str] = []
    for name in value if isinstance(value, list) else [value]:
        _check_choice_in(where, "precision", name, (*PRECISIONS, *_ALIASES))
        chosen += _ALIASES.get(str(name), (str(name),))
    return tuple(dict.fromkeys(chosen))


def _read_goal(where: str, values: Sequence[object]) -> Goal | None:
    for name in values:
        _check_choice_in(where, "goal", name, GOALS)
    if len(set(values)) > 1:
        raise InvalidRequest(
            f"{where} has different values for the keys goal, {values[0]!r}, and objective, {values[1]!r}",
            allowed="only one of these keys, or equal values",
        )
    return next((goal for goal in GOALS if goal in values), None)


def _read_tolerance(where: str, value: object) -> Bounds:
    numbers: dict[str, Any] = {}
    for key, number in _read_mapping(where, value, tuple(_TOLERANCE_RANGES)).items():
        if number is not None:
            numbers[key] = _read_number(f"{where}: {key}", number, *_TOLERANCE_RANGES[key])
    if "max_memory" in numbers:
        numbers["max_memory"] = int(numbers["max_memory"])
    return Bounds(**numbers)


def _read_number(where: str, value: object, low: float, high: float) -> float:
    try:
        # A str is accepted too, because YAML 1.1 reads a number without a dot, such as 1e-3, as text.
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise InvalidRequest(f"{where} is {value!r}", allowed=f"a number from {low:g} to {high:g}")
    return number


def _read_iterations(where: str, value: object) -> int | None:
    if value is None:
        return None
    check_integer(where, value, 1, _MAX_ITERATIONS)
    assert isinstance(value, int)
    return value


def _read_probe(path: Path, value: object) -> Path | str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidRequest(
            f"{path}: probe is {_shorten(value)}",
            allowed=f"the name of an .npz file of inputs, or {ONES} for inputs filled with ones",
        )
    return value if value == ONES else path.parent / value


def _format_axes(axes: Iterable[int | str | None]) -> str:
    return f"[{', '.join('any' if axis is None else str(axis) for axis in axes)}]"


def _shorten(value: object, max_length: int = 60) -> str:
    text = "empty" if value is None else repr(value)
    return text if len(text) <= max_length else f"{text[:max_length]}..."
