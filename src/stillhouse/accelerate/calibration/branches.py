"""Inputs with which an ONNX graph takes the branches of If that its other inputs do not take."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.inner_graphs import nodes_inside
from stillhouse.backends.onnx_edit import Constant, load_with_constants, save_with_constants, set_repeated
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.backends.runtime import require
from stillhouse.errors import BackendFailed, StillhouseError

__all__ = ["Branches", "UntakenBranch", "find_branches"]

Feeds: TypeAlias = Mapping[str, NDArray[Any]]
_Run: TypeAlias = Callable[[Feeds], Mapping[str, NDArray[Any]]]

_SHAPE_OPS = {"Shape", "Size"}
_MOVING_OPS = {
    *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "If", "Pad"),
    *("Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators that compute no values. No candidate changes the result of a branch that has no other operators."""
_MAX_LIMITS = 8
"""Largest number of elements of a constant whose values may be limits that a condition compares an input with."""
_FACTORS = tuple(map(np.float32, (-1.0, 0.1, 10.0, 0.01, 100.0)))
_SEARCH_SECONDS = 5.0
"""Time after which no further inputs are tried."""


@dataclass(frozen=True, slots=True)
class UntakenBranch:
    """A branch of If that a graph does not take.

    Args:
        output: first output of the node If.
        inputs: inputs of the graph that the condition depends on.
    """

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """What `find_branches` found.

    Args:
        changes: arrays by input name; with each of them in place of its own, the first set of inputs takes a branch
            that the given inputs do not take.
        untaken: branches that the graph takes neither with the given inputs nor with `changes`.
    """

    changes: list[Feeds] = field(default_factory=list)
    untaken: list[UntakenBranch] = field(default_factory=list)


def find_branches(graph: Path, sets: Sequence[Feeds], *, vary: bool = True) -> Branches:
    """Return which branches of If a graph does not take with some inputs, and inputs with which it takes them.

    Only branches that compute values count, and only conditions that depend on values of the graph's inputs, not on
    their shapes alone. Nodes If inside other graphs, such as branches and loop bodies, are left out. Other inputs are
    those of the first set in which one input is multiplied by -1 or powers of 10, or filled with 0, 1, or a value near
    a constant that a condition is computed with.

    Args:
        graph: an ONNX file.
        sets: sets of inputs of the graph, by name.
        vary: whether to look for other inputs.

    Raises:
        PipelineError: the file is missing or not an ONNX graph.
        RuntimeMissing: onnx or onnxruntime is not installed.
    """
    model, constants = load_with_constants(graph)
    conditions = _read_conditions(model.graph)
    if not conditions:
        return Branches()
    limits = _keep_conditions(model, constants, conditions)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conditions.onnx"
        save_with_constants(model, constants, path)
        try:
            run = open_runner(path, "onnxruntime", RunnerOptions(threads=1))
        except BackendFailed:
            return Branches()
        return _search(run, conditions, sets, _changes(sets[0], conditions, limits) if vary else ())


_Conditions: TypeAlias = dict[str, UntakenBranch]
"""Nodes If by the name of the tensor that is their condition."""


def _read_conditions(graph: Any) -> _Conditions:
    """Return the conditions of a graph, a GraphProto, that decide about values and depend on values of its inputs."""
    nodes = {output: node for node in graph.node for output in node.output if output}
    inputs = {value.name for value in graph.input}
    conditions: _Conditions = {}
    for node in graph.node:
        if node.op_type != "If" or all(inner.op_type in _MOVING_OPS for inner in nodes_inside(node)):
            continue
        read = _ancestors(node.input[0], nodes, _SHAPE_OPS)
        if names := tuple(name for name in read if name in inputs):
            conditions.setdefault(node.input[0], UntakenBranch(node.output[0], names))
    return conditions


def _ancestors(name: str, nodes: Mapping[str, Any], ends: Collection[str] = ()) -> dict[str, None]:
    """Return the names of all tensors that a tensor is computed from, and its own.

    Args:
        name: name of the tensor.
        nodes: node by the name of each output.
        ends: operators whose inputs do not count.
    """
    found, queue = {name: None}, [name]
    while queue:
        node = nodes.get(queue.pop())
        if node is None or node.op_type in ends:
            continue
        read = [*node.input, *(other for inner in nodes_inside(node) for other in inner.input)]
        queue += [other for other in read if other and other not in found]
        found.update(dict.fromkeys(queue))
    return found


def _keep_conditions(model: Any, constants: Mapping[str, Constant], conditions: _Conditions) -> list[float]:
    """Remove all nodes but those that conditions are computed with, in place; return the values of small constants.

    The conditions become the only outputs.
    """
    nodes = {output: node for node in model.graph.node for output in node.output if output}
    needed = dict.fromkeys(name for condition in conditions for name in _ancestors(condition, nodes))
    set_repeated(model.graph.node, [node for node in model.graph.node if not needed.keys().isdisjoint(node.output)])
    make_value, bool_type = require("onnx.helper").make_tensor_value_info, require("onnx").TensorProto.BOOL
    set_repeated(model.graph.output, [make_value(name, bool_type, None) for name in conditions])
    small = [constants[name] for name in needed if name in constants and np.prod(constants[name].shape) <= _MAX_LIMITS]
    values = [constant.read().ravel() for constant in small if constant.dtype.kind in "iuf"]
    return sorted({float(value) for array in values for value in array})


def _changes(feeds: Feeds, conditions: _Conditions, limits: Sequence[float]) -> Iterator[Feeds]:
    """Yield an input that conditions depend on, scaled or filled with a value near a limit, by its name."""
    names = dict.fromkeys(name for branch in conditions.values() for name in branch.inputs)
    arrays = [(name, feeds[name]) for name in names]
    for factor in _FACTORS:
        yield from ({name: array * factor} for name, array in arrays if array.dtype == np.float32)
    near = (value for limit in limits for value in (limit, limit // 2, 2 * limit, limit - 1, limit + 1))
    for value in dict.fromkeys((*near, 0.0, 1.0)):
        for name, array in arrays:
            with np.errstate(invalid="ignore", over="ignore"):
                filled = np.full(array.shape, value).astype(array.dtype)
            if array.dtype == np.bool_ or np.all(filled == value):
                yield {name: filled}


def _search(run: _Run, conditions: _Conditions, sets: Sequence[Feeds], changes: Iterable[Feeds]) -> Branches:
    """Return the changes that take branches that the sets do not take, and the branches that nothing takes."""
    values: dict[str, set[bool]] = {name: set() for name in conditions}
    for feeds in sets:
        _note_values(run, feeds, values)
    found: list[Feeds] = []
    deadline = monotonic() + _SEARCH_SECONDS
    for change in changes:
        if all(len(both) != 1 for both in values.values()) or monotonic() > deadline:
            break
        if _note_values(run, {**sets[0], **change}, values):
            found.append(change)
    return Branches(found, [conditions[name] for name, both in values.items() if len(both) == 1])


def _note_values(run: _Run, feeds: Feeds, values: Mapping[str, set[bool]]) -> bool:
    """Add the value of each condition to those that it has had, and return whether one is new."""
    try:
        results = run(feeds)
    except StillhouseError:
        return False
    counts = sum(map(len, values.values()))
    for name, both in values.items():
        both.update(np.asarray(results[name]).ravel().astype(bool).tolist())
    return sum(map(len, values.values())) > counts
