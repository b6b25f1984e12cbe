"""Engines that fail: whatever one does, it becomes a row with a reason, nothing of it is chosen, and the sweep ends."""

import os
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe, write_probes
from stillhouse.accelerate.evaluation.evaluate import Bench, attempt
from stillhouse.accelerate.evaluation.latency import Effort
from stillhouse.accelerate.options import Asked
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds, Report, read_report
from stillhouse.accelerate.sweep import sweep
from stillhouse.accelerate.workspace import settle
from stillhouse.pipelines.network import open_network
from tests.accelerate.networks import detector

FAULTY = Path(__file__).parent / "faulty"
FAULTS = ("nan", "noise", "ones", "crowd", "hang", "hoard", "crash")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A sweep with every faulty engine installed, for its children too."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FAULTY))
        patch.setenv("PYTHONPATH", str(FAULTY) + os.pathsep + os.environ.get("PYTHONPATH", ""))
        target = settle(str(detector(folder / "detector.onnx")), folder / "faster")
        report = sweep(
            target,
            Asked(
                limit=12.0,
                memory=1 << 30,
                engines=("onnxruntime", *FAULTS),
                recipes=("f32",),
                effort=Effort(least=5, most=5),
            ),
        )
    return folder / "faster", report


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("nan", "rejected", "NaN or infinite"),
        ("noise", "rejected", "below the bound"),
        ("ones", "rejected", "below the bound"),
        ("crowd", "rejected", "at 8 rows together, boxes are NaN or infinite"),
        ("hang", "failed", "took more than 12 s"),
        ("hoard", "failed", "more than the 1.0 GiB allowed"),
        ("crash", "failed", "SIGSEGV"),
    ],
)
def test_a_fault_becomes_a_row_with_its_reason(
    swept: tuple[Path, Report], fault: str, status: str, reason: str
) -> None:
    directory, report = swept
    (trial,) = [one for one in report.trials if one.candidate.backend == fault]
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
    target = settle(str(detector(tmp_path / "detector.onnx")), tmp_path / "faster")
    asked = Asked(engines=("onnxruntime", "shy"), recipes=("f32",), effort=Effort(least=5, most=5))
    (trial,) = (one for one in sweep(target, asked).trials if one.candidate.backend == "shy")
    assert (trial.status, trial.reason) == ("accepted", "")
    assert set(trial.batch) <= {"1", "2"}


def test_an_engine_that_a_batch_is_too_much_for_is_there_again_for_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures, above all: it would else be told to have failed at those."""
    monkeypatch.syspath_prepend(str(FAULTY))
    monkeypatch.setenv("PYTHONPATH", str(FAULTY) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    graph, probes = detector(tmp_path / "detector.onnx"), tmp_path / "probes.npz"
    write_probes(probes, [Probe("ones", {"images": np.ones((2, 3, 64, 64), np.float32)})])
    bench = Bench(tmp_path / "trials", tmp_path, graph, probes, Bounds(), 2, effort=Effort(2, 2), batches=True)
    trial, reference = attempt(Candidate("network", "frail"), bench, None)
    assert trial.status == "accepted" and set(trial.batch) == {"1", "2"}
    assert reference and reference.subject.is_alive
    try:
        assert float(reference.subject.ask("time", 1, limit=60.0)) > 0
    finally:
        reference.subject.kill()
