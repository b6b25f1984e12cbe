"""State of a stage in training: weights, their moving average, the optimizer, and checkpoints."""

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
"""Kind of the checkpoint from which a run with more updates resumes."""


class Trainer:
    """Update, evaluate and save a stage, starting from its checkpoint if `folder` has one.

    Args:
        stage: stage to train.
        folder: folder of the stage's checkpoints.
        processes: group of the processes that train the stage together.

    Attributes:
        update: number of updates done.
        seconds: training time of this run and of the runs before the checkpoint.
        scores: scores of the last evaluation.
        resumed_in_decay: whether the checkpoint was saved while the learning rate decayed.
        recipe: hyper-parameters of the last updates.

    Raises:
        FitFailed: the checkpoint has more updates than the recipe, or another fingerprint.
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
        """Whether all updates are done, or `patience` evaluations in a row brought no better score."""
        recipe = self.stage.recipe
        is_stalled = bool(recipe.patience and self._best and self._best["misses"] >= recipe.patience)
        return is_stalled or self.update == recipe.updates

    def step(self) -> float:
        """Make one update and return its loss, averaged over all processes."""
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
        # The decay starts small, because the initial weights would otherwise dominate the average for thousands of
        # updates.
        ema_decay = min(recipe.ema_decay, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, [parameter.detach() for parameter in self._parameters], 1 - ema_decay)
        self.update += 1
        self.seconds += monotonic() - started
        return total.item()

    def evaluate(self) -> Mapping[str, float]:
        """Return the stage's scores of the EMA weights; the trained weights stay unchanged."""
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
        """Copy the EMA weights into the network, or the best evaluation's weights if the recipe has a patience."""
        self._copy_weights(self._best["ema"] if self._best else self._ema)

    def save(self, kind: str = _CHECKPOINT) -> None:
        """Write a checkpoint (weights, EMA, optimizer, number of updates) from which training resumes bit-exactly.

        Args:
            kind: part of the file name.

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
        # A run with another number of updates overwrites the checkpoint, so the earlier run's weights are copied first.
        if self._archive_path is not None and kind == _CHECKPOINT:
            write_atomically(self._archive_path, partial(shutil.copyfile, self._path(_CHECKPOINT)))
            self._archive_path = None
        write_atomically(self._path(kind), lambda path: torch.save(state, path))

    def _check_finite(self, what: str, value: Tensor) -> None:
        """Raise FitFailed if a value is not finite, because it would spread to every weight and the next checkpoint."""
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
                raise FitFailed(f"{self._path(BEFORE_DECAY)} is missing: there is no checkpoint from before the decay")
        if state is None:
            return
        if state["update"] > planned:
            problem = f"{self.stage.name} has done {state['update']} updates, {planned} are planned"
            raise FitFailed(problem, fix="plan more updates")
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
    """Raise FitFailed if the checkpoint of a stage in `folder` has another fingerprint; accept a missing checkpoint."""
    path = _path(folder, name, _CHECKPOINT)
    if path.exists():
        _check_state(path, torch.load(path, weights_only=True, mmap=True), fingerprint)


def _check_state(path: Path, state: Mapping[str, Any], fingerprint: str) -> None:
    if state.get("fingerprint", "") != fingerprint:
        raise FitFailed(
            f"{path} was trained with another teacher, data or settings",
            fix="use the former ones, or another work directory",
        )


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}.pt"
