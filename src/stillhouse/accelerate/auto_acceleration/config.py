"""The contract of Auto-Acceleration's users: a config.yml, and folders with fixed names around it.

Their file is read as it is (github.com/visionhong/Auto-Acceleration, readme.md); what it does not say is measured or
guessed. Inputs are bound by name, so the order in which they stand means nothing.
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
from stillhouse.backends.input_checks import bind_axes
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
"""The probe that Auto-Acceleration used: every input filled with ones."""
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
    """The shapes that one input may have: `min` to `max`, axis by axis; `use` is measured and tuned for."""

    min: tuple[int, ...]
    use: tuple[int, ...]
    max: tuple[int, ...]

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The length of each axis, None where it may vary.

        >>> InputShapes(min=(1, 9, 32), use=(1, 9, 64), max=(4, 9, 64)).axes
        (None, 9, None)
        """
        return tuple(least if least == most else None for least, most in zip(self.min, self.max, strict=True))


@dataclass(frozen=True, slots=True)
class AutoAccelerationConfig:
    """A config.yml.

    Args:
        device: auto, cpu, gpu, or the index of a GPU.
        inputs: shapes by input name; none: the graph's own, guessed where they are dynamic.
        outputs: shapes by output name. Stillhouse needs none of them.
        precision: recipes to try, out of PRECISIONS; none: all that make sense.
        goal, tolerance: what the choice is about; see `report.Bounds`.
        iterations: calls that are timed; None: until the interval is narrow.
        probe: a file of inputs (see `inputs.read_inputs`), or ONES; None: plausible ones.
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
        """The shape that each input is measured with."""
        return {name: shapes.use for name, shapes in self.inputs.items()}

    @property
    def shape_ranges(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """The least and the most of each axis, by input."""
        return {name: (one.min, one.max) for name, one in self.inputs.items()}


def read_config(path: Path) -> AutoAccelerationConfig:
    """Read a config.yml of Auto-Acceleration, unchanged or with our further keys.

    Names are taken as they are written: an input `0` is "0". Where `min_shape` or `max_shape` is missing, it is
    `use_shape`, so `use_shape` alone makes an input static. A `probe` is looked up from the file's own directory.

    Raises:
        InvalidRequest: the file is missing or no YAML, or says something that cannot be; nothing in it is skipped.
        RuntimeMissing: PyYAML is not installed.

    >>> read_config(Path("input/config/config.yml")).device  # doctest: +SKIP
    'cpu'
    """
    given = {key: told for key, told in _read_mapping(f"{path}", read_yaml(path), _KEYS).items() if told is not None}
    inputs = _read_mapping(f"{path}: input", given.get("input", {}))
    outputs = _read_mapping(f"{path}: output", given.get("output", {}))
    return AutoAccelerationConfig(
        device=_read_device(f"{path}", given.get("device", "auto")),
        inputs={name: _read_shapes(f"{path}: input {name!r}", told) for name, told in inputs.items()},
        outputs={name: _read_shapes(f"{path}: output {name!r}", told).use for name, told in outputs.items()},
        precision=_read_precision(f"{path}", given.get("precision", [])),
        goal=_read_goal(f"{path}", [given[key] for key in ("goal", "objective") if key in given]),
        tolerance=_read_tolerance(f"{path}: tolerance", given.get("tolerance", {})),
        iterations=_read_iterations(f"{path}: iterations", given.get("iterations")),
        probe=_read_probe(path, given.get("probe")),
    )


def check_config(config: AutoAccelerationConfig, signature: Signature) -> None:
    """Refuse a config that does not fit the graph. One without inputs fits every graph.

    Raises:
        InvalidRequest: an input or output that the graph does not have, an input that the config does not have, a
            wrong rank, a range or another length where the graph's axis is fixed, or two lengths for one axis.
    """
    for name in config.inputs:
        check_choice("input", name, signature.inputs)
    for name in config.outputs:
        check_choice("output", name, signature.outputs)
    if missing := [name for name in signature.inputs if config.inputs and name not in config.inputs]:
        axes = [1 if axis is None else axis for axis in signature.inputs[missing[0]]]
        raise InvalidRequest(
            f"the config says nothing of input {', '.join(map(repr, missing))}",
            allowed=f"a shape for each of {', '.join(signature.inputs)}, or no `input` at all to have them guessed",
            fix=f"add under `input`:  {missing[0]}: {{use_shape: {_format_axes(axes)}}}",
        )
    for name, shapes in config.inputs.items():
        _check_axes(name, shapes, signature.inputs[name])
    bind_axes(config.shapes, signature.inputs)


def _check_axes(name: str, shapes: InputShapes, axes: Axes) -> None:
    if len(shapes.use) != len(axes):
        given = f"the shapes of input {name!r} have {len(shapes.use)} axes, like {_format_axes(shapes.use)}"
        raise InvalidRequest(given, allowed=f"{len(axes)} axes, as the graph has: {_format_axes(axes)}")
    for place, axis in enumerate(axes):
        least, most = shapes.min[place], shapes.max[place]
        if isinstance(axis, int) and (least, most) != (axis, axis):
            asked = f"ranges from {least} to {most}" if least < most else f"is {least}"
            raise InvalidRequest(
                f"axis {place} of input {name!r} {asked}, but the graph has it fixed",
                allowed=f"{axis}",
                fix=f"write {axis} there, or export the model with that axis dynamic",
            )


def _read_mapping(where: str, value: object, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The value as a mapping, with `keys` of no other ones."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} is {_shorten(value)}", allowed="a mapping: `name:` and, below it, what it has")
    for key in value if keys else ():
        _check_choice_in(where, "key", key, keys)
    return value


def _check_choice_in(where: str, what: str, value: object, allowed: Iterable[str]) -> None:
    """`check_choice`, saying where."""
    try:
        check_choice(what, value, allowed)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.given}", allowed=error.allowed, fix=error.fix) from None


def _read_shapes(where: str, value: object) -> InputShapes:
    given = _read_mapping(where, value, _SHAPE_KEYS)
    if given.get("use_shape") is None:
        allowed = f"the shape that is to be measured, such as use_shape: {_EXAMPLE}"
        raise InvalidRequest(f"{where} has no use_shape", allowed=allowed)
    use, least, most = (
        _read_shape(f"{where}: {key}", given.get(key)) for key in ("use_shape", "min_shape", "max_shape")
    )
    assert use is not None
    shapes = InputShapes(use if least is None else least, use, use if most is None else most)
    for key, shape in (("min_shape", shapes.min), ("max_shape", shapes.max)):
        if len(shape) != len(use):
            given_ranks = f"{where}: {key} {_format_axes(shape)} and use_shape {_format_axes(use)} differ in rank"
            raise InvalidRequest(given_ranks, allowed="as many axes in each")
    for place, (low, used, high) in enumerate(zip(shapes.min, use, shapes.max, strict=True)):
        if low > high:
            given_axis = f"{where}: on axis {place}, min_shape is {low} and max_shape {high}"
            raise InvalidRequest(given_axis, allowed="a min_shape that is nowhere above max_shape")
        if not low <= used <= high:
            given_axis = f"{where}: on axis {place}, use_shape is {used}"
            raise InvalidRequest(given_axis, allowed=f"{low} to {high}, as min_shape and max_shape say")
    return shapes


def _read_shape(where: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(axis) is int and 0 < axis <= _MAX_AXIS_LENGTH for axis in value):
        allowed = f"a list of whole numbers from 1, such as {_EXAMPLE}; [] where it has no axes"
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
            f"{where} has the goal {values[0]!r} and the objective {values[1]!r}", allowed="one of them"
        )
    return next((goal for goal in GOALS if goal in values), None)


def _read_tolerance(where: str, value: object) -> Bounds:
    numbers: dict[str, Any] = {}
    for key, told in _read_mapping(where, value, tuple(_TOLERANCE_RANGES)).items():
        if told is not None:
            numbers[key] = _read_number(f"{where}: {key}", told, *_TOLERANCE_RANGES[key])
    if "max_memory" in numbers:
        numbers["max_memory"] = int(numbers["max_memory"])
    return Bounds(**numbers)


def _read_number(where: str, value: object, least: float, most: float) -> float:
    # YAML 1.1 takes 1e-3, which lacks a dot, for text.
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        raise InvalidRequest(f"{where} is {value!r}", allowed=f"a number from {least:g} to {most:g}")
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
        raise InvalidRequest(f"{path}: probe is {_shorten(value)}", allowed=f"the name of an .npz file, or {ONES}")
    return value if value == ONES else path.parent / value


def _format_axes(axes: Iterable[int | str | None]) -> str:
    return f"[{', '.join('any' if axis is None else str(axis) for axis in axes)}]"


def _shorten(value: object, most: int = 60) -> str:
    text = "empty" if value is None else repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
