"""Sweeps of bare ONNX files: a trial for every candidate, a choice, and resuming after an interruption."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stillhouse.accelerate.calibration.calibration_data import Probe, write_probes
from stillhouse.accelerate.calibration.inputs import infer_shapes, plausible_inputs
from stillhouse.accelerate.evaluation.latency import FINAL_BUDGET
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, Candidate
from stillhouse.accelerate.records.report import Bounds, Report, read_report, write_report
from stillhouse.accelerate.search.candidates import BASELINE_BACKEND
from stillhouse.accelerate.sweep import probe_batch_size, run_sweep
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.backends.registry import open_runner
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.network import open_network
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.accelerate.networks import NETWORKS, GraphBuilder, ValueInfo

ENGINES = ("onnxruntime", "openvino")
ALL = AccelerateOptions(backends=ENGINES, timeout=120.0, timing_budget=QUICK, final_timing_budget=QUICK_FINAL)
FEW = replace(ALL, backends=(BASELINE_BACKEND,), recipes=("f32",), threads=1)
BOTH = replace(FEW, backends=ENGINES)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A complete sweep of the detector with all recipes."""
    folder = tmp_path_factory.mktemp("sweep")
    graph = NETWORKS["detector"](folder / "detector.onnx")
    report = run_sweep(prepare_workspace(str(graph), folder / "out"), ALL)
    return folder, report


def test_every_candidate_has_a_row_and_every_row_that_is_not_accepted_a_reason(swept: tuple[Path, Report]) -> None:
    _, report = swept
    assert len(report.trials) > 12
    assert all(bool(trial.reason) == (trial.status != "accepted") for trial in report.trials)
    assert report.finished and report.chosen


def test_every_accepted_row_has_its_measurements_and_files(swept: tuple[Path, Report]) -> None:
    folder, report = swept
    for trial in report.trials:
        if trial.status == "accepted":
            assert trial.ratio and trial.ratio.low <= trial.ratio.value <= trial.ratio.high
            assert trial.seconds and trial.seconds.runs == QUICK.max_rounds == QUICK_FINAL.max_rounds == 5
            assert trial.executed and trial.census
            assert trial.peak_bytes and trial.file_bytes and trial.open_seconds
            is_baseline = trial.candidate.key == report.baselines["network"]
            # Inputs by outputs; for a candidate also eight rows of all inputs together, and a batch of another size.
            assert len(trial.fidelity) == 4 * 2 + (0 if is_baseline else 2 + 2)
            assert trial.log and (folder / "out" / trial.log).is_file()
            assert trial.reproduce and (folder / "out" / trial.reproduce).is_file()


def test_the_baseline_is_once_as_fast_as_itself_whatever_the_noise(swept: tuple[Path, Report]) -> None:
    _, report = swept
    ratio = report.trial("network", report.baselines["network"]).ratio
    assert ratio and ratio.value == 1.0 and ratio.low <= 1.0 <= ratio.high


def test_the_result_answers_as_the_source_does(swept: tuple[Path, Report]) -> None:
    folder, report = swept
    graph = folder / "detector.onnx"
    (feeds,) = plausible_inputs(graph, infer_shapes(graph), 1, seed=9).sets
    expected = open_runner(graph)(feeds)
    for name, array in open_network(folder / "out")(feeds).items():
        noise = float(np.square(array - expected[name]).sum() / np.square(expected[name]).sum())
        assert noise <= 10 ** (-(report.bounds.min_sqnr or 0) / 10) * 2  # other inputs may err a little more


def test_a_second_run_measures_nothing_again(swept: tuple[Path, Report]) -> None:
    folder, report = swept
    workspace = prepare_workspace(str(folder / "detector.onnx"), folder / "out")
    second_report = run_sweep(workspace, ALL)
    before = {
        trial.candidate.key: trial.seconds for trial in report.trials if trial.candidate.backend != BASELINE_BACKEND
    }
    after = {
        trial.candidate.key: trial.seconds
        for trial in second_report.trials
        if trial.candidate.backend != BASELINE_BACKEND
    }
    unchanged = [key for key in before if before[key] == after[key]]
    assert len(unchanged) >= len(before) - 4  # the finalists are timed side by side once more


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_any_onnx_file_can_be_swept(tmp_path: Path, name: str) -> None:
    report = run_sweep(prepare_workspace(str(NETWORKS[name](tmp_path / "model.onnx")), tmp_path / "out"), BOTH)
    assert report.chosen, [trial.reason for trial in report.trials]
    assert {trial.candidate.backend for trial in report.trials if trial.status == "accepted"} == set(ENGINES)
    assert open_network(tmp_path / "out").inputs


def test_a_bound_that_nothing_keeps_leaves_the_baseline(tmp_path: Path) -> None:
    graph = NETWORKS["detector"](tmp_path / "model.onnx")
    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), replace(FEW, bounds=Bounds(min_sqnr=500.0)))
    assert report.trial("network", report.chosen["network"]).candidate.backend == BASELINE_BACKEND


def test_a_budget_that_is_over_skips_and_says_so(tmp_path: Path) -> None:
    graph = NETWORKS["detector"](tmp_path / "model.onnx")
    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), replace(FEW, budget=0.001))
    skipped = [trial for trial in report.trials if trial.status == "skipped"]
    assert skipped and all("budget" in trial.reason for trial in skipped)
    assert not report.chosen and not report.baselines
    assert "nothing was chosen for network: the time budget ended first" in report.warnings[0]
    more = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), FEW)
    assert not [trial for trial in more.trials if trial.status == "skipped"]


def test_a_mistyped_engine_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(NETWORKS["detector"](tmp_path / "model.onnx")), tmp_path / "out")
    with pytest.raises(InvalidRequest, match="onnxruntime"):
        run_sweep(workspace, replace(FEW, backends=("onnxruntim",)))
    assert prepare_workspace(str(tmp_path / "model.onnx"), tmp_path / "out") == workspace


def test_a_bound_that_even_the_baseline_misses_leaves_rows_that_are_compared_with_it(tmp_path: Path) -> None:
    graph = NETWORKS["detector"](tmp_path / "model.onnx")
    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), replace(FEW, bounds=Bounds(max_memory=1)))
    assert {trial.status for trial in report.trials if trial.ratio} == {"rejected"}
    assert all(trial.fidelity for trial in report.trials if trial.ratio)
    assert not report.chosen and report.baselines
    assert open_network(tmp_path / "out").backend == BASELINE_BACKEND


def test_what_failed_is_tried_again_where_it_may_take_longer(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(NETWORKS["detector"](tmp_path / "model.onnx")), tmp_path / "out")
    report = run_sweep(workspace, FEW)
    failed = replace(report.trials[-1], status="failed", reason="it took more than 120 s", ratio=None)
    write_report(tmp_path / "out", replace(report, trials=(*report.trials[:-1], failed)))
    key = failed.candidate.key
    assert run_sweep(workspace, FEW).trial("network", key).status == "failed"
    assert run_sweep(workspace, replace(FEW, timeout=240.0)).trial("network", key).status == "accepted"


def test_the_model_as_given_stays_the_baseline_whatever_is_selected(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(NETWORKS["detector"](tmp_path / "model.onnx")), tmp_path / "out")
    before = run_sweep(workspace, BOTH)
    after = run_sweep(workspace, replace(BOTH, backends=("openvino",)))
    baseline = after.trial("network", after.baselines["network"])
    assert (baseline.candidate.backend, baseline.candidate.options) == (BASELINE_BACKEND, BASELINE_OPTIONS)
    assert baseline.ratio == before.trial("network", baseline.candidate.key).ratio
    others = [trial for trial in after.trials if trial.ratio and trial != baseline]
    assert {trial.candidate.backend for trial in others} == {"openvino"}
    assert Candidate("network", "openvino") in [
        trial.candidate for trial in others
    ]  # the plain way of the selected one


def test_without_its_baseline_nothing_counts_that_was_compared_with_it(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(NETWORKS["detector"](tmp_path / "model.onnx")), tmp_path / "out")
    before = run_sweep(workspace, BOTH)
    key = before.baselines["network"]
    write_report(tmp_path / "out", replace(before, trials=tuple(t for t in before.trials if t.candidate.key != key)))
    after = run_sweep(workspace, BOTH)
    assert not {trial.seconds for trial in before.trials if trial.seconds} & {trial.seconds for trial in after.trials}


def test_another_question_is_not_answered_with_what_was_measured_before(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(NETWORKS["detector"](tmp_path / "model.onnx")), tmp_path / "out")
    before = run_sweep(workspace, FEW)
    with pytest.warns(UserWarning, match="options, machine or runtime versions have changed"):
        after = run_sweep(workspace, replace(FEW, all_ones=True))
    assert "filled with ones" in after.probes["network"]
    assert not {trial.seconds for trial in before.trials if trial.seconds} & {trial.seconds for trial in after.trials}


@pytest.mark.parametrize(
    ("shapes", "rows"), [({"x": (4, 3, 8, 8), "t": (1,)}, 4), ({"ids": (2, 7)}, 2), ({"x": ()}, 1)]
)
def test_samples_of_a_call_are_counted_along_the_largest_input(
    shapes: dict[str, tuple[int, ...]], rows: int, tmp_path: Path
) -> None:
    probe = Probe("input 0", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    write_probes(tmp_path / "probes.npz", [probe])
    assert probe_batch_size(tmp_path / "probes.npz") == rows


def test_an_interruption_leaves_a_choice(tmp_path: Path) -> None:
    graph = NETWORKS["detector"](tmp_path / "model.onnx")
    activities: list[str] = []

    def on_progress(activity: str, done: float, total: float) -> None:
        activities.append(activity)
        if len(activities) == 4:
            raise KeyboardInterrupt

    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), FEW, on_progress)
    assert not report.finished
    assert report.chosen
    assert open_network(tmp_path / "out").inputs
    assert run_sweep(prepare_workspace(str(graph), tmp_path / "out"), FEW).finished


def test_a_killed_sweep_leaves_a_valid_directory_and_no_children(tmp_path: Path) -> None:
    graph = NETWORKS["detector"](tmp_path / "model.onnx")
    command = [sys.executable, "-m", "stillhouse", "accelerate", str(graph), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "out" / "report.json").is_file() and read_report(tmp_path / "out").baselines:
            break
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut_off = read_report(tmp_path / "out")
    assert cut_off.trials and not cut_off.finished
    assert open_network(tmp_path / "out").inputs
    deadline = time.monotonic() + 60
    while _children_of(tmp_path) and time.monotonic() < deadline:
        os.sched_yield()
    assert not _children_of(tmp_path)
    defaults = replace(FEW, timing_budget=None, final_timing_budget=FINAL_BUDGET, threads=None)
    whole = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), defaults)
    assert whole.finished and whole.chosen


def _children_of(folder: Path) -> list[str]:
    """Return the command lines of running processes that contain the folder."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode()
            state = (process.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, UnicodeDecodeError):
            continue
        if str(folder) in line and "candidate_worker" in line and state != "Z":
            lines.append(line)
    return lines


def test_candidates_are_compared_at_the_ends_of_a_range_of_shapes(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(NETWORKS["encoder"](tmp_path / "model.onnx")), tmp_path / "out")
    names = ("input_ids", "attention_mask")
    shapes = dict.fromkeys(names, (2, 8))
    ranges = dict.fromkeys(names, ((1, 4), (3, 12)))
    report = run_sweep(workspace, replace(BOTH, shapes=shapes, shape_ranges=ranges))
    measured = [trial for trial in report.trials if trial.ratio and trial.candidate.key != report.baselines["network"]]
    labels = {f"{'; '.join(f'{name} {size}' for name in names)}, pooled" for size in ("1x4", "3x12")}
    assert measured and all(labels <= set(trial.fidelity) for trial in measured)
    network = open_network(tmp_path / "out")
    for shape in ((1, 4), (3, 12), (2, 5)):
        assert network(dict.fromkeys(names, np.ones(shape, np.int64)))["pooled"].shape[0] == shape[0]


def test_an_output_that_is_no_tensor_is_left_out_and_named(tmp_path: Path) -> None:
    """A classifier of scikit-learn has a sequence of maps beside its labels."""
    from onnxruntime import datasets

    graph = datasets.get_example("logreg_iris.onnx")
    report = run_sweep(prepare_workspace(graph, tmp_path / "out"), FEW)
    assert report.baselines
    assert any("is left out and not compared: it is a sequence" in warning for warning in report.warnings)


def _with_branches(path: Path) -> Path:
    """A graph with two branches, of which one, at a rate other than 16000, is right only in float32."""
    width, hidden = 64, 256
    net = GraphBuilder(0)
    sides = {}
    for name, offset in (("then", 0.0), ("else", 300.0)):
        first, second = (net.rng.standard_normal(shape).astype(np.float32) for shape in ((width, hidden), (hidden, 8)))
        constants = {"w": first / 8, "b": np.float32(offset), "v": (second - second.mean(0)) / 16}
        nodes = [("MatMul", "x", "w", "a"), ("Add", "a", "b", "s"), ("Relu", "s", "r"), ("MatMul", "r", "v", "y")]
        tensors = {"x": "x"} | {other: f"{name}.{other}" for other in "wbvasry"}
        sides[f"{name}_branch"] = helper.make_graph(
            [helper.make_node(kind, [tensors[i] for i in names[:-1]], [tensors[names[-1]]]) for kind, *names in nodes],
            name,
            [],
            [helper.make_tensor_value_info(tensors["y"], TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array, np.float32), tensors[i]) for i, array in constants.items()],
        )
    net.add_node("If", net.add_node("Equal", "sr", net.constant(np.array(16000))), out="y", **sides)
    inputs: list[ValueInfo] = [("x", ["n", width], TensorProto.FLOAT), ("sr", [], TensorProto.INT64)]
    return net.write_model(path, inputs, [("y", ["n", 8], TensorProto.FLOAT)])


def test_a_candidate_is_verified_in_the_branches_that_its_probes_do_not_take(tmp_path: Path) -> None:
    graph = _with_branches(tmp_path / "model.onnx")
    options = replace(FEW, recipes=("f32", "int8-dynamic"))
    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), options)
    int8 = [trial for trial in report.trials if trial.candidate.recipe == "int8-dynamic" and trial.fidelity]
    assert int8 and {trial.status for trial in int8} == {"rejected"}
    assert all(trial.fidelity["sr 8000"].sqnr < 20 < trial.fidelity["all inputs"].sqnr for trial in int8)
    assert not any("branch" in warning for warning in report.warnings)


def test_a_branch_that_given_inputs_do_not_take_is_named(tmp_path: Path) -> None:
    graph = _with_branches(tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((4, 1, 64)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=x, sr=np.full(4, 16000))
    report = run_sweep(prepare_workspace(str(graph), tmp_path / "out"), replace(FEW, inputs=tmp_path / "inputs.npz"))
    (warning,) = (warning for warning in report.warnings if "branch" in warning)
    assert "the If that writes y (its condition depends on sr)" in warning and "not verified" in warning
