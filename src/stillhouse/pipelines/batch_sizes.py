"""Batches of any size for a network that is opened for a few sizes only: what is missing is filled up, and what is too
many goes in turns.

Where sizes are compiled for, a server would otherwise compile anew, for seconds or minutes, whenever so many rows come
together for the first time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from stillhouse.diffusion import Arrays

DEFAULT_SIZES = (1, 2, 4, 8, 16, 32)
"""Sizes where a component names none: of a batch less than half is filled up."""

Feeds: TypeAlias = Mapping[str, Any]


def split_batch(count: int, rows: Sequence[int]) -> list[tuple[int, int]]:
    """How a batch is run: of each part how many rows it has, and how many are run.

    Args:
        count: rows of the batch, from 1.
        rows: sizes that may be run, rising.

    >>> parts(3, (1, 2, 4)), parts(9, (1, 2, 4))
    ([(3, 4)], [(4, 4), (4, 4), (1, 1)])
    """
    most = rows[-1]
    whole, rest = divmod(count, most)
    last = [(rest, next(size for size in rows if size >= rest))] if rest else []
    return [(most, most)] * whole + last


def run_split(feeds: Feeds, rows: Sequence[int], arrays: Arrays, run: Callable[[Feeds], Feeds]) -> Feeds:
    """What a network says to a batch.

    Args:
        feeds: by input, all with as many rows. What a part lacks is its last row once more, whose answer is dropped.
        rows: sizes that may be run, rising.
        arrays: what feeds are.
        run: the network; it may overwrite its answers in the next call.

    Returns:
        answers by output; of a batch in one part, `run` may overwrite them.
    """
    count = len(next(iter(feeds.values())))
    if count in rows:
        return run(feeds)
    answers: list[Feeds] = []
    begin, several = 0, split_batch(count, rows)
    for taken, fed in several:
        part = {name: _pad(array[begin : begin + taken], fed - taken, arrays) for name, array in feeds.items()}
        told = {name: answer[:taken] for name, answer in run(part).items()}
        # Joined with nothing, to be kept while the next part runs.
        answers.append(
            told if len(several) == 1 else {name: arrays.concatenate([one], 0) for name, one in told.items()}
        )
        begin += taken
    if len(answers) == 1:
        return answers[0]
    return {name: arrays.concatenate([answer[name] for answer in answers], 0) for name in answers[0]}


def _pad(array: Any, missing: int, arrays: Arrays) -> Any:
    return arrays.concatenate([array, *[array[-1:]] * missing], 0) if missing else array
