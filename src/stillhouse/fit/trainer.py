"""State of a network in training: weights, their moving average (EMA), the optimizer, and checkpoints."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import FitFailed
from stillhouse.fit.checkpoint import write_atomically
from stillhouse.fit.processes import ProcessGroup
from stillhouse.fit.rate import decay_start, learning_rate
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Stage

_MAX_GRAD_NORM = 1.0
_CHECKPOINT = "checkpoint"
BEFORE_DECAY = "before_decay"
"""Part of the name of the checkpoint that is saved before the learning rate decays.

A later run with more updates resumes from this checkpoint."""


class Trainer:
    """State of a stage (network, loss and evaluation) in training, restored from its checkpoint if `folder` has one.

    Args:
        stage: network, loss and evaluation.
        folder: folder of the checkpoints.
        processes: the processes that train the network together.

    Attributes:
        update: number of updates done, earlier runs included.
        seconds: training time in seconds, earlier runs included.
        scores: scores of the last evaluation, by name.
        resumed_in_decay: whether the restored checkpoint was saved while the learning rate decayed.
        recipe: hyper-parameters with which the network was trained.

    Raises:
        FitFailed: the checkpoint has more updates than the recipe, was trained with other data or settings
            (fingerprint), or the checkpoint from before the decay is missing.
    """

    def __init__(self, stage: Stage, folder: Path, processes: ProcessGroup) -> None:
        self.stage, self.folder, self.processes = stage, folder, processes
        self.update, self.seconds, self.resumed_in_decay = 0, 0.0, False
        self.scores: Mapping[str, float] = {}
        self._best: dict[str, Any] | None = None
        self._archive_path: Path | None = None
        self.recipe = recipe = stage.recipe
        self._parameters = [parameter for parameter in stage.network.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self._ema = [parameter.detach().clone() for parameter in self._parameters]
        self._resume()

    @property
    def is_done(self) -> bool:
        """Whether all updates are done, or the last `patience` evaluations brought no better score."""
        recipe = self.stage.recipe
        is_stalled = bool(recipe.patience and self._best and self._best["misses"] >= recipe.patience)
        return is_stalled or self.update == recipe.updates

    def step(self) -> float:
        """Make one optimizer step on the network in place and return the loss, averaged over all processes.

        Raises:
            FitFailed: the loss or the gradient is not finite; the weights stay unchanged.
        """
        started, recipe = monotonic(), self.stage.recipe
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.update)
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._parameters[0].device)
        for index in range(recipe.accumulation_steps):
            loss = self._loss(index) / recipe.accumulation_steps
            total += loss.detach()
            if torch.isfinite(loss):
                loss.backward()  # type: ignore[no-untyped-call]
        self.processes.all_reduce_mean([total])
        self._check_finite("loss", total)
        self.processes.all_reduce_mean([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        self._check_finite("gradient", nn.utils.clip_grad_norm_(self._parameters, _MAX_GRAD_NORM))
        self._optimizer.step()
        # The decay of the weights' moving average (EMA) is small at first, because otherwise the untrained weights
        # would dominate the average for thousands of updates.
        ema_decay = min(recipe.ema_decay, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, [parameter.detach() for parameter in self._parameters], 1 - ema_decay)
        self.update += 1
        self.seconds += monotonic() - started
        return total.item()

    def evaluate(self) -> Mapping[str, float]:
        """Evaluate the network with the EMA weights and return the scores by name.

        The trained weights are restored afterwards.
        """
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._copy_weights(self._ema)
        self.stage.network.eval()
        with torch.no_grad():
            self.scores = self.stage.evaluate()
        self.stage.network.train()
        self._copy_weights(trained)
        if self.stage.recipe.patience:
            self._track_best(next(iter(self.scores.values())))
        return self.scores

    def load_ema_weights(self) -> None:
        """Copy the EMA weights into the network in place.

        Where the recipe allows early stopping (`patience`), copy the EMA weights of the best evaluation instead.
        """
        self._copy_weights(self._best["ema"] if self._best else self._ema)

    def save(self, kind: str = _CHECKPOINT) -> None:
        """Write a checkpoint from which training resumes bit-exactly: weights, EMA, optimizer and number of updates.

        Only the main process writes.

        Args:
            kind: part of the file name, NAME.KIND.pt.

        Raises:
            FitFailed: the file cannot be written.
        """
        if not self.processes.is_main_process:
            return
        state = {
            "update": self.update,
            "planned": self.stage.recipe.updates,
            "recipe": asdict(self.recipe),
            "fingerprint": self.stage.fingerprint,
            "seconds": self.seconds,
            "scores": dict(self.scores),
            "network": self.stage.network.state_dict(),
            "ema": self._ema,
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
        }
        # `_archive_path` is set where this run plans fewer or more updates than the run that wrote the checkpoint.
        # The old checkpoint, the result of that run, is copied before it is overwritten.
        if self._archive_path is not None and kind == _CHECKPOINT:
            write_atomically(self._archive_path, partial(shutil.copyfile, self._path(_CHECKPOINT)))
            self._archive_path = None
        write_atomically(self._path(kind), lambda path: torch.save(state, path))

    def _check_finite(self, what: str, value: Tensor) -> None:
        """Raise FitFailed if a value is NaN or infinite, because an update would spread it to all weights.

        Args:
            what: name of the value in the message.
            value: scalar to check.
        """
        if not torch.isfinite(value):
            raise FitFailed(
                f"{self.stage.name}: the {what} of update {self.update} is {value.item()}",
                fix="resume from the last checkpoint with a smaller learning rate",
            )

    def _loss(self, index: int) -> Tensor:
        recipe, processes = self.stage.recipe, self.processes
        number = (self.update * recipe.accumulation_steps + index) * processes.count + processes.rank
        kind = self._parameters[0].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bf16"):
            return self.stage.loss(number)

    def _track_best(self, score: float) -> None:
        if self._best is None or score > self._best["score"]:
            self._best = {"score": score, "misses": 0, "ema": [tensor.clone() for tensor in self._ema]}
        else:
            self._best = {**self._best, "misses": self._best["misses"] + 1}

    def _resume(self) -> None:
        planned, state = self.stage.recipe.updates, self._load(_CHECKPOINT)
        if state is not None and self._is_in_decay(state) and state["planned"] != planned:
            self._archive_path = self._path(f"{_CHECKPOINT}-of-{state['planned']}")
            state = self._load(f"{_CHECKPOINT}-of-{planned}") or self._load(BEFORE_DECAY)
            if state is None:
                raise FitFailed(
                    f"{self._path(BEFORE_DECAY)} is missing, so the number of updates cannot be changed once the "
                    "learning rate has begun to decay",
                    fix="plan the former number of updates, or use another work directory",
                )
        if state is None:
            return
        if state["update"] > planned:
            problem = f"training of {self.stage.name} has done {state['update']} updates, {planned} are planned"
            raise FitFailed(problem, fix=f"plan {state['update']} updates or more, or use another work directory")
        self.stage.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._ema = [ema.to(parameter) for ema, parameter in zip(state["ema"], self._parameters, strict=True)]
        self.update, self.resumed_in_decay = state["update"], self._is_in_decay(state)
        self.seconds, self.scores = state.get("seconds", 0.0), state.get("scores", {})
        self._best = state.get("best") if self.stage.recipe.patience else None
        if self.is_done and "recipe" in state:
            self.recipe = StageRecipe(**state["recipe"])

    def _is_in_decay(self, state: dict[str, Any]) -> bool:
        planned: int = state["planned"]
        is_in_decay: bool = state["update"] > decay_start(replace(self.stage.recipe, updates=planned))
        return is_in_decay

    def _load(self, kind: str) -> dict[str, Any] | None:
        path = self._path(kind)
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self._parameters[0].device)
        _check_state(path, state, self.stage.fingerprint)
        return state

    def _copy_weights(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)

    def _path(self, kind: str) -> Path:
        return _path(self.folder, self.stage.name, kind)


def check_fingerprint(folder: Path, name: str, fingerprint: str) -> None:
    """Raise FitFailed if a checkpoint was trained with other data or settings; a missing checkpoint is accepted.

    Args:
        folder: folder of the checkpoints.
        name: name of the training, the stem of the checkpoint's name.
        fingerprint: hash of data and settings that the checkpoint must have.
    """
    path = _path(folder, name, _CHECKPOINT)
    if path.exists():
        _check_state(path, torch.load(path, weights_only=True, mmap=True), fingerprint)


def _check_state(path: Path, state: Mapping[str, Any], fingerprint: str) -> None:
    if state.get("fingerprint", "") != fingerprint:
        raise FitFailed(
            f"{path} was trained with another teacher, data or settings",
            fix="use the former teacher, data and settings, or another work directory",
        )


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}.pt"
