"""The code that the reports print runs without Stillhouse, and answers as `stillhouse.open_network` does."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, Probe, write_probes
from stillhouse.accelerate.calibration.inputs import plausible_inputs
from stillhouse.accelerate.records.candidate import NETWORK, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.selection.apply import apply_choice
from stillhouse.accelerate.views.use_it import use_it
from stillhouse.pipelines.manifest import TRIALS
from stillhouse.pipelines.network import open_network
from tests.accelerate.networks import NETWORKS
from tests.accelerate.trials import make_report, make_trial
from tests.accelerate.views.sweeps import pipeline_report

RUN = """
import sys, numpy
feeds = dict(numpy.load("feeds.npz"))
exec(open("use_it.py").read())
assert "stillhouse" not in sys.modules
numpy.savez("outputs.npz", **outputs)
"""
CANDIDATES = (
    Candidate(NETWORK, "onnxruntime"),
    Candidate(NETWORK, "onnxruntime", options={"shapes": "static", "threads": "1", "spinning": "1"}),
    Candidate(NETWORK, "openvino", options={"shapes": "static"}),
    Candidate(NETWORK, "openvino", options={"streams": "2"}),
)


def accelerated(directory: Path, candidate: Candidate, rows: int = 2) -> tuple[Report, dict[str, Any]]:
    """Write a directory as a sweep of a small network leaves it, with a chosen candidate; return report and inputs."""
    NETWORKS["detector"](directory / "model.onnx")
    (feeds,) = plausible_inputs(directory / "model.onnx", {"images": (rows, 3, 64, 64)}, 1, seed=3).sets
    folder = directory / TRIALS / NETWORK
    folder.mkdir(parents=True)
    write_probes(folder / PROBES_FILE, [Probe("plausible 0", feeds)])
    trial = make_trial("", 2.0, candidate=candidate, graph="model.onnx")
    report = make_report(trial, chosen={NETWORK: candidate.key}, threads=1)
    apply_choice(directory, report)
    return report, dict(feeds)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_the_code_answers_as_the_directory_does(tmp_path: Path, candidate: Candidate) -> None:
    report, feeds = accelerated(tmp_path, candidate)
    (entry,) = use_it(report, tmp_path)
    assert entry.title == f"Load the network with plain {candidate.backend}, without Stillhouse"
    assert "images [2, 3, 64, 64]" in entry.code.splitlines()[0]
    np.savez(tmp_path / "feeds.npz", **feeds)
    (tmp_path / "use_it.py").write_text(entry.code)
    subprocess.run([sys.executable, "-I", "-c", RUN], cwd=tmp_path, check=True, timeout=120)
    expected = open_network(tmp_path)(feeds)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs.files == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(outputs[name], array)


def test_where_the_original_stays_its_graph_is_loaded(tmp_path: Path) -> None:
    report, _ = accelerated(tmp_path, CANDIDATES[0])
    kept = replace(report, chosen={}, baselines={NETWORK: CANDIDATES[0].key})
    assert use_it(kept, tmp_path) == use_it(report, tmp_path)
    assert "onnxruntime.InferenceSession('model.onnx'" in use_it(kept, tmp_path)[0].code
    assert use_it(replace(kept, baselines={}), tmp_path) == ()


def test_a_backend_that_needs_stillhouse_is_loaded_with_it(tmp_path: Path) -> None:
    report, _ = accelerated(tmp_path, CANDIDATES[0])
    torch = Trial(Candidate(NETWORK, "torch"), "accepted", graph="model.onnx")
    (entry,) = use_it(replace(report, trials=(torch,), chosen={NETWORK: torch.candidate.key}), tmp_path)
    assert entry.code.splitlines()[-1] == 'outputs = stillhouse.open_network(".")(feeds)'


def test_of_a_pipeline_the_first_code_generates_a_picture(tmp_path: Path) -> None:
    NETWORKS["detector"](tmp_path / "unet.onnx")
    sweep = pipeline_report()
    trials = tuple(
        replace(trial, graph="unet.onnx", candidate=replace(trial.candidate, options={"streams": "2"}))
        if trial.candidate.key == sweep.chosen["denoiser"]
        else trial
        for trial in sweep.trials
    )
    chosen = next(trial for trial in trials if trial.graph)
    report = replace(sweep, trials=trials, chosen={**sweep.chosen, "denoiser": chosen.candidate.key})
    picture, denoiser = use_it(report, tmp_path)
    assert picture.code == "stillhouse generate --model . 'a small red circle left of a big blue square'"
    assert "plain openvino" in denoiser.title and "core.read_model('unet.onnx')" in denoiser.code
    assert "'INFERENCE_PRECISION_HINT': 'bf16'" in denoiser.code and "'NUM_STREAMS': 2" in denoiser.code


def test_the_settings_that_were_measured_are_in_the_code(tmp_path: Path) -> None:
    options = {"shapes": "static", "dynamic_quantization": "1"}
    report, _ = accelerated(tmp_path, Candidate(NETWORK, "openvino", options=options))
    assert "'DYNAMIC_QUANTIZATION_GROUP_SIZE': 32" in use_it(report, tmp_path)[0].code
    assert "'DYNAMIC_QUANTIZATION_GROUP_SIZE': 0" in use_it(_chosen(report, {"shapes": "static"}), tmp_path)[0].code


def test_what_plain_openvino_lacks_is_said(tmp_path: Path) -> None:
    report, _ = accelerated(tmp_path, CANDIDATES[2])
    notes = {
        "attention": "# slower than measured: attention in int8 is a part of Stillhouse",
        "layers": "# slower than measured: Stillhouse rewrites layers when it opens a graph",
    }
    settings = {"attention": "int8", "layers": "rewritten"}
    for name, note in notes.items():
        assert note not in use_it(report, tmp_path)[0].code
        chosen = _chosen(report, {"shapes": "static", name: settings[name]})
        assert note in use_it(chosen, tmp_path)[0].code


def _chosen(report: Report, options: dict[str, str]) -> Report:
    candidate = Candidate(NETWORK, "openvino", options=options)
    trial = make_trial("", 2.0, candidate=candidate, graph="model.onnx")
    return replace(report, trials=(trial,), chosen={NETWORK: candidate.key})
