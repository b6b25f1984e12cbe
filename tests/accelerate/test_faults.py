"""Faulty backends: every failure becomes a trial with a reason, none is chosen, and the sweep finishes."""

import os
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe, write_probes
from stillhouse.accelerate.evaluation.baseline import measure_baseline
from stillhouse.accelerate.evaluation.candidate_messages import TimeCalls
from stillhouse.accelerate.evaluation.context import EvaluationContext
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds, Report, read_report
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.pipelines.network import open_network
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.accelerate.networks import detector

FAULTY = Path(__file__).parent / "faulty"
FAULTS = ("nan", "noise", "ones", "noise_only", "empty", "mixed_rows", "large_batch_nan", "hang", "memory_hog", "crash")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A sweep with all faulty backends installed, also for its child processes."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FAULTY))
        patch.setenv("PYTHONPATH", str(FAULTY) + os.pathsep + os.environ.get("PYTHONPATH", ""))
        workspace = prepare_workspace(str(detector(folder / "detector.onnx")), folder / "faster")
        report = run_sweep(
            workspace,
            AccelerateOptions(
                timeout=12.0,
                memory_limit=1 << 30,
                backends=("onnxruntime", *FAULTS),
                recipes=("f32",),
                inputs=_write_pictures(folder / "inputs.npz"),
                timing_budget=QUICK,
                final_timing_budget=QUICK_FINAL,
            ),
        )
    return folder / "faster", report


def _write_pictures(path: Path) -> Path:
    """Write six pictures of uneven brightness, each a set of inputs of the detector."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 3, 64))[:, None] * rng.uniform(0, 1, (6, 1, 3, 1, 64))
    np.savez(path, allow_pickle=False, images=waves.astype(np.float32))
    return path


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("nan", "rejected", "NaN or infinite"),
        ("noise", "rejected", "below the bound"),
        ("ones", "rejected", "below the bound"),
        ("noise_only", "rejected", "below the bound"),
        ("empty", "rejected", "output boxes has shape [1, 0, 4], the baseline's has [1, 192, 4]"),
        ("mixed_rows", "rejected", "of a row differs from its answer alone by 100% of the differences between rows"),
        ("large_batch_nan", "rejected", "at 8 rows together, boxes are NaN or infinite"),
        ("hang", "failed", "took more than 12 s"),
        ("memory_hog", "failed", "more than the 1.0 GiB allowed"),
        ("crash", "failed", "SIGSEGV"),
    ],
)
def test_a_fault_becomes_a_row_with_its_reason(
    swept: tuple[Path, Report], fault: str, status: str, reason: str
) -> None:
    directory, report = swept
    (trial,) = [trial for trial in report.trials if trial.candidate.backend == fault]
    assert (trial.status, reason in trial.reason) == (status, True), trial.reason
    assert trial.log and (directory / trial.log).is_file()


def test_the_sweep_ends_well_and_chooses_none_of_them(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    assert report.finished
    assert read_report(directory) == report
    assert report.trial("network", report.chosen["network"]).candidate.backend == "onnxruntime"
    assert open_network(directory).backend == "onnxruntime"


def test_a_batch_that_an_engine_cannot_run_ends_its_curve_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FAULTY))
    monkeypatch.setenv("PYTHONPATH", str(FAULTY) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    workspace = prepare_workspace(str(detector(tmp_path / "detector.onnx")), tmp_path / "faster")
    options = AccelerateOptions(
        backends=("onnxruntime", "large_batch_error"),
        recipes=("f32",),
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
    )
    (trial,) = (
        trial for trial in run_sweep(workspace, options).trials if trial.candidate.backend == "large_batch_error"
    )
    assert (trial.status, trial.reason) == ("accepted", "")
    assert set(trial.batch) <= {"1", "2"}


def test_an_engine_that_a_batch_is_too_much_for_is_there_again_for_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its pictures would be reported as failed."""
    monkeypatch.syspath_prepend(str(FAULTY))
    monkeypatch.setenv("PYTHONPATH", str(FAULTY) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    graph, probes = detector(tmp_path / "detector.onnx"), tmp_path / "probes.npz"
    write_probes(probes, [Probe("ones", {"images": np.ones((2, 3, 64, 64), np.float32)})])
    context = EvaluationContext(
        tmp_path / "trials",
        tmp_path,
        graph,
        probes,
        Bounds(),
        2,
        timing_budget=QUICK,
        measure_batches=True,
    )
    trial, baseline = measure_baseline(Candidate("network", "large_batch_crash"), context)
    assert trial.status == "accepted" and set(trial.batch) == {"1", "2"}
    assert baseline and baseline.process.is_alive
    try:
        assert baseline.process.call(TimeCalls(1), timeout=60.0) > 0
    finally:
        baseline.process.kill()
