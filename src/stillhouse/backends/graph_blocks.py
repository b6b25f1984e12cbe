"""Which parts of a network have to stay exact while the rest is rounded: its blocks, and a search among them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from stillhouse.backends.graph import load_graph
from stillhouse.backends.onnx_edit import COMPUTE_OPS, node_name
from stillhouse.backends.signature import read_signature
from stillhouse.errors import UnsupportedPrecision

_MAX_BLOCK_NODES = 16
"""Nodes of a block that is not divided further; an attention layer of a U-Net has 12."""
_MAX_RUNS = 16

_Scoped: TypeAlias = tuple[tuple[str, ...], str]  # the modules around a node, and its name


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring heavy nodes of a graph.

    Args:
        name: the modules that they are in ("down_blocks.1.attentions.0"), or their place ("3 of 16").
        nodes: their names, in the order in which they run.
    """

    name: str
    nodes: tuple[str, ...]


def list_blocks(graph: Path) -> list[Block]:
    """Every convolution and matrix product of an ONNX graph, in blocks and in the order in which they run.

    Nodes that torch's exporter named are put together by the modules they are in: a module with more than 16 of them
    is divided into the modules inside it. Others are cut into up to 16 runs of equal length.

    Raises:
        PipelineError: the graph cannot be read.
        RuntimeMissing: onnx is not installed.

    >>> [block.name for block in blocks(Path("unet/model.onnx"))][:3]  # doctest: +SKIP
    ['time_embedding', 'conv_in', 'down_blocks.0']
    """
    read_signature(graph)
    nodes = load_graph(graph).graph.node
    names = [node_name(node) for node in nodes if node.op_type in COMPUTE_OPS and node.domain in ("", "ai.onnx")]
    scoped = [(tuple(name.split("/")[1:-1]), name) for name in names]
    if names and all(scope for scope, _ in scoped):
        divided = list(_split_by_module(scoped, _common_depth([scope for scope, _ in scoped])))
        if len(divided) > 1:
            return divided
    length = -(-len(names) // _MAX_RUNS)
    runs = [tuple(names[start : start + length]) for start in range(0, len(names), length or 1)]
    return [Block(f"{place} of {len(runs)}", run) for place, run in enumerate(runs, 1)]


def minimal_exact_blocks(
    blocks: Iterable[Block], passes: Callable[[frozenset[str]], bool], *, max_calls: int | None = None
) -> frozenset[str]:
    """A small set of blocks that passes if they are kept exact: delta debugging (ddmin; Zeller and Hildebrandt 2002).

    What is found passes, and does not if any one block is taken out of it (it is 1-minimal). It asks at most
    n^2 + 3 n times for n blocks, and about 2 log2(n) times where a single block is to blame (measured with 32 blocks:
    9 times for one, 26 for two, 64 for four); never twice for one set.

    Args:
        blocks: to choose from.
        passes: whether the network is good enough with the blocks of these names kept.
        most: so many questions at most; what is found then passes, and may not be 1-minimal.

    Returns:
        Names of blocks; none, where it passes with nothing kept.

    Raises:
        UnsupportedPrecision: it does not pass, whatever is kept; or `most` came before anything that passed.

    >>> network = [Block(name, (name,)) for name in ("first", "middle", "last")]
    >>> sorted(bisect(network, lambda kept: {"first", "last"} <= kept))
    ['first', 'last']
    """
    names = [block.name for block in blocks]
    asked = _CachedPredicate(passes, max_calls)
    found: Collection[str] = names
    try:
        if asked([]):
            return frozenset()
        found = _ddmin(names, asked)
        asked(found)
    except _BudgetExhausted:
        found = min(asked.passed, key=len, default=frozenset(names))
    if frozenset(found) not in asked.passed:
        raise UnsupportedPrecision(
            f"no choice of {len(names)} blocks to keep passes", fix="take another precision, or a lower bound"
        )
    return frozenset(found)


def _ddmin(names: Sequence[str], passes: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """ddmin: the whole is taken to pass, and parts of it and all but parts of it are tried, ever finer."""
    kept, pieces = list(names), 2
    while len(kept) > 1:
        parts = [kept[len(kept) * at // pieces : len(kept) * (at + 1) // pieces] for at in range(pieces)]
        rests = [[name for name in kept if name not in part] for part in parts]
        if (part := next(filter(passes, parts), None)) is not None:
            kept, pieces = part, 2
        elif (rest := next(filter(passes, rests), None)) is not None:
            kept, pieces = rest, max(pieces - 1, 2)
        elif pieces == len(kept):
            break
        else:
            pieces = min(2 * pieces, len(kept))
    return kept


class _BudgetExhausted(Exception):
    """The last question was asked."""


class _CachedPredicate:
    """Asks about a set once, and remembers those that passed."""

    def __init__(self, passes: Callable[[frozenset[str]], bool], max_calls: int | None) -> None:
        self._passes, self._max_calls = passes, max_calls
        self._results: dict[frozenset[str], bool] = {}

    def __call__(self, names: Iterable[str]) -> bool:
        kept = frozenset(names)
        if kept not in self._results:
            if len(self._results) == self._max_calls:
                raise _BudgetExhausted
            self._results[kept] = self._passes(kept)
        return self._results[kept]

    @property
    def passed(self) -> list[frozenset[str]]:
        return [kept for kept, answer in self._results.items() if answer]


def _split_by_module(nodes: Sequence[_Scoped], depth: int, inside: tuple[str, ...] = ()) -> Iterator[Block]:
    """The nodes by the module at that depth of their scope, and deeper where that has too many."""
    groups: dict[tuple[str, ...], list[_Scoped]] = {}
    for scope, name in nodes:
        groups.setdefault(scope[depth : depth + 1], []).append((scope, name))
    for module, group in groups.items():
        if module and len(group) > _MAX_BLOCK_NODES:
            yield from _split_by_module(group, depth + 1, inside + module)
        else:
            yield Block(".".join(inside + module) or "rest", tuple(name for _, name in group))


def _common_depth(scopes: Sequence[tuple[str, ...]]) -> int:
    """How many modules at the start are the same for all, and say nothing."""
    columns = zip(*scopes, strict=False)
    same = (len(set(column)) == 1 for column in columns)
    return next((depth for depth, one in enumerate(same) if not one), min(map(len, scopes)))
