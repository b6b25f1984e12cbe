"""Engines of TensorRT on disk: built once for a graph, a chip, a version and shapes, found again, and built anew where
one of these is another.

An engine is a cache, and its graph is the truth: a pipeline directory holds none.
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
    """An engine that was there is of another chip or version, or cannot be read; another one is built."""


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes that an input may have.

    Args:
        least, usual, most: of each axis; an engine is fastest at the usual ones, and static where all three are one.

    Raises:
        InvalidRequest: ranks that differ, or lengths that fall.
    """

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def __post_init__(self) -> None:
        if not len(self.minimum) == len(self.optimum) == len(self.maximum):
            raise InvalidRequest(f"shapes {self.minimum}, {self.optimum}, {self.maximum}", allowed="one rank")
        for axis, (least, usual, most) in enumerate(zip(self.minimum, self.optimum, self.maximum, strict=True)):
            if not 1 <= least <= usual <= most:
                given = f"lengths {least}, {usual}, {most} of axis {axis}"
                raise InvalidRequest(given, allowed="1 or more, and none less than the one before")

    def contains(self, shape: Shape) -> bool:
        """Whether the input may have this shape."""
        return len(shape) == len(self.minimum) and all(
            least <= length <= most for least, length, most in zip(self.minimum, shape, self.maximum, strict=True)
        )


Profile: TypeAlias = Mapping[str, ShapeRange]
"""The shapes of every input that an engine is tuned for together."""


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """What an engine is built for and by.

    Args:
        name: of the GPU.
        capability: its compute capability, "9.0".
        builder: package and version.
    """

    name: str
    capability: str
    builder: str

    def __str__(self) -> str:
        """As a person is told it."""
        return f"{self.name} (compute capability {self.capability}) by {self.builder}"


def shape_ranges(
    signature: Signature, optimum: Mapping[str, Shape], ranges: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> dict[str, ShapeRange]:
    """The shapes of every input of a graph.

    Args:
        signature: of the graph.
        usual: by input; may leave out inputs whose axes are all fixed.
        ranges: of named axes that may change, the least and the most.

    Raises:
        InvalidRequest: an input without a shape, of another rank, or with another length than the graph fixes; or a
            range of no axis, or that the usual length is not in.

    >>> graph = Signature({"x": ("n", 3)}, ("y",), {}, "f32")
    >>> shapes_of(graph, {"x": (2, 3)}, {"n": (1, 4)})["x"]
    Shapes(least=(1, 3), usual=(2, 3), most=(4, 3))
    """
    found = {}
    names = {axis for axes in signature.inputs.values() for axis in axes if isinstance(axis, str)}
    for named in ranges:
        check_choice("axis", named, names)
    for name, axes in signature.inputs.items():
        fixed = tuple(axis for axis in axes if isinstance(axis, int))
        shape = optimum.get(name, fixed if len(fixed) == len(axes) else None)
        if shape is None:
            raise InvalidRequest(f"no shape for input {name!r}", allowed="a shape for each input with open axes")
        if len(shape) != len(axes):
            raise InvalidRequest(f"input {name!r} of rank {len(shape)}", allowed=f"rank {len(axes)}")
        for length, axis in zip(shape, axes, strict=True):
            if isinstance(axis, int) and length != axis:
                raise InvalidRequest(f"input {name!r} of shape {list(shape)}", allowed=str(list(axes)))
        least, most = (
            tuple(ranges.get(str(axis), (length, length))[end] for axis, length in zip(axes, shape, strict=True))
            for end in (0, 1)
        )
        found[name] = ShapeRange(least, tuple(shape), most)
    return found


def batch_profiles(
    signature: Signature, optimum: Mapping[str, Shape], rows: Sequence[int]
) -> list[dict[str, ShapeRange]]:
    """The shapes of every input for each of several sizes of a batch, which is the first axis where that is open.

    >>> graph = Signature({"x": ("n", 3)}, ("y",), {}, "f32")
    >>> [one["x"].usual for one in batches_of(graph, {"x": (2, 3)}, (1, 4))]
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
    """Of a graph, its weights, its shapes, and which of the weights may be changed: sixteen hexadecimal digits."""
    weights = [(name, (graph.parent / name).stat()) for name in sorted(signature.external)]
    shapes = [{name: asdict(one) for name, one in sorted(profile.items())} for profile in profiles]
    told = {
        "graph": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "weights": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in weights],
        "shapes": shapes[0] if len(shapes) == 1 else shapes,
        **({"refitted": sorted(refittable)} if refittable else {}),
    }
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def load_or_build(
    folder: Path, key: str, target: EngineTarget, build: Callable[[Path], None], open_engine: Callable[[bytes], object]
) -> object:
    """What `opened` makes of the engine for this graph and this chip.

    Args:
        folder: of all engines.
        key: of the graph, see `graph_key`.
        chip: what it is to run on.
        build: writes the engine to a file.
        opened: opens its bytes; None where it cannot, so that it is built anew.

    Warns:
        EngineRebuilt: there is one of another chip or version, or one that cannot be opened.
    """
    mark = hashlib.sha256(repr(target).encode()).hexdigest()[:8]
    engine = folder / f"{key}-{mark}.engine"
    if engine.is_file():
        found = open_engine(engine.read_bytes())
        if found is not None:
            return found
        warnings.warn(
            EngineRebuilt(
                f"{engine} cannot be opened (it is spoilt, or there is too little memory), and is built anew"
            ),
            stacklevel=2,
        )
    elif others := sorted(folder.glob(f"{key}-*.json")):
        before = EngineTarget(**json.loads(others[0].read_text(encoding="utf-8")))
        warnings.warn(EngineRebuilt(f"an engine was built for {before}; another is built for {target}"), stacklevel=2)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = engine.with_name(f".{engine.name}.{os.getpid()}")
    try:
        build(temporary)
        found = open_engine(temporary.read_bytes())
        temporary.replace(engine)
    finally:
        temporary.unlink(missing_ok=True)
    engine.with_suffix(".json").write_text(json.dumps(asdict(target)) + "\n", encoding="utf-8")
    return found
