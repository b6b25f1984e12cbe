"""A stage in the making: its weights, their average, the optimiser's state, and how they are kept."""

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


class Trainer:
    """Moves a stage by one update, judges it, saves it; goes on from its checkpoint.

    Args:
        stage: what learns.
        folder: of its checkpoints.
        processes: that learn it together.

    Attributes:
        update: updates that are done.
        seconds: that they took, those before the checkpoint included.
        scores: of the last judgement.
        fell: whether the rate was falling already at the checkpoint.
        recipe: by which the last updates were made.

    Raises:
        FitFailed: fewer updates are planned than lie behind.
    """

    def __init__(self, stage: Stage, folder: Path, processes: ProcessGroup) -> None:
        self.stage, self.folder, self.processes = stage, folder, processes
        self.update, self.seconds, self.resumed_in_decay = 0, 0.0, False
        self.scores: Mapping[str, float] = {}
        self._best: dict[str, Any] | None = None
        self._archive_path: Path | None = None
        self.recipe = recipe = stage.recipe
        self._parameters = [parameter for parameter in stage.network.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self._ema = [parameter.detach().clone() for parameter in self._parameters]
        self._resume()

    @property
    def is_done(self) -> bool:
        """Whether all updates are made, or none of the last judgements was a better one."""
        recipe = self.stage.recipe
        tired = bool(recipe.patience and self._best and self._best["misses"] >= recipe.patience)
        return tired or self.update == recipe.updates

    def step(self) -> float:
        """One update; its loss, in the mean over all processes."""
        began, recipe = monotonic(), self.stage.recipe
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(recipe, self.update)
        self._optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._parameters[0].device)
        for part in range(recipe.accumulation_steps):
            loss = self._loss(part) / recipe.accumulation_steps
            total += loss.detach()
            if torch.isfinite(loss):
                loss.backward()  # type: ignore[no-untyped-call]
        self.processes.all_reduce_mean([total])
        self._check_finite("loss", total)
        self.processes.all_reduce_mean([one.grad for one in self._parameters if one.grad is not None])
        self._check_finite("gradient", nn.utils.clip_grad_norm_(self._parameters, _MAX_GRAD_NORM))
        self._optimiser.step()
        # Early averages forget quickly, or the start would weigh on them for thousands of updates.
        keep = min(recipe.ema_decay, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, [one.detach() for one in self._parameters], 1 - keep)
        self.update += 1
        self.seconds += monotonic() - began
        return total.item()

    def evaluate(self) -> Mapping[str, float]:
        """What the stage says of its averaged weights."""
        raw = [parameter.detach().clone() for parameter in self._parameters]
        self._copy_weights(self._ema)
        self.stage.network.eval()
        with torch.no_grad():
            self.scores = self.stage.evaluate()
        self.stage.network.train()
        self._copy_weights(raw)
        if self.stage.recipe.patience:
            self._track_best(next(iter(self.scores.values())))
        return self.scores

    def load_ema_weights(self) -> None:
        """The stage's network takes the averaged weights, or those of the best judgement if it ended early."""
        self._copy_weights(self._best["average"] if self._best else self._ema)

    def save(self, kind: str = _CHECKPOINT) -> None:
        """Keep everything that another process needs to go on to the same bits."""
        if not self.processes.is_main_process:
            return
        state = {
            "update": self.update,
            "planned": self.stage.recipe.updates,
            "recipe": asdict(self.recipe),
            "identity": self.stage.fingerprint,
            "seconds": self.seconds,
            "scores": dict(self.scores),
            "network": self.stage.network.state_dict(),
            "average": self._ema,
            "optimiser": self._optimiser.state_dict(),
            "best": self._best,
        }
        if self._archive_path is not None and kind == _CHECKPOINT:  # what was learnt during the fall is not lost
            write_atomically(self._archive_path, partial(shutil.copyfile, self._path(_CHECKPOINT)))
            self._archive_path = None
        write_atomically(self._path(kind), lambda path: torch.save(state, path))

    def _check_finite(self, what: str, value: Tensor) -> None:
        """Refuse an update by what is no number: it would be in every weight, and in the next checkpoint."""
        if not torch.isfinite(value):
            raise FitFailed(
                f"{self.stage.name}: the {what} of update {self.update} is {value.item()}",
                fix="go on from the last checkpoint with a smaller rate",
            )

    def _loss(self, index: int) -> Tensor:
        recipe, processes = self.stage.recipe, self.processes
        number = (self.update * recipe.accumulation_steps + index) * processes.count + processes.rank
        kind = self._parameters[0].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bf16"):
            return self.stage.loss(number)

    def _track_best(self, score: float) -> None:
        if self._best is None or score > self._best["score"]:
            self._best = {"score": score, "misses": 0, "average": [one.clone() for one in self._ema]}
        else:
            self._best = {**self._best, "misses": self._best["misses"] + 1}

    def _resume(self) -> None:
        planned, state = self.stage.recipe.updates, self._load(_CHECKPOINT)
        if state is not None and self._is_in_decay(state) and state["planned"] != planned:
            self._archive_path = self._path(f"{_CHECKPOINT}-of-{state['planned']}")
            state = self._load(f"{_CHECKPOINT}-of-{planned}") or self._load("stable")
            if state is None:
                raise FitFailed(f"{self._path('stable')} is missing: nothing is left from before the fall")
        if state is None:
            return
        if state["update"] > planned:
            done = state["update"]
            raise FitFailed(f"{self.stage.name} has {done} updates behind it, {planned} are planned", fix="plan more")
        self.stage.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._ema = [one.to(own) for one, own in zip(state["average"], self._parameters, strict=True)]
        self.update, self.resumed_in_decay = state["update"], self._is_in_decay(state)
        self.seconds, self.scores = state.get("seconds", 0.0), state.get("scores", {})
        self._best = state.get("best") if self.stage.recipe.patience else None
        if self.is_done and "recipe" in state:
            self.recipe = StageRecipe(**state["recipe"])

    def _is_in_decay(self, state: dict[str, Any]) -> bool:
        planned: int = state["planned"]
        fell: bool = state["update"] > decay_start(replace(self.stage.recipe, updates=planned))
        return fell

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
    """Refuse a stage whose checkpoint in `folder` is of another identity; nothing where there is none.

    Raises:
        FitFailed: it was learnt from something else.
    """
    path = _path(folder, name, _CHECKPOINT)
    if path.exists():
        _check_state(path, torch.load(path, weights_only=True, mmap=True), fingerprint)


def _check_state(path: Path, state: Mapping[str, Any], fingerprint: str) -> None:
    if state.get("identity", "") != fingerprint:
        raise FitFailed(
            f"{path} was learnt from something else",
            fix="go on with the settings of that time, or learn in another directory",
        )


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}.pt"
