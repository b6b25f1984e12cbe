"""Pairs: clean latents and what was said about them, which is all that a student learns from beside its teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.networks import Inputs
from stillhouse.fit.stage import write_atomically
from stillhouse.models.shapes.caption import sample_seen
from stillhouse.models.shapes.scene import draw, sample_scene

_ENCODED_AT_ONCE = 100


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A batch.

    Args:
        latents: clean and scaled, float32 [B, C, h, w].
        said: of the captions; where one was left out, of the negative prompt.
    """

    latents: Tensor
    said: Inputs


class Pairs(Protocol):
    """Where batches come from."""

    def batch(self, rng: np.random.Generator, count: int) -> Pair:
        """So many, decided by the generator alone."""

    def nothing(self, count: int) -> Inputs:
        """So many rows of the negative prompt."""


class ShapesPairs:
    """Scenes as the embedded world draws them, with captions that training may see.

    Args:
        folder: keeps the latents, which are made once.
        scenes: how many.
        seed: of the scenes.
        networks: tokenizer, text_encoder and vae, as diffusers has them.
        empty: share of captions that are left out.
    """

    def __init__(self, folder: Path, scenes: int, seed: int, networks: Any, empty: float) -> None:
        rng = np.random.default_rng((seed, 1))
        self._scenes = [sample_scene(rng) for _ in range(scenes)]
        self._networks, self._empty = networks, empty
        self._latents = self._encoded(folder / f"latents-{scenes}-{seed}.pt")

    def batch(self, rng: np.random.Generator, count: int) -> Pair:
        """See `Pairs`."""
        chosen: list[int] = []
        texts: list[str] = []
        while len(chosen) < count:
            index = int(rng.integers(len(self._scenes)))
            caption = sample_seen(self._scenes[index], rng)
            if caption is not None:
                chosen.append(index)
                texts.append("" if rng.random() < self._empty else str(caption))
        return Pair(self._latents[chosen].float(), self.encode(texts))

    def nothing(self, count: int) -> Inputs:
        """See `Pairs`."""
        return {name: rows.expand(count, *rows.shape[1:]) for name, rows in self.encode([""]).items()}

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Inputs:
        """What the U-Net is told by these texts."""
        tokenizer, encoder = self._networks.tokenizer, self._networks.text_encoder
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return {"encoder_hidden_states": encoder(ids).last_hidden_state}

    @torch.no_grad()
    def _encoded(self, path: Path) -> Tensor:
        if path.exists():
            kept: Tensor = torch.load(path, weights_only=True)
            return kept
        vae = self._networks.vae
        parts = []
        for i in range(0, len(self._scenes), _ENCODED_AT_ONCE):
            pictures = np.stack([draw(scene) for scene in self._scenes[i : i + _ENCODED_AT_ONCE]])
            signal = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(vae.encode(signal).latent_dist.mode() * vae.config.scaling_factor)
        latents = torch.cat(parts).half()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: torch.save(latents, partial))
        return latents
