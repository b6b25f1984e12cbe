"""One learning stage and the loop that every stage shares: resumable, seeded, logged."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from torch import nn

from stillhouse.errors import FitFailed
from stillhouse.fit.recipe import StageRecipe

_CLIP = 1.0


class Stage(Protocol):
    """What the loop needs of a stage.

    `loss` draws its own batch from the number of the update, so that a resumed run sees what an uninterrupted one
    would have seen.
    """

    @property
    def name(self) -> str:
        """Of its checkpoints, and of what is told of it."""

    @property
    def recipe(self) -> StageRecipe:
        """How long and how fast it learns."""

    @property
    def network(self) -> nn.Module:
        """What learns."""

    def loss(self, update: int) -> torch.Tensor:
        """The loss of a fresh batch, a scalar with gradients."""

    def judge(self) -> Mapping[str, float]:
        """Named scores of the network as it stands."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One report of progress."""

    stage: str
    update: int
    updates: int
    loss: float
    scores: Mapping[str, float]


def fit(
    stage: Stage,
    folder: Path,
    report: Callable[[Tick], None],
    deadline: float | None = None,
    save_every: float = 120.0,
) -> bool:
    """Run a stage to its end, or until `deadline` (seconds of `time.monotonic`); goes on from its checkpoint.

    A run that is killed loses at most the last `save_every` seconds. The stage's network holds the averaged weights
    when it returns. Returns whether the stage is finished.

    Raises:
        FitFailed: the loss is not finite, a checkpoint cannot be written, or fewer updates are planned than lie behind.
            The last checkpoint stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(stage, folder)
    recipe, saved, smooth = stage.recipe, monotonic(), None
    if fall_begins(recipe) <= run.update < recipe.updates and not run.fell:
        run.save("stable")
    for update in range(run.update, recipe.updates):
        if deadline is not None and monotonic() > deadline:
            break
        loss = run.step(update)
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        last = update + 1 == recipe.updates
        judged = last or (update + 1) % recipe.judge_every == 0
        if judged or (update + 1) % recipe.report_every == 0:
            scores = run.judge() if judged else {}
            tick = Tick(stage.name, update + 1, recipe.updates, smooth, scores)
            _log(folder / f"{stage.name}.csv", tick)
            report(tick)
        if update + 1 == fall_begins(recipe):
            run.save("stable")
        if last or monotonic() - saved > save_every:
            run.save()
            saved = monotonic()
    run.save()
    run.adopt_average()
    return run.update == recipe.updates


def learning_rate(recipe: StageRecipe, update: int) -> float:
    """Warm-up, plateau, linear fall to zero.

    >>> recipe = StageRecipe(updates=100, batch=1, rate=1.0, warm_up=10, decay=0.5)
    >>> [round(learning_rate(recipe, update), 2) for update in (0, 9, 30, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """
    warm = min(1.0, (update + 1) / recipe.warm_up)
    fall = min(1.0, (recipe.updates - update) / (recipe.updates - fall_begins(recipe)))
    return recipe.rate * warm * fall


def fall_begins(recipe: StageRecipe) -> int:
    """The update at which the learning rate starts to fall."""
    return round(recipe.updates * (1 - recipe.decay))


class _Run:
    """A stage in the making: its weights, their average, and the optimiser's state."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder, self.update, self.fell = stage, folder, 0, False
        recipe = stage.recipe
        self.optimiser = torch.optim.AdamW(
            stage.network.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
        )
        self.average = [parameter.detach().clone() for parameter in stage.network.parameters()]
        self._resume()

    def step(self, update: int) -> float:
        parameters = list(self.stage.network.parameters())
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.stage.recipe, update)
        loss = self.stage.loss(update)
        if not torch.isfinite(loss):
            raise FitFailed(
                f"{self.stage.name}: the loss of update {update} is {loss.item()}",
                fix="go on from the last checkpoint with a smaller rate",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        self.optimiser.step()
        # Early averages forget quickly, or the start would weigh on them for thousands of updates.
        keep = min(self.stage.recipe.average, (1 + update) / (10 + update))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in parameters], 1 - keep)
        self.update = update + 1
        return loss.item()

    def judge(self) -> Mapping[str, float]:
        raw = [parameter.detach().clone() for parameter in self.stage.network.parameters()]
        self.adopt_average()
        self.stage.network.eval()
        with torch.no_grad():
            scores = self.stage.judge()
        self.stage.network.train()
        self._fill(raw)
        return scores

    def adopt_average(self) -> None:
        self._fill(self.average)

    def save(self, kind: str = "checkpoint") -> None:
        state = {
            "update": self.update,
            "planned": self.stage.recipe.updates,
            "network": self.stage.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        write_atomically(self._path(kind), lambda path: torch.save(state, path))

    def _resume(self) -> None:
        state = self._load("checkpoint")
        if state is not None and self._has_fallen(state) and state["planned"] != self.stage.recipe.updates:
            state = self._load("stable")
            if state is None:
                raise FitFailed(f"{self._path('stable')} is missing: nothing is left from before the fall")
        if state is None:
            return
        if state["update"] > self.stage.recipe.updates:
            done, asked = state["update"], self.stage.recipe.updates
            raise FitFailed(f"{self.stage.name} has {done} updates behind it, {asked} are planned", fix="plan more")
        self.stage.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.update, self.fell = state["average"], state["update"], self._has_fallen(state)

    def _has_fallen(self, state: dict[str, Any]) -> bool:
        planned: int = state["planned"]
        fell: bool = state["update"] > fall_begins(replace(self.stage.recipe, updates=planned))
        return fell

    def _load(self, kind: str) -> dict[str, Any] | None:
        path = self._path(kind)
        return torch.load(path, weights_only=True) if path.exists() else None

    def _fill(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.stage.network.parameters(), values, strict=True):
                parameter.copy_(value)

    def _path(self, kind: str) -> Path:
        return self.folder / f"{self.stage.name}.{kind}.pt"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it, so that it is either whole, or as it was.

    Raises:
        FitFailed: there is no room for it, or no right to write it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
        partial.unlink(missing_ok=True)
        raise FitFailed(f"{path} cannot be written: {error}", fix="make room, and run it again to go on") from error


def _log(path: Path, tick: Tick) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["update", "loss", "scores"])
        scores = " ".join(f"{name}={value:.4f}" for name, value in tick.scores.items())
        writer.writerow([tick.update, f"{tick.loss:.5f}", scores])
