"""A cache of TensorRT engines on disk, by graph, weights, shapes, GPU and version of TensorRT.

Pipeline directories hold no engines, since these can be built again from the graphs.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from stillhouse.backends.signature import Signature
from stillhouse.check import check_choice
from stillhouse.errors import InvalidRequest

Shape: TypeAlias = tuple[int, ...]


class EngineRebuilt(UserWarning):
    """The stored engine is for another GPU or version, or cannot be read; a new engine is built."""


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes of an input for which an engine is built.

    Args:
        minimum, optimum, maximum: length of each axis. An engine is fastest at the optimum. The input's shape is static
            where all three are equal.

    Raises:
        InvalidRequest: the shapes differ in rank, or a length decreases from minimum to maximum.
    """

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        if not len(self.minimum) == len(self.optimum) == len(self.maximum):
            raise InvalidRequest(
                f"minimum {self.minimum}, optimum {self.optimum} and maximum {self.maximum} differ in rank",
                allowed="three shapes of the same rank",
            )
        for axis, lengths in enumerate(zip(self.minimum, self.optimum, self.maximum, strict=True)):
            if not 1 <= lengths[0] <= lengths[1] <= lengths[2]:
                message = f"axis {axis} has minimum, optimum and maximum {', '.join(map(str, lengths))}"
                raise InvalidRequest(message, allowed="lengths of 1 or more that do not decrease")

    def contains(self, shape: Shape) -> bool:
        """Return whether a shape has the range's rank and each of its lengths lies between minimum and maximum."""
        return len(shape) == len(self.minimum) and all(
            low <= length <= high for low, length, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


Profile: TypeAlias = Mapping[str, ShapeRange]
"""Shape ranges of all inputs, by name, for which an engine is optimised."""


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """The GPU that an engine is built for, and the package that builds it.

    Args:
        name: name of the GPU.
        capability: compute capability of the GPU, "9.0".
        builder: package that builds the engine, with its version.
    """

    name: str
    capability: str
    builder: str

    def __str__(self) -> str:
        """Return the GPU and the building package in words, for messages."""
        return f"{self.name} (compute capability {self.capability}) by {self.builder}"


def shape_ranges(
    signature: Signature, optimum: Mapping[str, Shape], ranges: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> dict[str, ShapeRange]:
    """Return the shape range of every input of a graph.

    Args:
        signature: signature of the graph.
        optimum: shape by input; inputs whose axes are all fixed may be left out.
        ranges: minimum and maximum length by name of the axis; other axes keep the length of the optimum.

    Raises:
        InvalidRequest: an input without a shape, of another rank, or with another length than the graph fixes; a range
            for an unknown axis, or one that does not contain the optimum.

    >>> graph = Signature({"x": ("n", 3)}, ("y",), {}, "f32")
    >>> shape_ranges(graph, {"x": (2, 3)}, {"n": (1, 4)})["x"]
    ShapeRange(minimum=(1, 3), optimum=(2, 3), maximum=(4, 3))
    """
    shapes = {}
    names = {axis for axes in signature.inputs.values() for axis in axes if isinstance(axis, str)}
    for named in ranges:
        check_choice("axis", named, names)
    for name, axes in signature.inputs.items():
        fixed = tuple(axis for axis in axes if isinstance(axis, int))
        shape = optimum.get(name, fixed if len(fixed) == len(axes) else None)
        if shape is None:
            raise InvalidRequest(
                f"there is no shape for input {name!r}", allowed="a shape for each input whose axes are not all fixed"
            )
        if len(shape) != len(axes):
            raise InvalidRequest(f"the shape for input {name!r} has rank {len(shape)}", allowed=f"rank {len(axes)}")
        for length, axis in zip(shape, axes, strict=True):
            if isinstance(axis, int) and length != axis:
                raise InvalidRequest(
                    f"the shape for input {name!r} is {list(shape)}",
                    allowed=f"{list(axes)}, where numbers are fixed lengths",
                )
        minimum, maximum = (
            tuple(ranges.get(str(axis), (length, length))[bound] for axis, length in zip(axes, shape, strict=True))
            for bound in (0, 1)
        )
        shapes[name] = ShapeRange(minimum, tuple(shape), maximum)
    return shapes


def batch_profiles(
    signature: Signature, optimum: Mapping[str, Shape], rows: Sequence[int]
) -> list[dict[str, ShapeRange]]:
    """Return a profile (the shapes of all inputs) for each batch size in `rows`.

    The batch is the first axis of an input, unless the graph fixes the length of this axis. The shapes in `optimum`
    give the lengths of the other axes. Where no input has a batch axis, there is a single profile.

    >>> graph = Signature({"x": ("n", 3)}, ("y",), {}, "f32")
    >>> [one["x"].optimum for one in batch_profiles(graph, {"x": (2, 3)}, (1, 4))]
    [(1, 3), (4, 3)]
    """
    is_open = {name: bool(axes) and not isinstance(axes[0], int) for name, axes in signature.inputs.items()}
    if not any(is_open.values()):
        return [shape_ranges(signature, optimum)]
    return [
        shape_ranges(signature, {n: (count, *shape[1:]) if is_open.get(n) else shape for n, shape in optimum.items()})
        for count in rows
    ]


def graph_key(graph: Path, signature: Signature, profiles: Sequence[Profile], refittable: Sequence[str] = ()) -> str:
    """Return a hash, in sixteen hexadecimal digits, of all that an engine is built from, except GPU and TensorRT.

    The hash covers the graph's bytes, size and modification time of its weights files, the profiles (shape ranges of
    the inputs), and `refittable`, the names of the weights that a refit can change.
    """
    weights = [(name, (graph.parent / name).stat()) for name in sorted(signature.external)]
    shapes = [{name: asdict(bounds) for name, bounds in sorted(profile.items())} for profile in profiles]
    facts = {
        "graph": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "weights": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in weights],
        "shapes": shapes[0] if len(shapes) == 1 else shapes,
        **({"refitted": sorted(refittable)} if refittable else {}),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def load_or_build(
    folder: Path, key: str, target: EngineTarget, build: Callable[[Path], None], open_engine: Callable[[bytes], object]
) -> object:
    """Open the stored engine of a graph for a target; build and store the engine first where none is stored.

    Args:
        folder: directory of all engines.
        key: key of the graph, see `graph_key`.
        target: the GPU and the builder.
        build: writes the engine to a file.
        open_engine: opens an engine, given its bytes; returns None where it cannot, and the engine is built again.

    Returns:
        The result of `open_engine`.

    Warns:
        EngineRebuilt: the stored engine is for another target, or cannot be opened.
    """
    mark = hashlib.sha256(repr(target).encode()).hexdigest()[:8]
    engine = folder / f"{key}-{mark}.engine"
    if engine.is_file():
        opened = open_engine(engine.read_bytes())
        if opened is not None:
            return opened
        warnings.warn(
            EngineRebuilt(f"{engine} cannot be opened (damaged, or too little memory), and is built again"),
            stacklevel=2,
        )
    elif others := sorted(folder.glob(f"{key}-*.json")):
        earlier = EngineTarget(**json.loads(others[0].read_text(encoding="utf-8")))
        message = f"the stored engine is for {earlier}; another one is built for {target}"
        warnings.warn(EngineRebuilt(message), stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = engine.with_name(f".{engine.name}.{os.getpid()}")
    try:
        build(temporary)
        opened = open_engine(temporary.read_bytes())
        temporary.replace(engine)
    finally:
        temporary.unlink(missing_ok=True)
    engine.with_suffix(".json").write_text(json.dumps(asdict(target)) + "\n", encoding="utf-8")
    return opened
