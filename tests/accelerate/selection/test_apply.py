"""What is left of a sweep on disk."""

from dataclasses import replace
from pathlib import Path

from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import BUDGET_ENDED
from stillhouse.accelerate.selection.apply import remove_leftovers
from stillhouse.pipelines.manifest import TRIALS
from tests.accelerate.trials import make_report, make_trial

BASELINE, OTHER = Candidate("unet", "onnxruntime"), Candidate("unet", "openvino")


def left(sweep: Report, directory: Path) -> set[str]:
    """The files that are left, of a baseline and another candidate that drew pictures."""
    for candidate in (BASELINE, OTHER):
        folder = directory / TRIALS / "unet" / candidate.key
        folder.mkdir(parents=True)
        for name in (OUTPUTS_FILE, PICTURES_FILE):
            (folder / name).touch()
    remove_leftovers(directory, sweep)
    told = {BASELINE.key: "baseline", OTHER.key: "other"}
    return {f"{told[path.parent.name]} {path.name}" for path in directory.rglob("*.npz")}


def test_of_a_sweep_that_is_over_only_the_baselines_outputs_are_left(tmp_path: Path) -> None:
    own = make_report(
        make_trial("", candidate=BASELINE), make_trial("", candidate=OTHER), baselines={"unet": BASELINE.key}
    )
    assert left(replace(own, finished=True), tmp_path) == {f"baseline {OUTPUTS_FILE}"}


def test_a_sweep_that_goes_on_finds_what_it_compares_with(tmp_path: Path) -> None:
    rest = make_trial("", candidate=replace(OTHER, precision="bf16"), status="skipped", reason=BUDGET_ENDED)
    own = make_report(
        make_trial("", candidate=BASELINE), make_trial("", candidate=OTHER), rest, baselines={"unet": BASELINE.key}
    )
    wanted = {f"baseline {OUTPUTS_FILE}", f"baseline {PICTURES_FILE}"}
    assert left(replace(own, finished=True), tmp_path / "budget") == wanted
    cut_off = replace(own, trials=own.trials[:2], finished=False)
    assert left(cut_off, tmp_path / "interrupted") == wanted
