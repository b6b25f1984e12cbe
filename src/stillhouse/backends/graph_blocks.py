"""Blocks of a network, and a search for a small set of blocks that must stay in float32 to keep it accurate."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from stillhouse.backends.graph import load_graph
from stillhouse.backends.onnx_edit import COMPUTE_OPS, node_name
from stillhouse.backends.signature import read_signature
from stillhouse.errors import UnsupportedPrecision

_MAX_BLOCK_NODES = 16
"""Largest number of convolutions and matrix products of a block; an attention layer of a denoiser has 12."""
_MAX_RUNS = 16

_Scoped: TypeAlias = tuple[tuple[str, ...], str]
"""The names of the modules around a node, from the outermost module on, and the name of the node."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive convolutions and matrix products of a graph.

    Args:
        name: module that holds the nodes ("down_blocks.1.attentions.0"), or position of the block ("3 of 16").
        nodes: names of the nodes, in the order in which they run.
    """

    name: str
    nodes: tuple[str, ...]


def list_blocks(graph: Path) -> list[Block]:
    """Return every convolution and matrix product of an ONNX graph, grouped into blocks in the order in which they run.

    Nodes that torch's exporter named are grouped by module, or by submodule above 16 nodes; without such names, into up
    to 16 equal runs. Raise PipelineError if the graph cannot be read, RuntimeMissing if onnx is missing.

    >>> [block.name for block in list_blocks(Path("model.onnx"))][:3]  # doctest: +SKIP
    ['time_embedding', 'conv_in', 'down_blocks.0']
    """
    read_signature(graph)
    nodes = load_graph(graph).graph.node
    names = [node_name(node) for node in nodes if node.op_type in COMPUTE_OPS and node.domain in ("", "ai.onnx")]
    scoped = [(tuple(name.split("/")[1:-1]), name) for name in names]
    if names and all(scope for scope, _ in scoped):
        blocks = list(_split_by_module(scoped, _common_depth([scope for scope, _ in scoped])))
        if len(blocks) > 1:
            return blocks
    length = -(-len(names) // _MAX_RUNS)
    runs = [tuple(names[start : start + length]) for start in range(0, len(names), length or 1)]
    return [Block(f"{place} of {len(runs)}", run) for place, run in enumerate(runs, 1)]


def minimal_exact_blocks(
    blocks: Iterable[Block], passes: Callable[[frozenset[str]], bool], *, max_calls: int | None = None
) -> frozenset[str]:
    """Return the names of a small set of blocks with which, kept in float32, the network is accurate enough.

    The method is delta debugging (ddmin; Zeller and Hildebrandt 2002). The set is 1-minimal: `passes` accepts it, and
    refuses it when any one block is removed. `passes` is called at most n^2 + 3 n times for n blocks, and never twice
    for one set. About 2 log2(n) calls suffice where one block causes the inaccuracy. Measured with 32 blocks: 9 calls
    where one block causes the inaccuracy, 26 for two, 64 for four.

    Args:
        blocks: blocks to choose from.
        passes: given names of blocks, returns whether the network is accurate enough with these blocks in float32.
        max_calls: largest number of calls of `passes`; None: no limit. At this limit, the smallest set accepted so far
            is returned, which may not be 1-minimal.

    Returns:
        Names of the blocks; empty where the network is accurate enough without any block in float32.

    Raises:
        UnsupportedPrecision: `passes` accepts no set, or accepted none within `max_calls` calls.

    >>> network = [Block(name, (name,)) for name in ("first", "middle", "last")]
    >>> sorted(minimal_exact_blocks(network, lambda kept: {"first", "last"} <= kept))
    ['first', 'last']
    """
    names = [block.name for block in blocks]
    predicate = _CachedPredicate(passes, max_calls)
    exact: Collection[str] = names
    try:
        if predicate([]):
            return frozenset()
        exact = _ddmin(names, predicate)
        predicate(exact)
    except _BudgetExhausted:
        exact = min(predicate.passed, key=len, default=frozenset(names))
    if frozenset(exact) not in predicate.passed:
        raise UnsupportedPrecision(
            f"no choice among {len(names)} blocks to keep in float32 makes the network accurate enough",
            fix="take another precision, or require less accuracy",
        )
    return frozenset(exact)


def _ddmin(names: Sequence[str], passes: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """Return a subset of `names` that `passes` accepts, but refuses when any one name is left out (delta debugging).

    `passes` must accept all of `names` together. Parts of the set are tried first, then their complements, then smaller
    parts.
    """
    subset, pieces = list(names), 2
    while len(subset) > 1:
        bounds = [len(subset) * at // pieces for at in range(pieces + 1)]
        parts = [subset[start:end] for start, end in pairwise(bounds)]
        complements = [[name for name in subset if name not in part] for part in parts]
        if (part := next(filter(passes, parts), None)) is not None:
            subset, pieces = part, 2
        elif (complement := next(filter(passes, complements), None)) is not None:
            subset, pieces = complement, max(pieces - 1, 2)
        elif pieces == len(subset):
            break
        else:
            pieces = min(2 * pieces, len(subset))
    return subset


class _BudgetExhausted(Exception):
    """The predicate `passes` was called `max_calls` times, and another call is needed."""


class _CachedPredicate:
    """A predicate of sets of names that stores its results, so that `passes` is called only once for each set.

    Args:
        passes: the predicate, which takes a set of names.
        max_calls: largest number of calls of `passes`; where another call is needed, _BudgetExhausted is raised. None:
            no limit.
    """

    def __init__(self, passes: Callable[[frozenset[str]], bool], max_calls: int | None) -> None:
        self._passes, self._max_calls = passes, max_calls
        self._results: dict[frozenset[str], bool] = {}

    def __call__(self, names: Iterable[str]) -> bool:
        key = frozenset(names)
        if key not in self._results:
            if len(self._results) == self._max_calls:
                raise _BudgetExhausted
            self._results[key] = self._passes(key)
        return self._results[key]

    @property
    def passed(self) -> list[frozenset[str]]:
        return [names for names, passed in self._results.items() if passed]


def _split_by_module(nodes: Sequence[_Scoped], depth: int, inside: tuple[str, ...] = ()) -> Iterator[Block]:
    """Group nodes by the module that holds them, and yield a block for each module.

    A module with more than 16 nodes is divided into its submodules by another call, whose `depth` is one larger.

    Args:
        nodes: for each node, the names of the modules around the node, from the outermost on, and its own name.
        depth: level of the modules that become blocks; 0 is the outermost level.
        inside: names of the modules that earlier calls divided; the name of each block begins with these names.
    """
    groups: dict[tuple[str, ...], list[_Scoped]] = {}
    for scope, name in nodes:
        groups.setdefault(scope[depth : depth + 1], []).append((scope, name))
    for module, group in groups.items():
        if module and len(group) > _MAX_BLOCK_NODES:
            yield from _split_by_module(group, depth + 1, inside + module)
        else:
            yield Block(".".join(inside + module) or "rest", tuple(name for _, name in group))


def _common_depth(scopes: Sequence[tuple[str, ...]]) -> int:
    """Return how many leading module names are the same in all scopes; a scope is the path of modules to a node."""
    columns = zip(*scopes, strict=False)
    is_common = (len(set(column)) == 1 for column in columns)
    return next((depth for depth, common in enumerate(is_common) if not common), min(map(len, scopes)))
