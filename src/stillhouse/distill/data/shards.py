"""Parts: what is made once, from a number on, and kept in files; a run that is killed loses the last one at most."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from stillhouse.errors import InvalidRequest
from stillhouse.fit.checkpoint import write_atomically

Item = TypeVar("Item")

SHARD_SIZE = 512
"""Items of one file."""
_COMPLETE = "all"
_POLL_SECONDS = 0.5
"""Seconds between two looks for a file that another process makes."""


def write_shards(
    items: Callable[[int], Iterable[Item]],
    encode: Callable[[Sequence[Item]], Mapping[str, Any]],
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
    deadline: float | None = None,
) -> bool:
    """Make what has not been made.

    Args:
        items: those from this number on.
        encoded: what is written of some of them, as `torch.save` takes it: `latents`, one for each, and whatever else.
        folder: of the parts.
        progress: hears how many items are done.
        deadline: seconds of `time.monotonic` after which no item is asked for.

    Returns:
        whether all are made.

    Raises:
        InvalidRequest: no items.
        FitFailed: no room for a part.
    """
    if (folder / _COMPLETE).exists():
        return True
    lengths = [len(torch.load(path, weights_only=True)["latents"]) for path in _shard_files(folder)]
    done, number = sum(lengths), len(lengths)
    part: list[Item] = []
    for item in _until_deadline(iter(items(done)), deadline):
        part.append(item)
        progress(done + len(part))
        if len(part) == SHARD_SIZE:
            _write_shard(encode(part), folder / f"{number:05d}.pt")
            done, number, part = done + len(part), number + 1, []
    if part:
        _write_shard(encode(part), folder / f"{number:05d}.pt")
        done += len(part)
    if deadline is not None and time.monotonic() > deadline:
        return False
    if not done:
        raise InvalidRequest("nothing to learn from", allowed="one picture with a caption, or more")
    write_atomically(folder / _COMPLETE, lambda path: path.write_text(f"{done}\n"))
    return True


def wait_for_shards(folder: Path) -> list[dict[str, Any]]:
    """All parts of a folder in their order, as soon as the process that makes them is done."""
    while not (folder / _COMPLETE).exists():
        time.sleep(_POLL_SECONDS)
    return [torch.load(path, weights_only=True) for path in _shard_files(folder)]


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


def _until_deadline(items: Iterator[Item], deadline: float | None) -> Iterator[Item]:
    while (deadline is None or time.monotonic() < deadline) and (item := next(items, None)) is not None:
        yield item


def _write_shard(shard: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(torch.save, shard))
