"""What the training loop trains (network, loss and evaluation), its progress reports and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from stillhouse.fit.recipe import StageRecipe


class Stage(Protocol):
    """A network with its loss and its evaluation, which the training loop `fit` trains.

    The batch number alone decides the examples of a batch, so that a resumed run trains on the batches of an
    uninterrupted run.
    """

    @property
    def name(self) -> str:
        """Stem of the names of checkpoints and logs."""

    @property
    def fingerprint(self) -> str:
        """Hash of data and settings besides the recipe; a checkpoint that was saved with another hash is refused."""

    @property
    def recipe(self) -> StageRecipe:
        """Hyper-parameters of the training."""

    @property
    def network(self) -> nn.Module:
        """The module that is trained; parameters that do not require gradients stay unchanged."""

    def loss(self, number: int) -> torch.Tensor:
        """Return the loss of batch `number`, counted from 0, a scalar with gradients."""

    def evaluate(self) -> Mapping[str, float]:
        """Return scores of the network by name.

        The first score decides which weights are the best: those with the highest value.
        """


@dataclass(frozen=True, slots=True)
class UpdateLog:
    """Progress in the training of one network.

    Args:
        stage: name of the training, such as "9-steps" or "decoder".
        update: number of updates done.
        updates: planned number of updates.
        loss: exponential moving average of the loss.
        scores: scores of the evaluation after this update; empty if there was no evaluation.
    """

    stage: str
    update: int
    updates: int
    loss: float
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FitResult:
    """Result of `fit`.

    Args:
        is_done: whether the training is complete; False: the deadline passed first.
        updates: number of updates, earlier runs included.
        seconds: training time in seconds, earlier runs included.
        scores: scores of the last evaluation, by name.
        recipe: hyper-parameters with which the network was trained; None: not known.
    """

    is_done: bool
    updates: int
    seconds: float
    scores: Mapping[str, float]
    recipe: StageRecipe | None = None
