"""The protocol of a training stage, its progress report and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from stillhouse.fit.recipe import StageRecipe


class Stage(Protocol):
    """A network, its loss and its evaluation, which `fit` calls.

    The batch number alone decides the batch of `loss`, so that a resumed run has the batches of an uninterrupted run.
    """

    @property
    def name(self) -> str:
        """File name stem of the checkpoints and logs."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything besides the recipe that decides the result; a checkpoint with another hash is refused."""

    @property
    def recipe(self) -> StageRecipe:
        """Hyper-parameters of the stage."""

    @property
    def network(self) -> nn.Module:
        """The trained module; parameters that do not require gradients stay unchanged."""

    def loss(self, number: int) -> torch.Tensor:
        """Return the loss of batch `number`, a scalar with gradients."""

    def evaluate(self) -> Mapping[str, float]:
        """Return scores of the network by name; the weights with the highest first score are the best."""


@dataclass(frozen=True, slots=True)
class UpdateLog:
    """Progress of a stage.

    Args:
        stage: name of the stage.
        update, updates: number of the current update, from 1, and planned number of updates.
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
        is_done: whether the stage ended by its recipe; False: the deadline passed first.
        updates: number of updates in all runs.
        seconds: training time in all runs.
        scores: scores of the last evaluation.
        recipe: hyper-parameters of the last updates.
    """

    is_done: bool
    updates: int
    seconds: float
    scores: Mapping[str, float]
    recipe: StageRecipe | None = None
