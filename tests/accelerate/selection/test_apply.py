"""Files that remain after a sweep."""

from dataclasses import replace
from pathlib import Path

from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import BUDGET_ENDED
from stillhouse.accelerate.selection.apply import remove_leftovers
from stillhouse.pipelines.manifest import TRIALS
from tests.accelerate.trials import make_report, make_trial

BASELINE, OTHER = Candidate("denoiser", "onnxruntime"), Candidate("denoiser", "openvino")


def left(sweep: Report, directory: Path) -> set[str]:
    """Return the remaining files of a baseline and another candidate with pictures."""
    for candidate in (BASELINE, OTHER):
        folder = directory / TRIALS / "denoiser" / candidate.key
        folder.mkdir(parents=True)
        for name in (OUTPUTS_FILE, PICTURES_FILE):
            (folder / name).touch()
    remove_leftovers(directory, sweep)
    names = {BASELINE.key: "baseline", OTHER.key: "other"}
    return {f"{names[path.parent.name]} {path.name}" for path in directory.rglob("*.npz")}


def test_of_a_sweep_that_is_over_only_the_baselines_outputs_are_left(tmp_path: Path) -> None:
    report = make_report(
        make_trial("", candidate=BASELINE), make_trial("", candidate=OTHER), baselines={"denoiser": BASELINE.key}
    )
    assert left(replace(report, finished=True), tmp_path) == {f"baseline {OUTPUTS_FILE}"}


def test_a_sweep_that_goes_on_finds_what_it_compares_with(tmp_path: Path) -> None:
    skipped = make_trial("", candidate=replace(OTHER, precision="bf16"), status="skipped", reason=BUDGET_ENDED)
    report = make_report(
        make_trial("", candidate=BASELINE),
        make_trial("", candidate=OTHER),
        skipped,
        baselines={"denoiser": BASELINE.key},
    )
    expected = {f"baseline {OUTPUTS_FILE}", f"baseline {PICTURES_FILE}"}
    assert left(replace(report, finished=True), tmp_path / "budget") == expected
    cut_off = replace(report, trials=report.trials[:2], finished=False)
    assert left(cut_off, tmp_path / "interrupted") == expected
