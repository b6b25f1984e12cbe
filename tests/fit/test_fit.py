"""The training loop: bit-exact resumption, longer plans, and errors on losses that are not finite."""

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
    """Fits y = 3x; the batch depends on the number of the update only."""

    name = "line"
    fingerprint = "three"

    def __init__(self, recipe: StageRecipe = RECIPE, interrupt_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.recipe, self.network, self.interrupt_at = recipe, nn.Linear(1, 1), interrupt_at

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
def test_an_interrupted_run_resumes_bit_exactly(tmp_path: Path, stopped: int) -> None:
    whole = LineStage()
    assert fit(whole, tmp_path / "whole", ignore_update).is_done
    first = LineStage(interrupt_at=stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(first, tmp_path / "parts", ignore_update, save_every=0.0)
    second = LineStage()
    assert fit(second, tmp_path / "parts", ignore_update).is_done
    assert weights(second) == weights(whole)


def test_a_deadline_stops_and_saves_a_checkpoint(tmp_path: Path) -> None:
    stage = LineStage()
    assert not fit(stage, tmp_path, ignore_update, deadline=monotonic() - 1).is_done
    assert (tmp_path / "line.checkpoint.pt").exists()


def test_a_longer_plan_resumes_from_before_the_decay(tmp_path: Path) -> None:
    assert fit(LineStage(), tmp_path, ignore_update).is_done
    updates: list[int] = []
    longer = LineStage(replace(RECIPE, updates=80))
    fit(longer, tmp_path, lambda log: updates.append(log.update))
    assert updates[0] == decay_start(RECIPE) + 5 and updates[-1] == 80


def test_a_longer_plan_resumes_after_a_shorter_one(tmp_path: Path) -> None:
    """Interrupt a long plan on its plateau, finish a short plan, and resume the long one."""
    long = replace(RECIPE, updates=80)
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(long, interrupt_at=35), tmp_path, ignore_update, save_every=0.0)
    assert fit(LineStage(), tmp_path, ignore_update).is_done
    updates: list[int] = []
    assert fit(LineStage(long), tmp_path, lambda log: updates.append(log.update)).is_done
    assert updates[0] == 40 and updates[-1] == 80


def test_a_plan_of_fewer_updates_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(interrupt_at=28), tmp_path, ignore_update, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()
    with pytest.raises(FitFailed, match="has done 28 updates, 20 are planned"):
        fit(LineStage(replace(RECIPE, updates=20)), tmp_path, ignore_update)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before


def test_a_plan_that_ends_before_the_decay_is_refused_and_files_stay_unchanged(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    with pytest.raises(FitFailed, match="has done 30 updates, 10 are planned"):
        fit(LineStage(replace(RECIPE, updates=10)), tmp_path, ignore_update)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    assert fit(LineStage(), tmp_path, ignore_update).updates == 40


def test_a_finished_plan_is_loaded_without_updates(tmp_path: Path) -> None:
    first = LineStage()
    fit(first, tmp_path, ignore_update)
    fit(LineStage(replace(RECIPE, updates=80)), tmp_path, ignore_update)
    again, logs = LineStage(), list[UpdateLog]()
    assert fit(again, tmp_path, logs.append).recipe == RECIPE
    assert not logs and weights(again) == weights(first)


def test_a_finished_stage_returns_the_recipe_of_its_training(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    assert fit(LineStage(replace(RECIPE, learning_rate=0.5)), tmp_path, ignore_update).recipe == RECIPE


def test_a_checkpoint_with_another_fingerprint_is_refused_and_stays(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    other = LineStage()
    other.fingerprint = "four"
    with pytest.raises(FitFailed, match=r"line.checkpoint.pt was trained with another teacher"):
        fit(other, tmp_path, ignore_update)
    assert fit(LineStage(), tmp_path, ignore_update).is_done


def test_the_finished_checkpoint_is_archived_when_the_plan_changes(tmp_path: Path) -> None:
    fit(LineStage(), tmp_path, ignore_update)
    fit(LineStage(replace(RECIPE, updates=80)), tmp_path, ignore_update)
    assert torch.load(tmp_path / "line.checkpoint-of-40.pt", weights_only=True)["update"] == 40


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    often = LineStage(replace(RECIPE, eval_every=1))
    seldom = LineStage(replace(RECIPE, eval_every=1000))
    fit(often, tmp_path / "often", ignore_update)
    fit(seldom, tmp_path / "seldom", ignore_update)
    assert weights(often) == weights(seldom)


def test_progress_is_reported_and_logged(tmp_path: Path) -> None:
    logs: list[UpdateLog] = []
    fit(LineStage(), tmp_path, logs.append)
    assert [log.update for log in logs] == list(range(5, 41, 5))
    assert [bool(log.scores) for log in logs] == [log.update % 20 == 0 for log in logs]
    lines = (tmp_path / "line.csv").read_text().splitlines()
    assert lines[0] == "update,loss,scores" and len(lines) == 9 and "slope=" in lines[4]


def test_tensorboard_receives_the_same(tmp_path: Path) -> None:
    logs: list[UpdateLog] = []
    fit(LineStage(), tmp_path, logs.append)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "line"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(log.update, pytest.approx(log.loss)) for log in logs]
    assert [event.step for event in events.Scalars("slope")] == [20, 40]


def test_a_loss_that_is_not_finite_raises_with_the_update_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Broken(LineStage):
        def loss(self, update: int) -> torch.Tensor:
            return super().loss(update) * (float("nan") if update == 7 else 1.0)

    with pytest.raises(FitFailed, match="line: the loss of update 7 is nan"):
        fit(Broken(), tmp_path, ignore_update, save_every=0.0)
    assert torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)["update"] == 7


@pytest.mark.parametrize("broken", [7, RECIPE.updates - 1])
def test_a_gradient_that_is_not_finite_raises_and_a_smaller_rate_resumes(tmp_path: Path, broken: int) -> None:
    """The loss is finite, but it contains sqrt(0), whose gradient is infinite."""

    class Steep(LineStage):
        def loss(self, update: int) -> torch.Tensor:
            zero = (self.network.weight - self.network.weight.detach()).sum()
            return super().loss(update) + (zero.abs().sqrt() if update == broken else 0.0)

    with pytest.raises(FitFailed, match=rf"line: the gradient of update {broken} is (nan|inf); resume from the last"):
        fit(Steep(), tmp_path, ignore_update, save_every=0.0)
    checkpoint = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)
    assert checkpoint["update"] == broken
    assert all(torch.isfinite(weight).all() for weight in checkpoint["network"].values())
    assert fit(LineStage(replace(RECIPE, learning_rate=1e-3)), tmp_path, ignore_update).is_done


def test_a_full_disk_raises_and_keeps_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(interrupt_at=5), tmp_path, ignore_update, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(FitFailed, match="No space left on device; make room"):
        fit(LineStage(), tmp_path, ignore_update, save_every=0.0)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_refused_write_of_torch_raises_and_keeps_the_former_checkpoint(tmp_path: Path) -> None:
    """The file size limit of the process makes the system refuse to write."""

    class Wide(LineStage):
        def __init__(self, interrupt_at: int | None = None) -> None:
            super().__init__(interrupt_at=interrupt_at)
            self.network = nn.Sequential(nn.Linear(1, 4096), nn.Linear(4096, 1))  # type: ignore[assignment]

    with pytest.raises(KeyboardInterrupt):
        fit(Wide(interrupt_at=5), tmp_path, ignore_update, save_every=0.0)
    before = (tmp_path / "line.checkpoint.pt").read_bytes()
    with (
        limit_file_size(1 << 14),
        pytest.raises(FitFailed, match="line.checkpoint.pt cannot be written: .*; make room"),
    ):
        fit(Wide(), tmp_path, ignore_update, save_every=0.0)
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_rate_warms_up_stays_constant_and_decays_to_zero() -> None:
    rates = [learning_rate(RECIPE, update) for update in range(RECIPE.updates)]
    assert rates[:5] == sorted(rates[:5]) and len(set(rates[5 : decay_start(RECIPE) + 1])) == 1
    assert rates[decay_start(RECIPE) :] == sorted(rates[decay_start(RECIPE) :], reverse=True)
    assert rates[-1] == pytest.approx(RECIPE.learning_rate / 10)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """The mean of the losses of equal parts is the loss of the whole batch."""

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
def test_a_stage_without_gain_ends_early_with_its_best_weights(tmp_path: Path, stopped: int | None) -> None:
    """The best of the evaluations every 5 updates is at 10; the second one without a gain is at 20."""
    scores = {5: 0.1, 10: 0.9, 15: 0.5, 20: 0.8, 25: 1.0}
    evaluated: dict[int, list[float]] = {}

    class Scored(LineStage):
        done = 0

        def evaluate(self) -> Mapping[str, float]:
            self.done = next(number for number in scores if number not in evaluated)
            evaluated[self.done] = weights(self)
            return {"score": scores[self.done]}

    recipe = replace(RECIPE, eval_every=5, patience=2)
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            fit(Scored(recipe, interrupt_at=stopped), tmp_path, ignore_update, save_every=0.0)
    stage = Scored(recipe)
    result = fit(stage, tmp_path, ignore_update)
    assert result.is_done and result.updates == 20 and set(evaluated) == {5, 10, 15, 20}
    assert weights(stage) == evaluated[10]
    again = Scored(recipe)
    assert fit(again, tmp_path, ignore_update).updates == 20 and weights(again) == evaluated[10]


def test_mixed_precision_fits_the_line_and_keeps_float32_weights(tmp_path: Path) -> None:
    stage = LineStage(replace(RECIPE, precision="bf16", updates=400, learning_rate=5e-2))
    fit(stage, tmp_path, ignore_update)
    assert stage.network.weight.dtype == torch.float32
    assert stage.network.weight.item() == pytest.approx(3.0, abs=0.05)


def test_parameters_without_gradient_stay_unchanged(tmp_path: Path) -> None:
    stage = LineStage()
    stage.network.bias.requires_grad_(False)
    before = stage.network.bias.item()
    fit(stage, tmp_path, ignore_update)
    assert stage.network.bias.item() == before and stage.network.weight.item() != 0


def test_updates_and_seconds_are_summed_over_all_runs(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(LineStage(interrupt_at=20), tmp_path, ignore_update, save_every=0.0)
    before = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)["seconds"]
    result = fit(LineStage(), tmp_path, ignore_update)
    assert result.updates == 40 and result.seconds > before > 0 and set(result.scores) == {"slope"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("updates", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("decay_fraction", 1.5),
        ("ema_decay", 1.0),
        ("patience", -1),
    ],
)
def test_a_recipe_outside_its_ranges_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=field):
        replace(RECIPE, **{field: value})  # type: ignore[arg-type]
