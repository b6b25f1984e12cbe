"""Pairs: clean latents and what the U-Net is told of them, which is all that a student learns from beside its teacher.

Everything is encoded once, by the pipeline that serves, and kept in files: two fifths of an update's time for a
small model, and the whole autoencoder's memory for a large one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stillhouse.core import ImageRequest
from stillhouse.diffusion import CONDITIONAL, UNCONDITIONAL
from stillhouse.distill.data.samples import LatentSample
from stillhouse.distill.data.shards import wait_for_shards as awaited_parts
from stillhouse.distill.training.networks import UNetInputs
from stillhouse.pipelines.pipeline import Pipeline

_GUIDANCE_INPUT = "timestep_cond"


@dataclass(frozen=True, slots=True, eq=False)
class LatentBatch:
    """A batch: clean and scaled latents, float32 [B, C, h, w], and what is said about them."""

    latents: Tensor
    cond: UNetInputs


class LatentDataset(Protocol):
    """Where batches come from."""

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        """So many, decided by the generator alone."""

    def negative_inputs(self, count: int) -> UNetInputs:
        """So many rows of the negative prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedLatents:
    """Pairs that were encoded before.

    Args:
        latents: float16 [items, C, h, w].
        captions: int64 [items, most captions]: rows of `texts`; where an item has fewer, its first again.
        texts: every caption once, by input, float16 [captions, ...].
        unsaid: the negative prompt, by input, one row.
    """

    latents: Tensor
    caption_rows: Tensor
    text_inputs: UNetInputs
    uncond: UNetInputs

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        """See `Pairs`."""
        items = torch.from_numpy(rng.integers(len(self.latents), size=count))
        chosen = torch.from_numpy(rng.integers(self.caption_rows.shape[1], size=count))
        rows = self.caption_rows[items, chosen]
        return LatentBatch(
            self.latents[items].float(), {name: kept[rows].float() for name, kept in self.text_inputs.items()}
        )

    def negative_inputs(self, count: int) -> UNetInputs:
        """See `Pairs`."""
        return {name: row.float().expand(count, *row.shape[1:]) for name, row in self.uncond.items()}


def wait_for_latents(folder: Path) -> CachedLatents:
    """Those of a folder, as soon as the process that encodes is done."""
    parts = awaited_parts(folder)
    most = max(part["captions"].shape[1] for part in parts)
    captions, rows = [], 0
    for part in parts:
        own = part["captions"] + rows
        captions.append(torch.cat([own, own[:, :1].expand(-1, most - own.shape[1])], dim=1))
        rows += len(next(iter(part["texts"].values())))
    return CachedLatents(
        latents=torch.cat([part["latents"] for part in parts]),
        caption_rows=torch.cat(captions),
        text_inputs={name: torch.cat([part["texts"][name] for part in parts]) for name in parts[0]["texts"]},
        uncond=parts[0]["unsaid"],
    )


def encode_samples(pipeline: Pipeline, samples: Iterable[LatentSample]) -> dict[str, Any]:
    """A part of them, as `parts.keep` writes it."""
    latents: list[Tensor] = []
    captions: list[list[int]] = []
    rows: dict[str, int] = {}
    texts: list[UNetInputs] = []
    for item in samples:
        for text in item.captions:
            if text not in rows:
                rows[text] = len(rows)
                texts.append(encode_caption(pipeline, text))
        latents.append(torch.from_numpy(item.latents).half())
        captions.append([rows[text] for text in item.captions])
    most = max(map(len, captions))
    return {
        "latents": torch.stack(latents),
        "captions": torch.tensor([[*some, *[some[0]] * (most - len(some))] for some in captions]),
        "texts": {name: torch.stack([text[name] for text in texts]) for name in texts[0]},
        "unsaid": encode_negative_prompt(pipeline),
    }


def encode_caption(pipeline: Pipeline, text: str) -> UNetInputs:
    """What the U-Net is told by a text, float16, without the guidance scale."""
    unguided = None if pipeline.manifest.distilled else 1.0  # a student may know no such scale
    trajectory = pipeline.start(ImageRequest(text, guidance=unguided))
    return inputs_to_f16(inputs_to_numpy(pipeline, trajectory.branches[CONDITIONAL].inputs))


def encode_negative_prompt(pipeline: Pipeline) -> UNetInputs:
    """What the U-Net is told by the negative prompt, float16, in one row."""
    branches = pipeline.start(ImageRequest("")).branches
    said = inputs_to_numpy(pipeline, branches.get(UNCONDITIONAL, branches[CONDITIONAL]).inputs)
    return {name: row[None] for name, row in inputs_to_f16(said).items()}


def inputs_to_numpy(pipeline: Pipeline, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the U-Net of a draft is told, as NumPy's arrays."""
    return {name: pipeline.arrays.to_numpy(row) for name, row in inputs.items()}


def inputs_to_f16(inputs: Mapping[str, Any]) -> UNetInputs:
    """What the U-Net is told, float16, without the guidance scale."""
    return {name: torch.from_numpy(np.array(row)).half() for name, row in inputs.items() if name != _GUIDANCE_INPUT}
