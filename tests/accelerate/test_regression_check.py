"""What was swept is measured again: all is well, or it is slower, or worse, or not there any more."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE
from stillhouse.accelerate.calibration.record_calibration import record_pipeline_probes
from stillhouse.accelerate.evaluation.evaluate import ARTIFACTS_FOLDER
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.candidate import DECODER, NETWORK, PIPELINE, Candidate
from stillhouse.accelerate.records.report import Bounds, Report, write_report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.regression_check import RECHECK_FOLDER, RegressionResult, check_regression
from stillhouse.accelerate.search.pipeline_processes import CHOSEN_PIPELINE
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.workspace import original_components, prepare_workspace
from stillhouse.cli import main
from stillhouse.errors import PipelineError
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.manifest import MANIFEST, TRIALS, read_manifest, write_manifest
from tests.accelerate.networks import detector
from tests.accelerate.trials import make_report, make_trial

WIDE, FAST = Ratio(1.0, 0.0, 1e6), Ratio(1000.0, 900.0, 1100.0)
"""An interval that any machine keeps, and one that none does."""
QUICK = TimingBudget(min_rounds=3, max_rounds=3)
STEPS = 2
Swept = tuple[Path, Report]


@pytest.fixture(scope="module")
def original_sweep(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep of the detector, of which int8 is chosen, whatever was the fastest."""
    folder = tmp_path_factory.mktemp("recheck")
    asked = AccelerateOptions(
        backends=("onnxruntime",), recipes=("int8-static",), threads=1, timeout=120.0, timing_budget=QUICK
    )
    found = run_sweep(prepare_workspace(str(detector(folder / "detector.onnx")), folder / "out"), asked)
    (made,) = [one for one in found.trials if one.artifact]
    assert made.status == "accepted", made.reason
    return folder / "out", replace(found, chosen={NETWORK: made.candidate.key})


@pytest.fixture
def swept(original_sweep: Swept, tmp_path: Path) -> Swept:
    """A copy, which a test may spoil."""
    directory, found = original_sweep
    return shutil.copytree(directory, tmp_path / "out"), found


def few_rounds(patch: pytest.MonkeyPatch) -> None:
    """No figure matters here: intervals are as wide, or as far away, as a test needs them."""
    patch.setattr("stillhouse.accelerate.regression_check.TimingBudget", lambda **_: QUICK)
    patch.setattr("stillhouse.accelerate.regression_check._ROUNDS", 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rounds(monkeypatch)


def chosen(found: Report, component: str = NETWORK) -> Trial:
    return found.trial(component, found.chosen[component])


def timed(found: Report, ratio: Ratio) -> Report:
    """The report as if its networks had been so fast."""
    return replace(found, trials=tuple(replace(one, ratio=ratio) if one.ratio else one for one in found.trials))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def spoil(graph: Path) -> None:
    """Give all its weights one value."""
    model = onnx.load(graph)
    weights = [one for one in model.graph.initializer if one.data_type == TensorProto.INT8]
    assert weights
    for one in weights:
        one.CopyFrom(numpy_helper.from_array(np.full(tuple(one.dims), 63, np.int8), one.name))
    onnx.save_model(model, graph)


def test_what_is_deployed_is_opened_and_not_made_again(swept: Swept) -> None:
    directory, found = swept
    made = directory / TRIALS / NETWORK / ARTIFACTS_FOLDER
    before = times(made)
    (finding,) = check_regression(directory, timed(found, WIDE))
    assert (finding.component, finding.problem) == (NETWORK, "")
    assert (finding.measured.status, finding.measured.candidate) == ("accepted", chosen(found).candidate)
    assert (finding.measured.graph, finding.measured.artifact) == (chosen(found).graph, chosen(found).artifact)
    assert finding.measured.worst_fidelity and finding.measured.worst_fidelity == chosen(found).worst_fidelity
    assert finding.measured.ratio and finding.measured.ratio.value != 1.0
    assert times(made) == before
    assert list(directory.rglob(ARTIFACTS_FOLDER)) == [made]


def test_a_chosen_baseline_is_as_fast_as_itself(swept: Swept) -> None:
    directory, found = swept
    (finding,) = check_regression(directory, replace(found, chosen=found.baselines))
    assert finding.problem == "" and finding.measured.ratio and finding.measured.ratio.value == 1.0
    assert len(list((directory / TRIALS / NETWORK / RECHECK_FOLDER).iterdir())) == 1


def test_what_was_faster_is_found_slower(swept: Swept) -> None:
    directory, found = swept
    (finding,) = check_regression(directory, timed(found, FAST))
    assert finding.measured.ratio and finding.measured.ratio.high < FAST.low
    assert finding.measured.status == "accepted"
    assert finding.problem == (
        f"it is {finding.measured.ratio.value:.2f} ({finding.measured.ratio.low:.2f} to {finding.measured.ratio.high:.2f}) "
        "times as fast as the baseline, and was 1000.00 (900.00 to 1100.00)"
    )


def test_spoilt_weights_are_found_worse(swept: Swept) -> None:
    directory, found = swept
    spoil(directory / (chosen(found).graph or ""))
    (finding,) = check_regression(directory, timed(found, WIDE))
    assert "below the bound of 20.0 dB" in finding.problem
    assert finding.measured.status == "rejected"


@pytest.mark.parametrize(("which", "told"), [("baseline", "the baseline does not run: "), ("chosen", "")])
def test_a_graph_that_is_none_any_more_is_found(swept: Swept, which: str, told: str) -> None:
    directory, found = swept
    spoilt = chosen(found) if which == "chosen" else found.trial(NETWORK, found.baselines[NETWORK])
    (directory / (spoilt.graph or "")).write_bytes(b"no graph")
    (finding,) = check_regression(directory, timed(found, WIDE))
    assert finding.measured.status == "failed"
    assert finding.measured.candidate == spoilt.candidate
    assert finding.problem == told + finding.measured.reason and finding.measured.reason


@pytest.mark.parametrize("which", ["probes", "chosen", "baseline"])
def test_what_is_missing_is_named(swept: Swept, which: str) -> None:
    directory, found = swept
    files = {
        "probes": f"{TRIALS}/{NETWORK}/{PROBES_FILE}",
        "chosen": chosen(found).graph,
        "baseline": found.trial(NETWORK, found.baselines[NETWORK]).graph,
    }
    missing = directory / (files[which] or "")
    missing.unlink()
    with pytest.raises(PipelineError, match=f"{missing} is missing; run the sweep again"):
        next(check_regression(directory, found))
    assert not (directory / TRIALS / NETWORK / RECHECK_FOLDER).exists()


def test_where_nothing_was_chosen_there_is_nothing_to_check(swept: Swept) -> None:
    directory, found = swept
    with pytest.raises(PipelineError, match="nothing was chosen"):
        next(check_regression(directory, replace(found, chosen={})))


@pytest.mark.parametrize(
    ("ratio", "code", "verdict"),
    [(WIDE, 0, "as measured before"), (FAST, 1, "and was 1000.00 (900.00 to 1100.00)")],
)
def test_the_exit_code_says_whether_all_is_well(
    swept: Swept, capsys: pytest.CaptureFixture[str], ratio: Ratio, code: int, verdict: str
) -> None:
    directory, found = swept
    write_report(directory, timed(found, ratio))
    assert main(["check", str(directory)]) == code
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("network: onnxruntime int8-static: ") and "x (" in line
    assert line.endswith(verdict)


@pytest.mark.parametrize(("lack", "told"), [("probes", f"{PROBES_FILE} is missing"), ("choice", "nothing was chosen")])
def test_what_cannot_be_checked_is_explained(
    swept: Swept, capsys: pytest.CaptureFixture[str], lack: str, told: str
) -> None:
    directory, found = swept
    write_report(directory, replace(found, chosen={}) if lack == "choice" else found)
    if lack == "probes":
        (directory / TRIALS / NETWORK / PROBES_FILE).unlink()
    assert main(["check", str(directory)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and told in said.err and "sweep again" in said.err


def test_a_directory_may_be_named_from_where_one_is(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, found = swept
    write_report(directory, timed(found, WIDE))
    monkeypatch.chdir(directory.parent)
    assert main(["check", directory.name]) == 0


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[RegressionResult]:
    """Of the Shapes model with few steps, as if a sweep had chosen OpenVINO, a decoder that sees tiles, and its own
    way to walk, which was far faster once."""
    directory = prepare_workspace("shapes", tmp_path_factory.mktemp("pictures") / "out").directory
    manifest = read_manifest(directory)
    write_manifest(directory, replace(manifest, defaults=replace(manifest.defaults, steps=STEPS)))
    shutil.copyfile(directory / MANIFEST, directory / TRIALS / MANIFEST)
    record_pipeline_probes(
        directory, {name: directory / TRIALS / name / PROBES_FILE for name in ("unet", DECODER)}, (), None
    )
    networks = (Candidate("unet", "openvino"), Candidate(DECODER, "openvino", options={"tile": "32"}))
    baselines = [Candidate(one.component, "onnxruntime") for one in networks]
    tried = [
        replace(make_trial("", candidate=one, graph=original_components(directory)[one.component].graph), ratio=WIDE)
        for one in (*networks, *baselines)
    ]
    found = make_report(
        *tried,
        replace(make_trial("", candidate=CHOSEN_PIPELINE), ratio=FAST),
        bounds=Bounds(min_sqnr=10.0, min_psnr=20.0),
        baselines={one.component: one.key for one in baselines},
        chosen={one.component: one.key for one in (*networks, CHOSEN_PIPELINE)},
    )
    with pytest.MonkeyPatch.context() as patch:
        few_rounds(patch)
        return list(check_regression(directory, found))


def test_whole_pictures_are_checked_after_the_networks(findings: list[RegressionResult]) -> None:
    assert [one.component for one in findings] == ["unet", DECODER, PIPELINE]
    unet, decoder, whole = findings
    assert (unet.problem, decoder.problem) == ("", "")
    assert whole.measured.candidate == CHOSEN_PIPELINE and whole.measured.status == "accepted"
    assert whole.measured.pictures and whole.measured.pictures.count == 24
    assert whole.measured.ratio and whole.measured.ratio.high < FAST.low
    assert whole.problem.endswith("and was 1000.00 (900.00 to 1100.00)")


def test_a_decoder_that_saw_tiles_sees_tiles_again(findings: list[RegressionResult]) -> None:
    unet, decoder, whole = findings
    assert unet.measured.worst_fidelity and unet.measured.worst_fidelity.sqnr > 60.0
    # Networks that see whole pictures err by rounding only, which leaves them far above 50 dB.
    assert decoder.measured.worst_fidelity and decoder.measured.worst_fidelity.sqnr < 40.0
    assert whole.measured.pictures and whole.measured.pictures.psnr < 50.0
