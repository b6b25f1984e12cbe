"""Second stage of training: the text encoder learns to predict the slots of a caption.

A text encoder that is trained from scratch together with the denoiser slows training down. Slot prediction teaches the
grammar in minutes, and the text encoder is then frozen.
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
    """Stage that trains the text encoder on the mean cross-entropy of the slots; see `SlotReader`."""

    name = "text_encoder"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan, tokenizer: Any) -> None:
        self.seed, self.recipe, self.tokenizer = plan.seed, plan.text_encoder, tokenizer
        self.network = SlotReader(build_text_encoder(tokenizer))
        rng = seeded_rng(self.seed, 3)
        self._held_out = [sample_held_out(rng)[1] for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> torch.Tensor:
        """Return the loss of the batch of an update."""
        rng = seeded_rng(self.seed, 4, update)
        scenes = (sample_scene(rng) for _ in range(2 * self.recipe.batch_size))
        captions = [caption for scene in scenes if (caption := sample_training_caption(scene, rng))][
            : self.recipe.batch_size
        ]
        logits = self.network(tokenize(self.tokenizer, [str(caption) for caption in captions]))
        labels = torch.tensor([encode_slots(caption) for caption in captions])
        losses = [functional.cross_entropy(output, labels[:, slot]) for slot, output in enumerate(logits)]
        return torch.stack(losses).mean()

    def evaluate(self) -> Mapping[str, float]:
        """Return the share of slots, and of captions with all slots, that are right, over held-out captions."""
        logits = self.network(tokenize(self.tokenizer, [str(caption) for caption in self._held_out]))
        labels = torch.tensor([encode_slots(caption) for caption in self._held_out])
        hits = torch.stack([output.argmax(1) == labels[:, slot] for slot, output in enumerate(logits)], dim=1)
        return {"slots": hits.float().mean().item(), "captions": hits.all(1).float().mean().item()}


class SlotReader(nn.Module):
    """Predict slots from the text encoder's token vectors, by an attention query and a linear head for each slot."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.queries = nn.Parameter(0.05 * torch.randn(len(SLOTS), TEXT_WIDTH))
        self.keys = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.readers = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(words) + 1) for words in SLOTS)

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of each slot, [captions, words of the slot + 1], from token ids, int64 [captions, 24]."""
        states = self.encoder(ids).last_hidden_state
        weights = (self.queries @ self.keys(states).transpose(1, 2) / math.sqrt(TEXT_WIDTH)).softmax(-1)
        pooled = weights @ states
        return [reader(pooled[:, slot]) for slot, reader in enumerate(self.readers)]


def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return token ids of captions, int64 [captions, 24]."""
    ids: torch.Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids
