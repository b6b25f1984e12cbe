"""The learning loop: resumable to the bit, extendable, and never silent about a broken loss."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from stillhouse.errors import FitFailed, InvalidRequest
from stillhouse.fit.fit import fit
from stillhouse.fit.rate import decay_start, learning_rate
from stillhouse.fit.recipe import StageRecipe
from stillhouse.fit.stage import UpdateLog
from tests.disk import limit_file_size

RECIPE = StageRecipe(
    updates=40,
    batch_size=8,
    learning_rate=1e-2,
    warmup_updates=5,
    decay_fraction=0.25,
    weight_decay=1e-2,
    ema_decay=0.9,
    report_every=5,
    eval_every=20,
)


class LineStage:
    """Fit y = 3x; the batch depends on the number of the update only."""

    name = "line"
    fingerprint = "three"

    def __init__(self, recipe: StageRecipe = RECIPE, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.recipe, self.network, self.interrupt_at = recipe, nn.Linear(1, 1), stop_at

    def loss(self, update: int) -> torch.Tensor:
        if update == self.interrupt_at:
            raise KeyboardInterrupt
        x = torch.randn(self.recipe.batch_size, 1, generator=torch.Generator().manual_seed(update))
        loss: torch.Tensor = ((self.network(x) - 3 * x) ** 2).mean()
        return loss

    def evaluate(self) -> Mapping[str, float]:
        return {"slope": self.network.weight.item()}


def weights(stage: LineStage) -> list[float]:
    return [float(value) for parameter in stage.network.parameters() for value in parameter.detach().flatten()]


def ignore_update(update_log: UpdateLog) -> None:
    pass


@pytest.mark.parametrize("stopped", [1, 17, 33])
def test_a_run_that_is_killed_ends_with_the_same_bits(tmp_path: Path, stopped: int) -> None:
    whole = LineStage()
    assert fit(whole, tmp_path / "whole", ignore_update).is_done
    first = LineStage(stop_at=stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(first, tmp_path / "parts", ignore_update, save_every=0.0)
    second = LineStage()
    assert fit(second, tmp_path / "parts", ignore_update).is_done
    assert weights(second) == weights(whole)


def test_a_deadline_stops_and_saves(tmp_path: Path) -> None:
    stage = LineStage()
    assert not fit(stage, tmp_path, ignore_update, deadline=monotonic() - 1).is_done
    assert (tmp_path / "line.checkpoint.pt").exists()


def test_a_longer_plan_goes_on_from_before_the_fall(tmp_path: Path) -> None:
    assert fit(LineStage(), tmp_path, ignore_update).is_done
    seen: list[int] = []
    longer = LineStage(replace(RECIPE, updates=80))
    fit(longer, tmp_path, lambda tick: seen.append(tick.update))
    assert seen[0] == decay_start(RECIPE) + 5 and seen[-1] == 80


def test_a_longer_plan_after_shorter_ones_still_goes_on(tmp_path: Path) -> None:
    """Stopped on the plateau of a long plan, finished under a short one, then made long again."""
    long = replace(RECIPE, updates=80)
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(long, stop_at=35), tmp_path, ignore_update, save_every=0.0)
    assert fit(LineStage(), tmp_path, ignore_update).is_done
    seen: list[int] = []
    assert fit(LineStage(long), tmp_path, lambda tick: seen.append(tick.update)).is_done
    assert seen[0] == 40 and seen[-1] == 80


def test_a_plan_shorter_than_what_is_done_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(stop_at=28), tmp_path, ignore_update, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()
    with pytest.raises(FitFailed, match="has 28 updates behind it, 20 are planned"):
        fit(LineStage(replace(RECIPE, updates=20)), tmp_path, ignore_update)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before


def test_a_plan_that_ends_before_the_fall_begins_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    with pytest.raises(FitFailed, match="has 30 updates behind it, 10 are planned"):
        fit(LineStage(replace(RECIPE, updates=10)), tmp_path, ignore_update)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    assert fit(LineStage(), tmp_path, ignore_update).updates == 40


def test_a_plan_that_was_done_before_is_done_again_at_once(tmp_path: Path) -> None:
    first = LineStage()
    fit(first, tmp_path, ignore_update)
    fit(LineStage(replace(RECIPE, updates=80)), tmp_path, ignore_update)
    again, ticks = LineStage(), list[UpdateLog]()
    assert fit(again, tmp_path, ticks.append).recipe == RECIPE
    assert not ticks and weights(again) == weights(first)


def test_a_finished_stage_tells_by_which_recipe_it_learnt(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    assert fit(LineStage(replace(RECIPE, learning_rate=0.5)), tmp_path, ignore_update).recipe == RECIPE


def test_a_checkpoint_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    other = LineStage()
    other.fingerprint = "four"
    with pytest.raises(FitFailed, match=r"line.checkpoint.pt was learnt from something else"):
        fit(other, tmp_path, ignore_update)
    assert fit(LineStage(), tmp_path, ignore_update).is_done


def test_what_was_learnt_during_the_fall_is_kept_when_the_plan_changes(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    fit(LineStage(replace(RECIPE, updates=80)), tmp_path, ignore_update)
    assert torch.load(tmp_path / "line.checkpoint-of-40.pt", weights_only=True)["update"] == 40


def test_judging_leaves_training_untouched(tmp_path: Path) -> None:
    often = LineStage(replace(RECIPE, eval_every=1))
    seldom = LineStage(replace(RECIPE, eval_every=1000))
    fit(often, tmp_path / "often", ignore_update)
    fit(seldom, tmp_path / "seldom", ignore_update)
    assert weights(often) == weights(seldom)


def test_progress_is_reported_and_logged(tmp_path: Path) -> None:
    ticks: list[UpdateLog] = []
    fit(LineStage(), tmp_path, ticks.append)
    assert [tick.update for tick in ticks] == list(range(5, 41, 5))
    assert [bool(tick.scores) for tick in ticks] == [tick.update % 20 == 0 for tick in ticks]
    lines = (tmp_path / "line.csv").read_text().splitlines()
    assert lines[0] == "update,loss,scores" and len(lines) == 9 and "slope=" in lines[4]


def test_tensorboard_sees_the_same(tmp_path: Path) -> None:
    ticks: list[UpdateLog] = []
    fit(LineStage(), tmp_path, ticks.append)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "line"))
    events.Reload()
    losses = [(one.step, one.value) for one in events.Scalars("loss")]
    assert losses == [(tick.update, pytest.approx(tick.loss)) for tick in ticks]
    assert [one.step for one in events.Scalars("slope")] == [20, 40]


def test_a_loss_that_is_not_finite_stops_names_the_update_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Broken(LineStage):
        def loss(self, update: int) -> torch.Tensor:
            return super().loss(update) * (float("nan") if update == 7 else 1.0)

    with pytest.raises(FitFailed, match="line: the loss of update 7 is nan"):
        fit(Broken(), tmp_path, ignore_update, save_every=0.0)
    assert torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)["update"] == 7


@pytest.mark.parametrize("broken", [7, RECIPE.updates - 1])
def test_a_gradient_that_is_not_finite_stops_too_and_a_smaller_rate_goes_on(tmp_path: Path, broken: int) -> None:
    """The loss is a number all the same: the root of nothing, whose slope is infinite."""

    class Steep(LineStage):
        def loss(self, update: int) -> torch.Tensor:
            nothing = (self.network.weight - self.network.weight.detach()).sum()
            return super().loss(update) + (nothing.abs().sqrt() if update == broken else 0.0)

    with pytest.raises(FitFailed, match=rf"line: the gradient of update {broken} is (nan|inf); go on from the last"):
        fit(Steep(), tmp_path, ignore_update, save_every=0.0)
    kept = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)
    assert kept["update"] == broken and all(torch.isfinite(one).all() for one in kept["network"].values())
    assert fit(LineStage(replace(RECIPE, learning_rate=1e-3)), tmp_path, ignore_update).is_done


def test_a_full_disk_stops_and_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(stop_at=5), tmp_path, ignore_update, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(FitFailed, match="No space left on device; make room"):
        fit(LineStage(), tmp_path, ignore_update, save_every=0.0)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_disk_that_is_really_full_is_told_by_torch_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """Files of this process cannot grow any more: the system itself refuses to write."""

    class Wide(LineStage):
        def __init__(self, stop_at: int | None = None) -> None:
            super().__init__(stop_at=stop_at)
            self.network = nn.Sequential(nn.Linear(1, 4096), nn.Linear(4096, 1))  # type: ignore[assignment]

    with pytest.raises(KeyboardInterrupt):
        fit(Wide(stop_at=5), tmp_path, ignore_update, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()
    with (
        limit_file_size(1 << 14),
        pytest.raises(FitFailed, match="line.checkpoint.pt cannot be written: .*; make room"),
    ):
        fit(Wide(), tmp_path, ignore_update, save_every=0.0)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [learning_rate(RECIPE, update) for update in range(RECIPE.updates)]
    assert rates[:5] == sorted(rates[:5]) and len(set(rates[5 : decay_start(RECIPE) + 1])) == 1
    assert rates[decay_start(RECIPE) :] == sorted(rates[decay_start(RECIPE) :], reverse=True)
    assert rates[-1] == pytest.approx(RECIPE.learning_rate / 10)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """The loss is a mean over examples: so is the mean of the losses of equal parts."""

    class Parts(LineStage):
        def loss(self, number: int) -> torch.Tensor:
            x = torch.arange(16.0).view(16, 1)
            rows = x if self.recipe.accumulation_steps == 1 else x[8 * (number % 2) : 8 * (number % 2) + 8]
            loss: torch.Tensor = ((self.network(rows / 16) - 3 * rows / 16) ** 2).mean()
            return loss

    whole, parts = Parts(), Parts(replace(RECIPE, accumulation_steps=2))
    fit(whole, tmp_path / "whole", ignore_update)
    fit(parts, tmp_path / "parts", ignore_update)
    assert weights(parts) == pytest.approx(weights(whole), abs=1e-6)


@pytest.mark.parametrize("stopped", [None, 13])
def test_a_stage_that_gets_no_better_ends_with_its_best_weights(tmp_path: Path, stopped: int | None) -> None:
    """Judged once every five updates, best at the tenth: the second judgement without a gain is the twentieth."""
    scores = {5: 0.1, 10: 0.9, 15: 0.5, 20: 0.8, 25: 1.0}
    seen: dict[int, list[float]] = {}

    class Judged(LineStage):
        done = 0

        def evaluate(self) -> Mapping[str, float]:
            self.done = next(number for number in scores if number not in seen)
            seen[self.done] = weights(self)
            return {"score": scores[self.done]}

    recipe = replace(RECIPE, eval_every=5, patience=2)
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            fit(Judged(recipe, stop_at=stopped), tmp_path, ignore_update, save_every=0.0)
    stage = Judged(recipe)
    fitted = fit(stage, tmp_path, ignore_update)
    assert fitted.is_done and fitted.updates == 20 and set(seen) == {5, 10, 15, 20}
    assert weights(stage) == seen[10]
    again = Judged(recipe)
    assert fit(again, tmp_path, ignore_update).updates == 20 and weights(again) == seen[10]


def test_mixed_precision_learns_the_same_line_and_keeps_weights_whole(tmp_path: Path) -> None:
    stage = LineStage(replace(RECIPE, precision="bf16", updates=400, learning_rate=5e-2))
    fit(stage, tmp_path, ignore_update)
    assert stage.network.weight.dtype == torch.float32
    assert stage.network.weight.item() == pytest.approx(3.0, abs=0.05)


def test_what_requires_no_gradient_stays_as_it_is(tmp_path: Path) -> None:
    stage = LineStage()
    stage.network.bias.requires_grad_(False)
    before = stage.network.bias.item()
    fit(stage, tmp_path, ignore_update)
    assert stage.network.bias.item() == before and stage.network.weight.item() != 0


def test_what_it_took_is_told_over_all_runs(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(stop_at=20), tmp_path, ignore_update, save_every=0.0)
    before = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)["seconds"]
    fitted = fit(LineStage(), tmp_path, ignore_update)
    assert fitted.updates == 40 and fitted.seconds > before > 0 and set(fitted.scores) == {"slope"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("updates", 0), ("batch", 0), ("rate", 0.0), ("decay", 1.5), ("average", 1.0), ("patience", -1)],
)
def test_a_recipe_that_cannot_be_followed_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=field):
        replace(RECIPE, **{field: value})  # type: ignore[arg-type]
