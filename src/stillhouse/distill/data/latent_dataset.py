"""Training datasets of clean latents, with the denoiser's text inputs (such as text embeddings) of their captions.

The teacher's autoencoder and text encoder run once for each picture and caption, and the results are cached in files.
The cache saves two fifths of the time of a training update for a small model, and the autoencoder's memory for a large
one.
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
from stillhouse.distill.data.shards import wait_for_shards
from stillhouse.distill.training.networks import DenoiserInputs
from stillhouse.pipelines.pipeline import Pipeline

_GUIDANCE_INPUT = "timestep_cond"


@dataclass(frozen=True, slots=True, eq=False)
class LatentBatch:
    """Clean scaled latents, float32 [B, C, h, w], and in `cond` the denoiser's text inputs by name, B rows each."""

    latents: Tensor
    cond: DenoiserInputs


class LatentDataset(Protocol):
    """Source of training batches: clean latents with the text inputs of their captions."""

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        """Return `count` samples drawn by `rng`, the only source of randomness."""

    def negative_inputs(self, count: int) -> DenoiserInputs:
        """Return the denoiser's text inputs of the negative prompt by name, repeated to `count` rows."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedLatents:
    """A dataset of clean latents and captions in memory.

    Args:
        latents: clean scaled latents, float16 [samples, C, h, w].
        caption_rows: for each sample the rows of its captions in `text_inputs`, int64 [samples, most captions]. A
            sample with fewer captions repeats its first row.
        text_inputs: denoiser inputs of the distinct captions, by name, float16 [distinct captions, ...].
        uncond: denoiser inputs of the negative prompt, by name, float16, one row.
    """

    latents: Tensor
    caption_rows: Tensor
    text_inputs: DenoiserInputs
    uncond: DenoiserInputs

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        """Return `count` samples drawn by `rng` with replacement, each with one of its captions."""
        samples = torch.from_numpy(rng.integers(len(self.latents), size=count))
        captions = torch.from_numpy(rng.integers(self.caption_rows.shape[1], size=count))
        rows = self.caption_rows[samples, captions]
        return LatentBatch(
            self.latents[samples].float(), {name: tensor[rows].float() for name, tensor in self.text_inputs.items()}
        )

    def negative_inputs(self, count: int) -> DenoiserInputs:
        """Return the denoiser's text inputs of the negative prompt by name, float32, repeated to `count` rows."""
        return {name: row.float().expand(count, *row.shape[1:]) for name, row in self.uncond.items()}


def wait_for_latents(folder: Path) -> CachedLatents:
    """Wait until a folder contains the complete dataset that `write_shards` writes, then load all of it into memory."""
    shards = wait_for_shards(folder)
    width = max(shard["caption_rows"].shape[1] for shard in shards)
    caption_rows, offset = [], 0
    for shard in shards:
        rows = shard["caption_rows"] + offset
        caption_rows.append(torch.cat([rows, rows[:, :1].expand(-1, width - rows.shape[1])], dim=1))
        offset += len(next(iter(shard["text_inputs"].values())))
    return CachedLatents(
        latents=torch.cat([shard["latents"] for shard in shards]),
        caption_rows=torch.cat(caption_rows),
        text_inputs={
            name: torch.cat([shard["text_inputs"][name] for shard in shards]) for name in shards[0]["text_inputs"]
        },
        uncond=shards[0]["uncond"],
    )


def encode_samples(pipeline: Pipeline, samples: Iterable[LatentSample]) -> dict[str, Any]:
    """Encode the captions of samples; return the content of one cache file: the fields of `CachedLatents` by name."""
    latents: list[Tensor] = []
    caption_rows: list[list[int]] = []
    row_of: dict[str, int] = {}
    inputs: list[DenoiserInputs] = []
    for sample in samples:
        for text in sample.captions:
            if text not in row_of:
                row_of[text] = len(row_of)
                inputs.append(encode_caption(pipeline, text))
        latents.append(torch.from_numpy(sample.latents).half())
        caption_rows.append([row_of[text] for text in sample.captions])
    width = max(map(len, caption_rows))
    return {
        "latents": torch.stack(latents),
        "caption_rows": torch.tensor([[*rows, *[rows[0]] * (width - len(rows))] for rows in caption_rows]),
        "text_inputs": {name: torch.stack([row[name] for row in inputs]) for name in inputs[0]},
        "uncond": encode_negative_prompt(pipeline),
    }


def encode_caption(pipeline: Pipeline, text: str) -> DenoiserInputs:
    """Return the denoiser's text inputs of a caption by name, float16, without a batch axis.

    The embedding of the guidance scale is left out.
    """
    # At guidance scale 1 no negative prompt is encoded, which saves time. A distilled teacher gets None (its default
    # scale), as it may refuse scale 1.
    unguided = None if pipeline.manifest.distilled else 1.0
    trajectory = pipeline.start(ImageRequest(text, guidance=unguided))
    return inputs_to_f16(inputs_to_numpy(pipeline, trajectory.branches[CONDITIONAL].inputs))


def encode_negative_prompt(pipeline: Pipeline) -> DenoiserInputs:
    """Return the denoiser inputs of the empty negative prompt by name, float16, one row.

    A pipeline that never evaluates a negative prompt gives the inputs of the empty prompt.
    """
    branches = pipeline.start(ImageRequest("")).branches
    inputs = inputs_to_numpy(pipeline, branches.get(UNCONDITIONAL, branches[CONDITIONAL]).inputs)
    return {name: row[None] for name, row in inputs_to_f16(inputs).items()}


def inputs_to_numpy(pipeline: Pipeline, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Copy denoiser inputs from the pipeline's device to NumPy arrays, by name."""
    return {name: pipeline.arrays.to_numpy(row) for name, row in inputs.items()}


def inputs_to_f16(inputs: Mapping[str, Any]) -> DenoiserInputs:
    """Return denoiser inputs as float16 tensors by name, without the embedding of the guidance scale."""
    return {name: torch.from_numpy(np.array(row)).half() for name, row in inputs.items() if name != _GUIDANCE_INPUT}
