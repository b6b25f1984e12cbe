"""Stage two: the text encoder learns to say which word belongs to which figure.

A text encoder that starts from nothing is what slows a small text-to-image model down; filling in the caption's
slots teaches it the grammar in minutes, after which it stays as it is while the denoiser learns.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from stillhouse.shapes.caption import sample_held_out, sample_training_caption
from stillhouse.shapes.scene import sample_scene
from stillhouse.shapes.train.architectures import TEXT_WIDTH, build_text_encoder
from stillhouse.shapes.train.pictures import seeded_rng
from stillhouse.shapes.train.slots import SLOTS, encode_slots
from stillhouse.shapes.train.training_plan import TrainingPlan

_EVAL_SAMPLES = 512


class TextStage:
    """Cross-entropy of every slot, read from the token vectors by learnt attention."""

    name = "text_encoder"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan, tokenizer: Any) -> None:
        self.seed, self.recipe, self.tokenizer = plan.seed, plan.text_encoder, tokenizer
        self.network = SlotReader(build_text_encoder(tokenizer))
        rng = seeded_rng(self.seed, 3)
        self._held_out = [sample_held_out(rng)[1] for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> torch.Tensor:
        """The mean cross-entropy over a fresh batch of captions and all slots."""
        rng = seeded_rng(self.seed, 4, update)
        scenes = (sample_scene(rng) for _ in range(2 * self.recipe.batch_size))
        captions = [caption for scene in scenes if (caption := sample_training_caption(scene, rng))][
            : self.recipe.batch_size
        ]
        answers = self.network(tokenize(self.tokenizer, [str(caption) for caption in captions]))
        truth = torch.tensor([encode_slots(caption) for caption in captions])
        losses = [functional.cross_entropy(answer, truth[:, slot]) for slot, answer in enumerate(answers)]
        return torch.stack(losses).mean()

    def evaluate(self) -> Mapping[str, float]:
        """Shares of slots, and of whole captions, that are read right; on captions that training never sees."""
        answers = self.network(tokenize(self.tokenizer, [str(caption) for caption in self._held_out]))
        truth = torch.tensor([encode_slots(caption) for caption in self._held_out])
        right = torch.stack([answer.argmax(1) == truth[:, slot] for slot, answer in enumerate(answers)], dim=1)
        return {"slots": right.float().mean().item(), "captions": right.all(1).float().mean().item()}


class SlotReader(nn.Module):
    """The text encoder with one attention query and one linear reader for each slot."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.queries = nn.Parameter(0.05 * torch.randn(len(SLOTS), TEXT_WIDTH))
        self.keys = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.readers = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(words) + 1) for words in SLOTS)

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Logits for each slot, from token ids [captions, 24]."""
        states = self.encoder(ids).last_hidden_state
        weights = (self.queries @ self.keys(states).transpose(1, 2) / math.sqrt(TEXT_WIDTH)).softmax(-1)
        read = weights @ states
        return [reader(read[:, slot]) for slot, reader in enumerate(self.readers)]


def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """int64 [captions, 24]."""
    ids: torch.Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids
