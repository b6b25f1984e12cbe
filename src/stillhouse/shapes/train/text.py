"""Second part of training the package's model: the text encoder learns to predict the attributes (slots) of captions.

Training the text encoder together with the denoiser would take longer. The prediction of slots teaches the grammar of
captions in minutes, and the text encoder then stays unchanged.
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
    """Training task for the loop `fit`: the text encoder learns to predict the slots (attributes) of captions.

    The loss is the mean cross-entropy of the slots.

    Args:
        plan: seed, and hyper-parameters of the training.
        tokenizer: CLIP tokenizer of the captions.
    """

    name = "text_encoder"
    fingerprint = ""

    def __init__(self, plan: TrainingPlan, tokenizer: Any) -> None:
        self.seed, self.recipe, self.tokenizer = plan.seed, plan.text_encoder, tokenizer
        self.network = SlotReader(build_text_encoder(tokenizer))
        rng = seeded_rng(self.seed, 3)
        self._held_out = [sample_held_out(rng)[1] for _ in range(_EVAL_SAMPLES)]

    def loss(self, update: int) -> torch.Tensor:
        """Return the loss of batch number `update`, a scalar with gradients."""
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
        """Evaluate the predictions for 512 captions that training never uses.

        Returns:
            `slots`, the share of slots (attributes) that are right, and `captions`, the share of captions whose slots
            are all right, 0 to 1 each.
        """
        logits = self.network(tokenize(self.tokenizer, [str(caption) for caption in self._held_out]))
        labels = torch.tensor([encode_slots(caption) for caption in self._held_out])
        hits = torch.stack([output.argmax(1) == labels[:, slot] for slot, output in enumerate(logits)], dim=1)
        return {"slots": hits.float().mean().item(), "captions": hits.all(1).float().mean().item()}


class SlotReader(nn.Module):
    """Network that predicts the slots (attributes, such as the first figure's colour) of captions.

    Each slot has an attention query over the text encoder's token vectors, and a linear head.

    Args:
        encoder: the text encoder, which is trained as well.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.queries = nn.Parameter(0.05 * torch.randn(len(SLOTS), TEXT_WIDTH))
        self.keys = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.readers = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(words) + 1) for words in SLOTS)

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return for each slot (attribute) the logits of its labels, [captions, words of the slot + 1].

        Label 0 means that the caption does not mention the attribute.

        Args:
            ids: token ids, int64 [captions, 24].
        """
        states = self.encoder(ids).last_hidden_state
        weights = (self.queries @ self.keys(states).transpose(1, 2) / math.sqrt(TEXT_WIDTH)).softmax(-1)
        pooled = weights @ states
        return [reader(pooled[:, slot]) for slot, reader in enumerate(self.readers)]


def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return the token ids of captions, int64 [captions, 24], padded or truncated to 24 tokens."""
    ids: torch.Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids
