"""Pairs: clean latents and what the U-Net is told of them, which is all that a student learns from beside its teacher.

Everything is encoded once, by the pipeline that serves, and kept in files: two fifths of an update's time for a
small model, and the whole autoencoder's memory for a large one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stillhouse.core import ImageRequest
from stillhouse.distill.items import Item
from stillhouse.distill.networks import Inputs
from stillhouse.errors import InvalidRequest
from stillhouse.fit.checkpoint import write_atomically
from stillhouse.models.pipeline import Pipeline

PART = 512
"""Items of one file."""
_ALL = "all"
_LOOK = 0.5
"""Seconds between two looks for a file that another process makes."""
_GUIDANCE_INPUT = "timestep_cond"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A batch: clean and scaled latents, float32 [B, C, h, w], and what is said about them."""

    latents: Tensor
    said: Inputs


class Pairs(Protocol):
    """Where batches come from."""

    def batch(self, rng: np.random.Generator, count: int) -> Pair:
        """So many, decided by the generator alone."""

    def nothing(self, count: int) -> Inputs:
        """So many rows of the negative prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptPairs:
    """Pairs that were encoded before.

    Args:
        latents: float16 [items, C, h, w].
        captions: int64 [items, most captions]: rows of `texts`; where an item has fewer, its first again.
        texts: every caption once, by input, float16 [captions, ...].
        unsaid: the negative prompt, by input, one row.
    """

    latents: Tensor
    captions: Tensor
    texts: Inputs
    unsaid: Inputs

    def batch(self, rng: np.random.Generator, count: int) -> Pair:
        """See `Pairs`."""
        items = torch.from_numpy(rng.integers(len(self.latents), size=count))
        chosen = torch.from_numpy(rng.integers(self.captions.shape[1], size=count))
        rows = self.captions[items, chosen]
        return Pair(self.latents[items].float(), {name: kept[rows].float() for name, kept in self.texts.items()})

    def nothing(self, count: int) -> Inputs:
        """See `Pairs`."""
        return {name: row.float().expand(count, *row.shape[1:]) for name, row in self.unsaid.items()}


def kept(
    pipeline: Pipeline,
    items: Callable[[int], Iterable[Item]],
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
    deadline: float | None = None,
) -> bool:
    """Encode what has not been encoded; a run that is killed loses the last part at most.

    Args:
        pipeline: tells what the U-Net is told by a text.
        items: those from this number on.
        folder: of the parts.
        progress: hears how many items are done.
        deadline: seconds of `time.monotonic` after which no item is asked for.

    Returns:
        whether all are encoded.

    Raises:
        InvalidRequest: no items.
        FitFailed: no room for a part.
    """
    if (folder / _ALL).exists():
        return True
    lengths = [len(torch.load(path, weights_only=True)["latents"]) for path in _parts(folder)]
    done, number = sum(lengths), len(lengths)
    part: list[Item] = []
    for item in _in_time(iter(items(done)), deadline):
        part.append(item)
        progress(done + len(part))
        if len(part) == PART:
            _write(pipeline, part, folder / f"{number:05d}.pt")
            done, number, part = done + len(part), number + 1, []
    if part:
        _write(pipeline, part, folder / f"{number:05d}.pt")
        done += len(part)
    if deadline is not None and time.monotonic() > deadline:
        return False
    if not done:
        raise InvalidRequest("nothing to learn from", allowed="one picture with a caption, or more")
    write_atomically(folder / _ALL, lambda path: path.write_text(f"{done}\n"))
    return True


def awaited(folder: Path) -> KeptPairs:
    """Those of a folder, as soon as the process that encodes is done."""
    while not (folder / _ALL).exists():
        time.sleep(_LOOK)
    parts = [torch.load(path, weights_only=True) for path in _parts(folder)]
    most = max(part["captions"].shape[1] for part in parts)
    captions, rows = [], 0
    for part in parts:
        own = part["captions"] + rows
        captions.append(torch.cat([own, own[:, :1].expand(-1, most - own.shape[1])], dim=1))
        rows += len(next(iter(part["texts"].values())))
    return KeptPairs(
        latents=torch.cat([part["latents"] for part in parts]),
        captions=torch.cat(captions),
        texts={name: torch.cat([part["texts"][name] for part in parts]) for name in parts[0]["texts"]},
        unsaid=parts[0]["unsaid"],
    )


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


def _in_time(items: Iterator[Item], deadline: float | None) -> Iterator[Item]:
    while (deadline is None or time.monotonic() < deadline) and (item := next(items, None)) is not None:
        yield item


def _write(pipeline: Pipeline, items: Iterable[Item], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(torch.save, _encoded(pipeline, items)))


def _encoded(pipeline: Pipeline, items: Iterable[Item]) -> dict[str, Any]:
    latents: list[Tensor] = []
    captions: list[list[int]] = []
    rows: dict[str, int] = {}
    texts: list[Inputs] = []
    for item in items:
        for text in item.captions:
            if text not in rows:
                rows[text] = len(rows)
                texts.append(told(pipeline, text))
        latents.append(torch.from_numpy(item.latents).half())
        captions.append([rows[text] for text in item.captions])
    most = max(map(len, captions))
    return {
        "latents": torch.stack(latents),
        "captions": torch.tensor([[*some, *[some[0]] * (most - len(some))] for some in captions]),
        "texts": {name: torch.stack([text[name] for text in texts]) for name in texts[0]},
        "unsaid": {name: row[None] for name, row in _unsaid(pipeline).items()},
    }


def told(pipeline: Pipeline, text: str) -> Inputs:
    """What the U-Net is told by a text, float16, without the guidance scale."""
    unguided = None if pipeline.manifest.distilled else 1.0  # a student may know no such scale
    return _halves(pipeline.start(ImageRequest(text, guidance=unguided)).conditioning)


def _unsaid(pipeline: Pipeline) -> Inputs:
    draft = pipeline.start(ImageRequest(""))
    return _halves(draft.unconditional or draft.conditioning)


def _halves(inputs: Any) -> Inputs:
    return {name: torch.from_numpy(np.array(row)).half() for name, row in inputs.items() if name != _GUIDANCE_INPUT}
