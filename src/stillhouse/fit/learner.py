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
from stillhouse.fit.processes import Processes
from stillhouse.fit.rate import fall_begins, learning_rate
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Stage

_CLIP = 1.0
_CHECKPOINT = "checkpoint"


class Learner:
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

    def __init__(self, stage: Stage, folder: Path, processes: Processes) -> None:
        self.stage, self.folder, self.processes = stage, folder, processes
        self.update, self.seconds, self.fell = 0, 0.0, False
        self.scores: Mapping[str, float] = {}
        self._best: dict[str, Any] | None = None
        self._retired: Path | None = None
        self.recipe = recipe = stage.recipe
        self._parameters = [parameter for parameter in stage.network.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self._average = [parameter.detach().clone() for parameter in self._parameters]
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
        for part in range(recipe.accumulate):
            loss = self._loss(part) / recipe.accumulate
            total += loss.detach()
            if torch.isfinite(loss):
                loss.backward()  # type: ignore[no-untyped-call]
        self.processes.average([total])
        self._check("loss", total)
        self.processes.average([one.grad for one in self._parameters if one.grad is not None])
        self._check("gradient", nn.utils.clip_grad_norm_(self._parameters, _CLIP))
        self._optimiser.step()
        # Early averages forget quickly, or the start would weigh on them for thousands of updates.
        keep = min(recipe.average, (1 + self.update) / (10 + self.update))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, [one.detach() for one in self._parameters], 1 - keep)
        self.update += 1
        self.seconds += monotonic() - began
        return total.item()

    def judge(self) -> Mapping[str, float]:
        """What the stage says of its averaged weights."""
        raw = [parameter.detach().clone() for parameter in self._parameters]
        self._fill(self._average)
        self.stage.network.eval()
        with torch.no_grad():
            self.scores = self.stage.judge()
        self.stage.network.train()
        self._fill(raw)
        if self.stage.recipe.patience:
            self._remember(next(iter(self.scores.values())))
        return self.scores

    def adopt_average(self) -> None:
        """The stage's network takes the averaged weights, or those of the best judgement if it ended early."""
        self._fill(self._best["average"] if self._best else self._average)

    def save(self, kind: str = _CHECKPOINT) -> None:
        """Keep everything that another process needs to go on to the same bits."""
        if not self.processes.is_first:
            return
        state = {
            "update": self.update,
            "planned": self.stage.recipe.updates,
            "recipe": asdict(self.recipe),
            "identity": self.stage.identity,
            "seconds": self.seconds,
            "scores": dict(self.scores),
            "network": self.stage.network.state_dict(),
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
            "best": self._best,
        }
        if self._retired is not None and kind == _CHECKPOINT:  # what was learnt during the fall is not lost
            write_atomically(self._retired, partial(shutil.copyfile, self._path(_CHECKPOINT)))
            self._retired = None
        write_atomically(self._path(kind), lambda path: torch.save(state, path))

    def _check(self, what: str, number: Tensor) -> None:
        """Refuse an update by what is no number: it would be in every weight, and in the next checkpoint."""
        if not torch.isfinite(number):
            raise FitFailed(
                f"{self.stage.name}: the {what} of update {self.update} is {number.item()}",
                fix="go on from the last checkpoint with a smaller rate",
            )

    def _loss(self, part: int) -> Tensor:
        recipe, processes = self.stage.recipe, self.processes
        number = (self.update * recipe.accumulate + part) * processes.count + processes.rank
        kind = self._parameters[0].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bf16"):
            return self.stage.loss(number)

    def _remember(self, score: float) -> None:
        if self._best is None or score > self._best["score"]:
            self._best = {"score": score, "misses": 0, "average": [one.clone() for one in self._average]}
        else:
            self._best = {**self._best, "misses": self._best["misses"] + 1}

    def _resume(self) -> None:
        planned, state = self.stage.recipe.updates, self._load(_CHECKPOINT)
        if state is not None and self._has_fallen(state) and state["planned"] != planned:
            self._retired = self._path(f"{_CHECKPOINT}-of-{state['planned']}")
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
        self._average = [one.to(own) for one, own in zip(state["average"], self._parameters, strict=True)]
        self.update, self.fell = state["update"], self._has_fallen(state)
        self.seconds, self.scores = state.get("seconds", 0.0), state.get("scores", {})
        self._best = state.get("best") if self.stage.recipe.patience else None
        if self.is_done and "recipe" in state:
            self.recipe = StageRecipe(**state["recipe"])

    def _has_fallen(self, state: dict[str, Any]) -> bool:
        planned: int = state["planned"]
        fell: bool = state["update"] > fall_begins(replace(self.stage.recipe, updates=planned))
        return fell

    def _load(self, kind: str) -> dict[str, Any] | None:
        path = self._path(kind)
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self._parameters[0].device)
        _check(path, state, self.stage.identity)
        return state

    def _fill(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)

    def _path(self, kind: str) -> Path:
        return _path(self.folder, self.stage.name, kind)


def check_identity(folder: Path, name: str, identity: str) -> None:
    """Refuse a stage whose checkpoint in `folder` is of another identity; nothing where there is none.

    Raises:
        FitFailed: it was learnt from something else.
    """
    path = _path(folder, name, _CHECKPOINT)
    if path.exists():
        _check(path, torch.load(path, weights_only=True, mmap=True), identity)


def _check(path: Path, state: Mapping[str, Any], identity: str) -> None:
    if state.get("identity", "") != identity:
        raise FitFailed(
            f"{path} was learnt from something else",
            fix="go on with the settings of that time, or learn in another directory",
        )


def _path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}.pt"
