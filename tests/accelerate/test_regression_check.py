"""Regression check of a sweep's result: unchanged, slower, less accurate, or missing."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE
from stillhouse.accelerate.calibration.record_calibration import input_files, record_pipeline_inputs
from stillhouse.accelerate.evaluation.context import ARTIFACTS_FOLDER
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
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.accelerate.networks import detector
from tests.accelerate.trials import make_report, make_trial

WIDE, FAST = Ratio(1.0, 0.0, 1e6), Ratio(1000.0, 900.0, 1100.0)
"""An interval that any machine reproduces, and one that none does."""
STEPS = 2
Swept = tuple[Path, Report]


@pytest.fixture(scope="module")
def original_sweep(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """A sweep of the detector with int8 as its choice, whatever was fastest."""
    folder = tmp_path_factory.mktemp("recheck")
    images = np.random.default_rng(0).standard_normal((6, 1, 3, 64, 64)).astype(np.float32)
    np.savez(folder / "inputs.npz", allow_pickle=False, images=images)
    options = AccelerateOptions(
        backends=("onnxruntime",),
        recipes=("int8-static",),
        inputs=folder / "inputs.npz",
        threads=1,
        timeout=120.0,
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
    )
    report = run_sweep(prepare_workspace(str(detector(folder / "detector.onnx")), folder / "out"), options)
    (int8_trial,) = [trial for trial in report.trials if trial.artifact]
    assert int8_trial.status == "accepted", int8_trial.reason
    return folder / "out", replace(report, chosen={NETWORK: int8_trial.candidate.key})


@pytest.fixture
def swept(original_sweep: Swept, tmp_path: Path) -> Swept:
    """A copy that a test may damage."""
    directory, report = original_sweep
    return shutil.copytree(directory, tmp_path / "out"), report


def few_rounds(patch: pytest.MonkeyPatch) -> None:
    """Timings do not matter here: tests set the intervals."""
    patch.setattr("stillhouse.accelerate.regression_check.TIMING_BUDGET", QUICK)
    patch.setattr("stillhouse.accelerate.regression_check.PIPELINE_ROUNDS", 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rounds(monkeypatch)


def chosen(report: Report, component: str = NETWORK) -> Trial:
    return report.trial(component, report.chosen[component])


def timed(report: Report, ratio: Ratio) -> Report:
    """The report with this ratio for all timed trials."""
    return replace(
        report, trials=tuple(replace(trial, ratio=ratio) if trial.ratio else trial for trial in report.trials)
    )


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def spoil(graph: Path) -> None:
    """Set all int8 weights of a graph to one value."""
    model = onnx.load(graph)
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8]
    assert weights
    for tensor in weights:
        tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 63, np.int8), tensor.name))
    onnx.save_model(model, graph)


def test_what_is_deployed_is_opened_and_not_made_again(swept: Swept) -> None:
    directory, report = swept
    artifacts = directory / TRIALS / NETWORK / ARTIFACTS_FOLDER
    before = times(artifacts)
    (result,) = check_regression(directory, timed(report, WIDE))
    assert (result.component, result.problem) == (NETWORK, "")
    assert (result.measured.status, result.measured.candidate) == ("accepted", chosen(report).candidate)
    assert (result.measured.graph, result.measured.artifact) == (chosen(report).graph, chosen(report).artifact)
    assert result.measured.worst_fidelity and result.measured.worst_fidelity == chosen(report).worst_fidelity
    assert result.measured.ratio and result.measured.ratio.value != 1.0
    assert times(artifacts) == before
    assert list(directory.rglob(ARTIFACTS_FOLDER)) == [artifacts]


def test_a_chosen_baseline_is_as_fast_as_itself(swept: Swept) -> None:
    directory, report = swept
    (result,) = check_regression(directory, replace(report, chosen=report.baselines))
    assert result.problem == "" and result.measured.ratio and result.measured.ratio.value == 1.0
    assert len(list((directory / TRIALS / NETWORK / RECHECK_FOLDER).iterdir())) == 1


def test_what_was_faster_is_found_slower(swept: Swept) -> None:
    directory, report = swept
    (result,) = check_regression(directory, timed(report, FAST))
    ratio = result.measured.ratio
    assert ratio and ratio.high < FAST.low
    assert result.measured.status == "accepted"
    assert result.problem == (
        f"speed-up over the baseline is {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), "
        "was 1000.00 (900.00 to 1100.00)"
    )


def test_spoilt_weights_are_found_worse(swept: Swept) -> None:
    directory, report = swept
    spoil(directory / (chosen(report).graph or ""))
    (result,) = check_regression(directory, timed(report, WIDE))
    assert "below the bound of 20.0 dB" in result.problem
    assert result.measured.status == "rejected"


@pytest.mark.parametrize(("which", "prefix"), [("baseline", "the baseline does not run: "), ("chosen", "")])
def test_a_graph_that_is_none_any_more_is_found(swept: Swept, which: str, prefix: str) -> None:
    directory, report = swept
    damaged = chosen(report) if which == "chosen" else report.trial(NETWORK, report.baselines[NETWORK])
    (directory / (damaged.graph or "")).write_bytes(b"no graph")
    (result,) = check_regression(directory, timed(report, WIDE))
    assert result.measured.status == "failed"
    assert result.measured.candidate == damaged.candidate
    assert result.problem == prefix + result.measured.reason and result.measured.reason


@pytest.mark.parametrize("which", ["probes", "chosen", "baseline"])
def test_what_is_missing_is_named(swept: Swept, which: str) -> None:
    directory, report = swept
    files = {
        "probes": f"{TRIALS}/{NETWORK}/{PROBES_FILE}",
        "chosen": chosen(report).graph,
        "baseline": report.trial(NETWORK, report.baselines[NETWORK]).graph,
    }
    missing = directory / (files[which] or "")
    missing.unlink()
    with pytest.raises(PipelineError, match=f"{missing} is missing; measure again with `stillhouse accelerate`"):
        next(check_regression(directory, report))
    assert not (directory / TRIALS / NETWORK / RECHECK_FOLDER).exists()


def test_where_nothing_was_chosen_there_is_nothing_to_check(swept: Swept) -> None:
    directory, report = swept
    with pytest.raises(PipelineError, match="nothing was chosen"):
        next(check_regression(directory, replace(report, chosen={})))


@pytest.mark.parametrize(
    ("ratio", "code", "verdict"),
    [(WIDE, 0, "as measured before"), (FAST, 1, "was 1000.00 (900.00 to 1100.00)")],
)
def test_the_exit_code_says_whether_all_is_well(
    swept: Swept, capsys: pytest.CaptureFixture[str], ratio: Ratio, code: int, verdict: str
) -> None:
    directory, report = swept
    write_report(directory, timed(report, ratio))
    assert main(["check", str(directory)]) == code
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("network: onnxruntime int8-static: ") and "x (" in line
    assert line.endswith(verdict)


@pytest.mark.parametrize(
    ("lack", "message", "fix"),
    [
        ("probes", f"{PROBES_FILE} is missing", "measure again with `stillhouse accelerate`"),
        ("choice", "nothing was chosen", "run `stillhouse choose` with other bounds"),
    ],
)
def test_what_cannot_be_checked_is_explained(
    swept: Swept, capsys: pytest.CaptureFixture[str], lack: str, message: str, fix: str
) -> None:
    directory, report = swept
    write_report(directory, replace(report, chosen={}) if lack == "choice" else report)
    if lack == "probes":
        (directory / TRIALS / NETWORK / PROBES_FILE).unlink()
    assert main(["check", str(directory)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and message in output.err and fix in output.err


def test_a_directory_may_be_named_from_where_one_is(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, report = swept
    write_report(directory, timed(report, WIDE))
    monkeypatch.chdir(directory.parent)
    assert main(["check", directory.name]) == 0


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[RegressionResult]:
    """Results for the Shapes model with few steps, as if a sweep had chosen OpenVINO, a tiled decoder, and its own
    sampling with a far higher speed-up.
    """
    directory = prepare_workspace("shapes", tmp_path_factory.mktemp("pictures") / "out").directory
    manifest = read_manifest(directory)
    write_manifest(directory, replace(manifest, defaults=replace(manifest.defaults, steps=STEPS)))
    shutil.copyfile(directory / MANIFEST, directory / TRIALS / MANIFEST)
    record_pipeline_inputs(
        directory, {name: input_files(directory / TRIALS / name) for name in ("denoiser", DECODER)}, (), None
    )
    candidates = (Candidate("denoiser", "openvino"), Candidate(DECODER, "openvino", options={"tile": "32"}))
    baselines = [Candidate(candidate.component, "onnxruntime") for candidate in candidates]
    trials = [
        replace(
            make_trial("", candidate=candidate, graph=original_components(directory)[candidate.component].graph),
            ratio=WIDE,
        )
        for candidate in (*candidates, *baselines)
    ]
    report = make_report(
        *trials,
        replace(make_trial("", candidate=CHOSEN_PIPELINE), ratio=FAST),
        bounds=Bounds(min_sqnr=10.0, min_psnr=20.0),
        baselines={candidate.component: candidate.key for candidate in baselines},
        chosen={candidate.component: candidate.key for candidate in (*candidates, CHOSEN_PIPELINE)},
    )
    with pytest.MonkeyPatch.context() as patch:
        few_rounds(patch)
        return list(check_regression(directory, report))


def test_whole_pictures_are_checked_after_the_networks(findings: list[RegressionResult]) -> None:
    assert [result.component for result in findings] == ["denoiser", DECODER, PIPELINE]
    unet, decoder, whole = findings
    assert (unet.problem, decoder.problem) == ("", "")
    assert whole.measured.candidate == CHOSEN_PIPELINE and whole.measured.status == "accepted"
    assert whole.measured.pictures and whole.measured.pictures.count == 24
    assert whole.measured.ratio and whole.measured.ratio.high < FAST.low
    assert whole.problem.endswith("was 1000.00 (900.00 to 1100.00)")


def test_a_decoder_that_saw_tiles_sees_tiles_again(findings: list[RegressionResult]) -> None:
    unet, decoder, whole = findings
    assert unet.measured.worst_fidelity and unet.measured.worst_fidelity.sqnr > 60.0
    # Networks that see whole pictures err by rounding only, which leaves them far above 50 dB.
    assert decoder.measured.worst_fidelity and decoder.measured.worst_fidelity.sqnr < 40.0
    assert whole.measured.pictures and whole.measured.pictures.psnr < 50.0
