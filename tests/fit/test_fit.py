"""The learning loop: resumable to the bit, extendable, and never silent about a broken loss."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import torch
from torch import nn

from stillhouse.errors import FitFailed
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import Tick, fall_begins, fit, learning_rate

RECIPE = StageRecipe(
    updates=40,
    batch=8,
    rate=1e-2,
    warm_up=5,
    decay=0.25,
    weight_decay=1e-2,
    average=0.9,
    report_every=5,
    judge_every=20,
)


class LineStage:
    """Fit y = 3x; the batch depends on the number of the update only."""

    name = "line"

    def __init__(self, recipe: StageRecipe = RECIPE, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.recipe, self.network, self.stop_at = recipe, nn.Linear(1, 1), stop_at

    def loss(self, update: int) -> torch.Tensor:
        if update == self.stop_at:
            raise KeyboardInterrupt
        x = torch.randn(self.recipe.batch, 1, generator=torch.Generator().manual_seed(update))
        loss: torch.Tensor = ((self.network(x) - 3 * x) ** 2).mean()
        return loss

    def judge(self) -> Mapping[str, float]:
        return {"slope": self.network.weight.item()}


def weights(stage: LineStage) -> list[float]:
    return [float(value) for parameter in stage.network.parameters() for value in parameter.detach().flatten()]


def ignore(tick: Tick) -> None:
    pass


@pytest.mark.parametrize("stopped", [1, 17, 33])
def test_a_run_that_is_killed_ends_with_the_same_bits(tmp_path: Path, stopped: int) -> None:
    whole = LineStage()
    assert fit(whole, tmp_path / "whole", ignore)
    first = LineStage(stop_at=stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(first, tmp_path / "parts", ignore, save_every=0.0)
    second = LineStage()
    assert fit(second, tmp_path / "parts", ignore)
    assert weights(second) == weights(whole)


def test_a_deadline_stops_and_saves(tmp_path: Path) -> None:
    stage = LineStage()
    assert not fit(stage, tmp_path, ignore, deadline=monotonic() - 1)
    assert (tmp_path / "line.checkpoint.pt").exists()


def test_a_longer_plan_goes_on_from_before_the_fall(tmp_path: Path) -> None:
    assert fit(LineStage(), tmp_path, ignore)
    seen: list[int] = []
    longer = LineStage(replace(RECIPE, updates=80))
    fit(longer, tmp_path, lambda tick: seen.append(tick.update))
    assert seen[0] == fall_begins(RECIPE) + 5 and seen[-1] == 80


def test_a_longer_plan_after_shorter_ones_still_goes_on(tmp_path: Path) -> None:
    """Stopped on the plateau of a long plan, finished under a short one, then made long again."""
    long = replace(RECIPE, updates=80)
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(long, stop_at=35), tmp_path, ignore, save_every=0.0)
    assert fit(LineStage(), tmp_path, ignore)
    seen: list[int] = []
    assert fit(LineStage(long), tmp_path, lambda tick: seen.append(tick.update))
    assert seen[0] == 40 and seen[-1] == 80


def test_a_plan_shorter_than_what_is_done_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(stop_at=28), tmp_path, ignore, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()
    with pytest.raises(FitFailed, match="has 28 updates behind it, 20 are planned"):
        fit(LineStage(replace(RECIPE, updates=20)), tmp_path, ignore)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before


def test_judging_leaves_training_untouched(tmp_path: Path) -> None:
    often = LineStage(replace(RECIPE, judge_every=1))
    seldom = LineStage(replace(RECIPE, judge_every=1000))
    fit(often, tmp_path / "often", ignore)
    fit(seldom, tmp_path / "seldom", ignore)
    assert weights(often) == weights(seldom)


def test_progress_is_reported_and_logged(tmp_path: Path) -> None:
    ticks: list[Tick] = []
    fit(LineStage(), tmp_path, ticks.append)
    assert [tick.update for tick in ticks] == list(range(5, 41, 5))
    assert [bool(tick.scores) for tick in ticks] == [tick.update % 20 == 0 for tick in ticks]
    lines = (tmp_path / "line.csv").read_text().splitlines()
    assert lines[0] == "update,loss,scores" and len(lines) == 9 and "slope=" in lines[4]


def test_a_loss_that_is_not_finite_stops_names_the_update_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Broken(LineStage):
        def loss(self, update: int) -> torch.Tensor:
            return super().loss(update) * (float("nan") if update == 7 else 1.0)

    with pytest.raises(FitFailed, match="update 7"):
        fit(Broken(), tmp_path, ignore, save_every=0.0)
    assert torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)["update"] == 7


def test_a_full_disk_stops_and_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(stop_at=5), tmp_path, ignore, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(FitFailed, match="No space left on device; make room"):
        fit(LineStage(), tmp_path, ignore, save_every=0.0)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [learning_rate(RECIPE, update) for update in range(RECIPE.updates)]
    assert rates[:5] == sorted(rates[:5]) and len(set(rates[5 : fall_begins(RECIPE) + 1])) == 1
    assert rates[fall_begins(RECIPE) :] == sorted(rates[fall_begins(RECIPE) :], reverse=True)
    assert rates[-1] == pytest.approx(RECIPE.rate / 10)
