"""What learns, as the loop wants it, and what the loop tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from stillhouse.fit.recipe import StageRecipe


class Stage(Protocol):
    """What the loop needs of a stage.

    `loss` draws its own batch from a number, so that a resumed run sees what an uninterrupted one would have seen.
    """

    @property
    def name(self) -> str:
        """Of its checkpoints, and of what is told of it."""

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what is learnt, beside the recipe: a checkpoint of another one is refused."""

    @property
    def recipe(self) -> StageRecipe:
        """How long and how fast it learns."""

    @property
    def network(self) -> nn.Module:
        """What learns: those of its parameters that require gradients."""

    def loss(self, number: int) -> torch.Tensor:
        """The loss of the batch of that number, a scalar with gradients."""

    def evaluate(self) -> Mapping[str, float]:
        """Named scores of the network as it stands; the first is the one that should rise."""


@dataclass(frozen=True, slots=True)
class UpdateLog:
    """One report of progress."""

    stage: str
    update: int
    updates: int
    loss: float
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FitResult:
    """What became of a stage.

    Args:
        is_done: it has learnt what was planned, or ended early; otherwise time was up.
        updates: that are made.
        seconds: that they took, in all runs together.
        scores: of the last judgement.
        recipe: by which the last of them were made.
    """

    is_done: bool
    updates: int
    seconds: float
    scores: Mapping[str, float]
    recipe: StageRecipe | None = None
