"""Cache a dataset in files of 512 samples (shards); an interrupted run loses the samples of one shard at most."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from stillhouse.errors import InvalidRequest
from stillhouse.fit.checkpoint import write_atomically

Sample = TypeVar("Sample")

SHARD_SIZE = 512
"""Number of samples in one shard (cache file)."""
_COMPLETE = "complete"
"""Name of the file that is written after the last shard, as a sign that the dataset is complete."""
_POLL_SECONDS = 0.5
"""Seconds between two checks whether another process has completed the dataset."""


def write_shards(
    samples: Callable[[int], Iterable[Sample]],
    encode: Callable[[Sequence[Sample]], Mapping[str, Any]],
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
    deadline: float | None = None,
) -> bool:
    """Write the shards (cache files of 512 samples) of a dataset that earlier runs have not written.

    Args:
        samples: maps a number n to the samples from sample n on.
        encode: converts samples into the content of a shard, tensors by name; `latents` must have one row a sample.
        folder: folder of the shards, created where it does not exist.
        progress: receives the number of samples done, including those of earlier runs.
        deadline: time of `time.monotonic` in seconds after which no sample is drawn; None: no limit.

    Returns:
        whether the dataset is complete; False: the deadline passed first.

    Raises:
        InvalidRequest: there are no samples.
        FitFailed: a shard cannot be written.
    """
    if (folder / _COMPLETE).exists():
        return True
    lengths = [len(torch.load(path, weights_only=True)["latents"]) for path in _shard_files(folder)]
    done, number = sum(lengths), len(lengths)
    pending: list[Sample] = []
    for sample in _until_deadline(iter(samples(done)), deadline):
        pending.append(sample)
        progress(done + len(pending))
        if len(pending) == SHARD_SIZE:
            _write_shard(encode(pending), folder / f"{number:05d}.pt")
            done, number, pending = done + len(pending), number + 1, []
    if pending:
        _write_shard(encode(pending), folder / f"{number:05d}.pt")
        done += len(pending)
    if deadline is not None and time.monotonic() > deadline:
        return False
    if not done:
        raise InvalidRequest("the dataset has no samples", allowed="one picture with a caption, or more")
    write_atomically(folder / _COMPLETE, lambda path: path.write_text(f"{done}\n"))
    return True


def wait_for_shards(folder: Path) -> list[dict[str, Any]]:
    """Wait until `write_shards` has completed the dataset of a folder, in this or another process, and load its shards.

    Returns:
        the content of each shard (512 samples), in the order in which the shards were written.
    """
    while not (folder / _COMPLETE).exists():
        time.sleep(_POLL_SECONDS)
    return [torch.load(path, weights_only=True) for path in _shard_files(folder)]


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


def _until_deadline(samples: Iterator[Sample], deadline: float | None) -> Iterator[Sample]:
    while (deadline is None or time.monotonic() < deadline) and (sample := next(samples, None)) is not None:
        yield sample


def _write_shard(shard: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(torch.save, shard))
