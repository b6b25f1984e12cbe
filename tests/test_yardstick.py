"""What the yardstick tells of two trees, and that it finds things by old names and by new ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.yardstick import names
from benchmarks.yardstick.cases import groups, mask
from benchmarks.yardstick.compare import compare, is_whole
from benchmarks.yardstick.generate import CHECKPOINTS
from benchmarks.yardstick.trees import GroupResult


def drawn(folder: Path, error: str | None = None, **cases: dict[str, Any]) -> GroupResult:
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, case in cases.items():
        arrays[f"{name}:latents"] = np.full((4, 2, 2), case.get("level", 1.0), np.float32)
        arrays[f"{name}:pixels"] = np.full((8, 8, 3), 100 * case.get("level", 1), np.uint8)
    np.savez(folder / "group.npz", **arrays)
    return GroupResult(cases, error, 1.0, folder / "group.npz")


def case(level: float = 1.0, evaluations: tuple[str, ...] = ("b", "c"), **others: Any) -> dict[str, Any]:
    told = {"begun": "a", "evaluations": list(evaluations), "latents": f"{level}", "pixels": f"{level}"}
    return {**told, "level": level, **others}


def test_equal_different_and_missing_cases_are_told_apart(tmp_path: Path) -> None:
    before = drawn(tmp_path / "before", same=case(), other=case(), gone=case(), failed=case())
    now = drawn(tmp_path / "now", same=case(), other=case(1.01, ("b", "x")), failed={"error": "no"}, new=case())
    compared = compare(before, now)
    assert compared.equal == ("same",) and compared.cases == 5
    assert compared.different["other"].startswith("from evaluation 2 of 2; latents by 1.0e-02 of 1.0e+00, 100.0%")
    assert compared.missing == {
        "gone": "current tree: nothing",
        "failed": "current tree: no",
        "new": "baseline: nothing",
    }
    assert is_whole(before) and not is_whole(now)


def test_a_group_that_failed_or_was_not_drawn_is_missing(tmp_path: Path) -> None:
    whole, failed = drawn(tmp_path / "whole", one=case()), drawn(tmp_path / "failed", "no such module", one=case())
    assert compare(whole, failed).missing == {"all of current": "no such module"}
    assert compare(None, whole).missing == {"all of baseline": "the driver ended before it"}


def test_fields_are_found_by_any_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Renamed:
        cache_interval: int = 1
        steps: int = 4

    assert names.replaced(Renamed(), {"refresh": 3, "steps": 5}) == Renamed(3, 5)
    monkeypatch.setattr(names, "PLACES", {"Pipeline": ("stillhouse.none:Pipeline", "stillhouse:Pipeline")})
    assert names.named("Pipeline").__name__ == "Pipeline"
    monkeypatch.setattr(names, "PLACES", {"Pipeline": ("stillhouse.none:Pipeline", "stillhouse:Pipelines")})
    with pytest.raises(ImportError, match="Pipeline is at none of"):
        names.named("Pipeline")


def test_every_case_has_a_name_of_its_own_and_every_group_a_source() -> None:
    every = groups()
    assert len({group.name for group in every}) == len(every)
    for group in every:
        labels = [one.name for one in group.alone]
        assert len(set(labels)) == len(labels), group.name
        assert group.way in names.WAYS
        assert group.source.startswith("shapes") or (CHECKPOINTS / group.source).is_dir()


def test_the_mask_has_levels_on_both_sides_of_the_threshold() -> None:
    assert set(np.unique(mask())) == {127, 128, 255}
