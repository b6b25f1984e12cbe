"""Batches of any size for a network with static batch sizes: small batches are padded, large batches are split.

If the network took every size, a server would compile it at the first batch of each size, for seconds or minutes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from stillhouse.diffusion import Arrays

DEFAULT_SIZES = (1, 2, 4, 8, 16, 32)
"""Static batch sizes of a network for which the manifest names none. Each size is at most twice the previous one, so
that less than half of a batch is padding."""

Feeds: TypeAlias = Mapping[str, Any]


def split_batch(count: int, rows: Sequence[int]) -> list[tuple[int, int]]:
    """Return the parts that a batch is split into: the number of rows of each part, without and with padding.

    Args:
        count: number of rows of the batch, 1 or more.
        rows: static batch sizes, rising.

    >>> split_batch(3, (1, 2, 4)), split_batch(9, (1, 2, 4))
    ([(3, 4)], [(4, 4), (4, 4), (1, 1)])
    """
    largest = rows[-1]
    whole, rest = divmod(count, largest)
    last = [(rest, next(size for size in rows if size >= rest))] if rest else []
    return [(largest, largest)] * whole + last


def run_split(feeds: Feeds, rows: Sequence[int], arrays: Arrays, run: Callable[[Feeds], Feeds]) -> Feeds:
    """Run a network of static batch sizes on a batch of any size, and return its outputs.

    Args:
        feeds: inputs by name, all with the same number of rows. The rows are split into parts of static sizes. A part
            is padded with copies of its last row; the outputs of the copies are left out.
        rows: static batch sizes, rising.
        arrays: kind of the arrays in `feeds`.
        run: the network; it may overwrite its outputs in the next call.

    Returns:
        outputs by name, without padding. Where the batch is one part, the next call of `run` may overwrite the outputs.
    """
    count = len(next(iter(feeds.values())))
    if count in rows:
        return run(feeds)
    outputs: list[Feeds] = []
    first, parts = 0, split_batch(count, rows)
    for size, padded in parts:
        part = {name: _pad(array[first : first + size], padded - size, arrays) for name, array in feeds.items()}
        output = {name: array[:size] for name, array in run(part).items()}
        if len(parts) == 1:
            return output
        # `concatenate` copies each output, because the next call of `run` may overwrite it.
        outputs.append({name: arrays.concatenate([array], 0) for name, array in output.items()})
        first += size
    return {name: arrays.concatenate([output[name] for output in outputs], 0) for name in outputs[0]}


def _pad(array: Any, missing: int, arrays: Arrays) -> Any:
    return arrays.concatenate([array, *[array[-1:]] * missing], 0) if missing else array
