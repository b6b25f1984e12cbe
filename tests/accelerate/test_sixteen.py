"""The sixteen faults of Auto-Acceleration, by number, checked on one sweep with its users' config."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from openpyxl import load_workbook

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, Probe, read_probes
from stillhouse.accelerate.evaluation.candidate_messages import Build
from stillhouse.accelerate.evaluation.candidate_process import CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE
from stillhouse.accelerate.evaluation.task import TASK_FILE, read_task
from stillhouse.accelerate.records.candidate import NETWORK
from stillhouse.accelerate.records.report import Report, read_report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.registry import open_runner
from stillhouse.cli import main
from stillhouse.measure.fidelity import compare_tensors
from stillhouse.pipelines.manifest import TRIALS
from stillhouse.pipelines.network import open_network
from tests.accelerate.networks import EXTERNAL_BYTES, FLOAT, INT64, GraphBuilder, ValueInfo

FAULTY = Path(__file__).parent / "faulty"
RUNTIMES = ("onnxruntime", "openvino")
ENGINES = (*RUNTIMES, "nan", "ones", "crash", "cold")
BATCH, CHANNELS, SIDE, WIDTH, INSIDE, FEATURES = 2, 4, 16, 16, 3072, 64
STACKED = 4096
OPSET, ITERATIONS, MIN_SQNR, MAX_MAE = 20, 3, 25.0, 0.2
COLD_CALLS, COLD_SECONDS = 3, 1.0
INLINE = 1 << 20
"""Bytes far above the size of these graphs' nodes and far below their weights."""

CONFIG = f"""
device: cpu
input:
  condition:
    min_shape: [1, {CHANNELS}, {SIDE}, {SIDE}]
    max_shape: [4, {CHANNELS}, {SIDE}, {SIDE}]
    use_shape: [{BATCH}, {CHANNELS}, {SIDE}, {SIDE}]
  timestep:
    min_shape: [1]
    max_shape: [4]
    use_shape: [{BATCH}]
  sample:
    min_shape: [1, {CHANNELS}, {SIDE}, {SIDE}]
    max_shape: [4, {CHANNELS}, {SIDE}, {SIDE}]
    use_shape: [{BATCH}, {CHANNELS}, {SIDE}, {SIDE}]
output:
  features:
    use_shape: [{BATCH}, {FEATURES}]
  noise:
    use_shape: [{BATCH}, {CHANNELS}, {SIDE}, {SIDE}]
precision: [fp32, fp16, int8-weights]
tolerance: {{min_sqnr: {MIN_SQNR}, max_mae: {MAX_MAE}}}
iterations: {ITERATIONS}
"""

COLD = f"""
from time import perf_counter

from faulty_backend import make_backend

calls = 0


def _slow_at_first(feeds, results):
    global calls
    calls += 1
    until = perf_counter() + {COLD_SECONDS} * (calls <= {COLD_CALLS})
    while perf_counter() < until:
        pass
    return results


cold = make_backend("cold", _slow_at_first)
"""
"""A correct backend that is slow at first, like a backend that compiles kernels on demand."""

DRIVEN = """
from pathlib import Path

Path(__file__).with_suffix(".imported").touch()
raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
"""
"""A module that cannot be imported without a driver, and that records the attempt."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Swept:
    """A user's folders and the sweep's results: the report, and both sheets by task."""

    root: Path
    report: Report
    lines: Mapping[str, Line]
    lost: Mapping[str, Line]

    @property
    def model(self) -> Path:
        return self.root / "input" / "model" / "openvino.onnx"

    @property
    def out(self) -> Path:
        return self.root / "output"

    @property
    def accepted(self) -> list[Trial]:
        return [trial for trial in self.report.trials if trial.status == "accepted"]

    @property
    def baseline(self) -> Trial:
        return self.report.trial(NETWORK, self.report.baselines[NETWORK])

    @property
    def probes(self) -> list[Probe]:
        return read_probes(self.out / TRIALS / NETWORK / PROBES_FILE)

    def only(self, backend: str, recipe: str = "f32") -> Trial:
        """Return the only CPU trial of a backend and recipe."""
        (trial,) = (
            trial
            for trial in self.report.trials
            if (trial.candidate.backend, trial.candidate.recipe) == (backend, recipe)
            and not trial.candidate.is_on_gpu
            and "dynamic_quantization" not in trial.candidate.options
        )
        return trial

    def line(self, trial: Trial) -> Line:
        """Return the trial's row of the first sheet."""
        (line,) = (line for line in self.lines.values() if line["candidate"] == trial.candidate.name)
        return line


class Halves(GraphBuilder):
    """A builder that stores weights in float16, each followed by a Cast, like models stored in half precision."""

    def constant(self, value: NDArray[Any] | Sequence[Any]) -> str:
        array = np.asarray(value)
        if array.dtype != np.float32:
            return super().constant(array)
        return self.add_node("Cast", super().constant(array.astype(np.float16)), to=FLOAT)


def two_headed(path: Path, seed: int = 0) -> Path:
    """A network with everything that Auto-Acceleration fails on; each weight is in a file of its own.

    sample [batch, CHANNELS, height, width], timestep int64 [batch], condition like sample, to noise like sample and
    features [batch, FEATURES].
    """
    net = Halves(seed)
    x = net.add_node("Gelu", net.convolution("sample", CHANNELS, WIDTH))
    gate = net.add_node("Sigmoid", net.convolution("condition", CHANNELS, WIDTH))
    angles = net.add_node(
        "Mul",
        net.add_node("Unsqueeze", net.add_node("Cast", "timestep", to=FLOAT), net.constant(np.array([1]))),
        net.constant((1000.0 ** -(np.arange(WIDTH // 2) / (WIDTH // 2))).astype(np.float32)),
    )
    waves = net.add_node("Concat", net.add_node("Sin", angles), net.add_node("Cos", angles), axis=1)
    time = net.add_node("Unsqueeze", net.linear(waves, WIDTH, WIDTH), net.constant(np.array([2, 3])))
    x = net.add_node("Add", net.add_node("Mul", x, gate), time)
    net.add_node("Identity", net.convolution(x, WIDTH, CHANNELS), out="noise")
    pooled = net.add_node("Reshape", net.add_node("GlobalAveragePool", x), net.constant(np.array([0, WIDTH])))
    wide = net.norm(net.linear(pooled, WIDTH, INSIDE), INSIDE)
    net.add_node(
        "MatMul", net.add_node("Gelu", net.linear(wide, INSIDE, INSIDE)), net.weight(INSIDE, FEATURES), out="features"
    )
    picture: Sequence[int | str | None] = ["batch", CHANNELS, "height", "width"]
    inputs: list[ValueInfo] = [
        ("sample", picture, FLOAT),
        ("timestep", ["batch"], INT64),
        ("condition", picture, FLOAT),
    ]
    outputs: list[ValueInfo] = [("noise", picture, FLOAT), ("features", ["batch", FEATURES], FLOAT)]
    model = onnx.load(net.write_model(path, inputs, outputs, opset=OPSET))
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=EXTERNAL_BYTES
    )
    return path


def stack(path: Path, layers: int) -> Path:
    """A chain of norm-preserving matrices in one external file: h0 to h1, h2, ..."""
    matrix = (np.random.default_rng(0).standard_normal((STACKED, STACKED)) / np.sqrt(STACKED)).astype(np.float32)
    tensors = []
    with path.with_suffix(".bin").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=FLOAT, dims=matrix.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": f"{path.stem}.bin", "offset": file.tell(), "length": matrix.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(matrix, layer, axis=1).tobytes())
            tensors.append(tensor)
    nodes = [helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"]) for layer in range(layers)]
    ends = [helper.make_tensor_value_info(name, FLOAT, ["n", STACKED]) for name in ("h0", f"h{layers}")]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def laid_out(root: Path, config: str) -> Path:
    """Create Auto-Acceleration's folders with this config; return the model folder."""
    for folder in ("config", "model"):
        (root / "input" / folder).mkdir(parents=True)
    (root / "input" / "config" / "config.yml").write_text(config)
    return root / "input" / "model"


def accelerated(root: Path, *backends: str) -> int:
    """Run the command and return its exit code. One thread, because the machine may be busy."""
    options = [word for backend in backends for word in ("--engine", backend)]
    config = root / "input" / "config" / "config.yml"
    return main(["accelerate", "--config", str(config), "--threads", "1", *options])


def sheet(path: Path, name: str) -> dict[str, Line]:
    """Return the lines of a sheet by task; tasks are unique."""
    headings, *rows = load_workbook(path)[name].iter_rows(values_only=True)
    lines: list[Line] = [dict(zip(map(str, headings), line, strict=True)) for line in rows]
    lines_by_task = {str(line["task"]): line for line in lines}
    assert len(lines_by_task) == len(lines)
    return lines_by_task


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules and programs that Auto-Acceleration needs; here they fail and record their use."""
    folder = tmp_path_factory.mktemp("traps")
    for module in ("pycuda", "tensorrt"):
        (folder / f"{module}.py").write_text(DRIVEN)
    for program in ("mo", "trtexec"):
        (folder / program).write_text('#!/bin/sh\ntouch "$0.called"\nexit 1\n')
        (folder / program).chmod(0o755)
    (folder / "cold_backend.py").write_text(COLD)
    package = folder / "cold_backend-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: cold-backend\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[stillhouse.backends]\ncold = cold_backend:cold\n")
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, traps: Path) -> Swept:
    """The sweep that all tests examine."""
    root = tmp_path_factory.mktemp("theirs")
    # The model has the name of a backend, and its folder contains an unrelated file.
    two_headed(laid_out(root, CONFIG) / "openvino.onnx")
    (root / "input" / "model" / "readme.txt").write_bytes(bytes(1 << 20))
    with pytest.MonkeyPatch.context() as patch:
        for folder in (FAULTY, traps):
            patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(traps), str(FAULTY), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("PATH", str(traps) + os.pathsep + os.environ.get("PATH", ""))
        assert accelerated(root, *ENGINES) == 0
    summary = root / "output" / "summary.xlsx"
    return Swept(root, read_report(root / "output"), sheet(summary, "Sheet1"), sheet(summary, "rejected"))


@pytest.fixture(scope="module")
def made(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Built graphs by recipe. Graphs that were removed as not choosable are built again."""
    return {
        recipe: _made(swept, swept.only(backend, recipe), tmp_path_factory.mktemp("made"))
        for backend, recipe in (("onnxruntime", "f16"), ("openvino", "int8-weights"))
    }


def _made(swept: Swept, trial: Trial, folder: Path) -> Path:
    assert trial.graph and trial.reproduce, trial.reason
    if (swept.out / trial.graph).is_file():
        return swept.out / trial.graph
    task = read_task((swept.out / trial.reproduce).parent / TASK_FILE)
    with CandidateProcess(replace(task, folder=str(folder), artifact=str(folder / "made"))) as process:
        return Path(process.call(Build(), timeout=60.0).graph)


def answers(graph: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs by name, computed with the reference evaluator of ONNX."""
    model = onnx.load(graph)
    names = [value.name for value in model.graph.output]
    return dict(zip(names, map(np.asarray, ReferenceEvaluator(model).run(None, dict(feeds))), strict=True))


def sqnr(expected: ArrayLike, actual: ArrayLike) -> float:
    return compare_tensors(np.asarray(expected), np.asarray(actual)).sqnr


def files_of(graph: Path) -> set[Path]:
    """The files of a graph: itself and its external data."""
    if graph.suffix == ".xml":
        return {graph, graph.with_suffix(".bin")}
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    places = [entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"]
    return {graph, *(graph.parent / place for place in places)}


def test_fault_01_a_cpu_needs_no_driver_of_a_gpu(swept: Swept, traps: Path) -> None:
    """`device: cpu` required an NVIDIA driver: pycuda and tensorrt were always imported."""
    assert not list(traps.glob("*.imported"))
    assert {trial.candidate.backend for trial in swept.accepted} >= set(RUNTIMES)


def test_fault_02_an_engine_that_is_right_on_ones_only_is_found_out(swept: Swept) -> None:
    """The only probe was ones, for every input."""
    ones = swept.only("ones")
    assert ones.status == "rejected" and ones.worst_fidelity and ones.worst_fidelity.sqnr < MIN_SQNR
    assert len(swept.probes) > 1
    for probe in swept.probes:
        assert all(probe.feeds[name].std() > 0.5 for name in ("sample", "condition"))
    steps = np.concatenate([probe.feeds["timestep"] for probe in swept.probes])
    assert len(set(steps.tolist())) == len(steps)


def test_fault_03_floats_and_whole_numbers_are_fed_together(swept: Swept, made: Mapping[str, Path]) -> None:
    """A float latent with an int64 timestep crashed the run: the converter turned the latent into float16."""
    kinds = {name: array.dtype.name for name, array in swept.probes[0].feeds.items()}
    assert kinds == {"sample": "float32", "timestep": "int64", "condition": "float32"}
    for backend, recipe in (("onnxruntime", "f16"), ("openvino", "int8-weights")):
        assert swept.only(backend, recipe).status == "accepted", swept.only(backend, recipe).reason
    inputs = onnx.load(made["f16"], load_external_data=False).graph.input
    assert {value.name: value.type.tensor_type.elem_type for value in inputs} == {
        "sample": TensorProto.FLOAT,
        "timestep": TensorProto.INT64,
        "condition": TensorProto.FLOAT,
    }


def test_fault_04_halves_lie_outside_of_the_graph_where_no_limit_of_protobuf_concerns_them(
    swept: Swept, made: Mapping[str, Path]
) -> None:
    """A model above 2 GB had no float16 row, because it exceeded protobuf's limit."""
    assert swept.only("onnxruntime", "f16").status == "accepted"
    weights = sum(file.stat().st_size for file in files_of(made["f16"])) - made["f16"].stat().st_size
    assert weights >= 2 * INSIDE * INSIDE
    assert made["f16"].stat().st_size < INLINE
    graph = onnx.load(made["f16"], load_external_data=False).graph
    largest = max(graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    assert largest.data_type == TensorProto.FLOAT16 and not largest.raw_data


def test_fault_04_weights_that_are_laid_out_as_links_become_halves_too(tmp_path: Path) -> None:
    """The same for weights that the workspace hard-links because of their size."""
    graph = prepare_workspace(str(stack(tmp_path / "stack.onnx", layers=2)), tmp_path / "out").components[0].graph
    convert_to_float16(graph, tmp_path / "half.onnx")
    feeds = {"h0": np.random.default_rng(1).standard_normal((BATCH, STACKED)).astype(np.float32)}
    assert sqnr(open_runner(graph)(feeds)["h2"], open_runner(tmp_path / "half.onnx")(feeds)["h2"]) > 50


@pytest.mark.large
def test_fault_04_more_than_two_gigabytes_have_their_row_in_halves(tmp_path: Path) -> None:
    """The same with a sweep of 2.2 GB of external data."""
    config = f"input: {{h0: {{use_shape: [{BATCH}, {STACKED}]}}}}\nprecision: fp16\niterations: 3\n"
    graph = stack(laid_out(tmp_path, config) / "stack.onnx", layers=33)
    source = sum(file.stat().st_size for file in files_of(graph))
    assert source > 2 * 10**9
    assert accelerated(tmp_path, "onnxruntime") == 0
    report = read_report(tmp_path / "output")
    halves = (trial for trial in report.trials if trial.candidate.recipe == "f16")
    (trial,) = (trial for trial in halves if not trial.candidate.is_on_gpu)
    assert trial.status == "accepted", trial.reason
    assert trial.worst_fidelity and trial.worst_fidelity.sqnr > 50
    assert trial.seconds and trial.file_bytes and 0.49 * source < trial.file_bytes < 0.51 * source
    assert "onnx_fp16" in sheet(tmp_path / "output" / "summary.xlsx", "Sheet1")


def test_fault_05_samples_a_second_count_every_row_of_the_batch(swept: Swept) -> None:
    """Samples per second were calls per second, whatever the batch size."""
    for trial in swept.accepted:
        line = swept.line(trial)
        assert line["batch"] == BATCH
        assert line["throughput(samples/second)"] * line["latency p50 (ms)"] / 1000 == pytest.approx(BATCH)


def test_fault_06_no_engine_is_timed_before_it_is_warm(swept: Swept) -> None:
    """Two backends had three warm-up calls, TensorRT none."""
    cold = swept.only("cold")
    assert cold.status == "accepted", cold.reason
    assert cold.first_seconds and cold.first_seconds >= COLD_SECONDS
    # Slow calls take thirty times as long as the other calls of a round, so one round with them would be visible.
    assert cold.seconds and cold.seconds.p95 < 8 * cold.seconds.median
    assert all(trial.first_seconds is not None for trial in swept.accepted)


def test_fault_07_latency_has_percentiles_and_a_speed_up_its_interval(swept: Swept) -> None:
    """Only the mean of fifty consecutive calls was printed, without its spread."""
    others = [trial for trial in swept.accepted if trial != swept.baseline]
    for trial in others:
        line = swept.line(trial)
        assert 0 < line["latency p50 (ms)"] <= line["latency p95 (ms)"]
        assert line["speed-up low"] <= line["speed-up"] <= line["speed-up high"]
        assert trial.seconds and trial.seconds.runs >= ITERATIONS
    # Measurements never agree in all digits, so equal values were not measured.
    assert all(swept.line(trial)["latency p50 (ms)"] < swept.line(trial)["latency p95 (ms)"] for trial in others)
    assert all(swept.line(trial)["speed-up low"] < swept.line(trial)["speed-up high"] for trial in others)


def test_fault_08_no_two_rows_are_the_same_thing_and_each_says_what_it_computed_in(swept: Swept) -> None:
    """Three OpenVINO rows were identical in size and in all output digits."""
    configurations = Counter(
        (trial.candidate.backend, trial.graph, tuple(sorted(trial.candidate.options.items())), trial.executed)
        for trial in swept.accepted
    )
    assert set(configurations.values()) == {1}
    for trial in swept.accepted:
        if trial.candidate.backend in RUNTIMES:
            assert trial.executed == (next(iter(trial.census)) if len(trial.census) == 1 else "mixed")
        assert swept.line(trial)["executed precision"] == trial.executed
        if trial.executed == "f32" and trial.graph == swept.baseline.graph:
            # f16 and bf16 have an SQNR of 40 to 70 dB: a lower SQNR than 90 dB is not float32.
            assert trial.worst_fidelity and trial.worst_fidelity.sqnr > 90
    # A precision that the CPU lacks is excluded instead of measured in another precision.
    cpu_trials = [trial for trial in swept.report.trials if not trial.candidate.is_on_gpu]
    (f16_trial,) = (trial for trial in cpu_trials if trial.candidate.precision == "f16")
    if f16_trial.seconds:
        assert f16_trial.executed != "f32"
    else:
        assert f16_trial.status == "excluded" and "not support f16" in f16_trial.reason


def test_fault_09_outputs_of_different_shapes_are_each_compared_and_nan_is_refused(swept: Swept) -> None:
    """Two outputs of different shapes ended the run, and NaN counted as an ordinary error."""
    pairs = {f"{probe.label}, {output}" for probe in swept.probes for output in ("noise", "features")}
    assert len(pairs) == 2 * len(swept.probes)
    pairs |= {f"8 rows together, {output}" for output in ("noise", "features")}
    assert set(swept.baseline.fidelity) < pairs
    sides = f"x{CHANNELS}x{SIDE}x{SIDE}"
    ends = [
        "; ".join(f"{name} {rows}{sides if name != 'timestep' else ''}" for name in swept.probes[0].feeds)
        + f", {output}"
        for rows in (1, 4)
        for output in ("noise", "features")
    ]
    measured = [trial for trial in swept.accepted if trial != swept.baseline]
    assert all(set(trial.fidelity) == pairs | set(ends) for trial in measured)
    broken = swept.only("nan")
    assert broken.status == "rejected"
    assert "noise are NaN or infinite" in broken.reason
    line = swept.line(broken)
    assert line["mae"] is None
    assert line["non-finite"] == len(swept.probes) * BATCH * CHANNELS * SIDE * SIDE


def test_fault_10_errors_have_a_scale_and_a_bound_and_one_row_is_chosen(swept: Swept) -> None:
    """A mean absolute error was printed without a scale, verdict or choice."""
    measured = [trial for trial in swept.report.trials if trial.fidelity]
    assert {trial.status for trial in measured} == {"accepted", "rejected"}
    for trial in measured:
        line = swept.line(trial)
        assert all(isinstance(line[heading], int | float) for heading in ("SQNR (dB)", "cosine", "non-finite"))
        is_within_bounds = line["SQNR (dB)"] >= MIN_SQNR and all(
            fidelity.mae <= MAX_MAE for fidelity in trial.fidelity.values()
        )
        assert (line["status"] == "accepted") == is_within_bounds
    (chosen,) = (line for line in swept.lines.values() if line["chosen"] == "yes")
    assert chosen["status"] == "accepted"
    fastest = max(trial.ratio.value for trial in swept.accepted if trial.ratio)
    assert chosen["speed-up"] >= 0.97 * fastest
    assert open_network(swept.out).backend == chosen["backend"]


def test_fault_11_the_size_is_that_of_the_row_s_own_graph_and_weights(swept: Swept, made: Mapping[str, Path]) -> None:
    """The size was that of the whole folder for external data, and of the .bin alone for OpenVINO."""
    assert len(files_of(swept.model)) > 5
    graphs = {swept.only("onnxruntime", "f16").graph: made["f16"]}
    graphs |= {swept.only("openvino", "int8-weights").graph: made["int8-weights"], swept.baseline.graph: swept.model}
    for trial in swept.accepted:
        assert trial.file_bytes == sum(file.stat().st_size for file in files_of(graphs[trial.graph]))
        assert swept.line(trial)["file size(MB)"] == pytest.approx(trial.file_bytes / 2**20)
    assert len({trial.file_bytes for trial in swept.accepted}) == len(graphs) == 3


def test_fault_12_what_fails_is_a_row_with_a_reason(swept: Swept) -> None:
    """Exit codes of converters were ignored: failures were missing in the sheet."""
    crash = swept.only("crash")
    assert crash.status == "failed" and "SIGSEGV" in crash.reason
    assert len(swept.lines) == len(swept.report.trials)
    assert {line["backend"] for line in swept.lines.values()} >= set(ENGINES)
    assert swept.lost.keys() == {task for task, line in swept.lines.items() if line["status"] != "accepted"}
    assert all(line["reason"] for line in swept.lost.values())
    (line,) = (line for line in swept.lost.values() if line["candidate"] == crash.candidate.name)
    assert (line["status"], line["reason"]) == ("failed", crash.reason)
    assert (swept.out / line["log"]).is_file()


def test_fault_13_results_of_another_model_are_refused_and_kept(
    swept: Swept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of an earlier model were measured, and the model's name was replaced inside row names."""
    assert {"onnx", "onnx_fp16"} <= swept.lines.keys()
    named = {task for task, line in swept.lines.items() if line["backend"] == "openvino"}
    assert named and all(task.startswith("openvino_") for task in named)

    root = tmp_path / "theirs"
    copytree(swept.root, root)
    two_headed(root / "input" / "model" / "openvino.onnx", seed=1)
    before = dict(_contents(root / "output"))
    assert accelerated(root, *RUNTIMES) == 2
    error = capsys.readouterr().err
    assert "contains measurements of another openvino.onnx, not of" in error and "Traceback" not in error
    assert dict(_contents(root / "output")) == before


def _contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    return ((path.relative_to(folder), path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def test_fault_14_inputs_and_outputs_are_bound_by_name(swept: Swept) -> None:
    """Inputs were passed in the order of the config, and the first outputs were used."""
    graph = onnx.load(swept.model, load_external_data=False).graph
    order = [value.name for value in graph.input]
    assert order != sorted(order, key=CONFIG.index)
    expected = [answers(swept.model, probe.feeds) for probe in swept.probes]
    actual = read_probes(swept.out / TRIALS / NETWORK / swept.baseline.candidate.key / OUTPUTS_FILE)
    for expected_arrays, probe in zip(expected, actual, strict=True):
        assert {name: sqnr(array, probe.feeds[name]) > 90 for name, array in expected_arrays.items()} == dict.fromkeys(
            expected_arrays, True
        )

    feeds = dict(swept.probes[0].feeds)
    swapped = {**feeds, "sample": feeds["condition"], "condition": feeds["sample"]}
    # Both have the same shape, so only the result reveals a swap.
    assert sqnr(expected[0]["noise"], answers(swept.model, swapped)["noise"]) < 10
    shuffled = {name: feeds[name] for name in sorted(feeds, key=CONFIG.index)}
    assert list(shuffled) != order
    for name, array in open_network(swept.out)(shuffled).items():
        assert sqnr(expected[0][name], array) > MIN_SQNR
    for backend in RUNTIMES:
        for name, array in open_runner(swept.model, backend)(shuffled).items():
            assert sqnr(expected[0][name], array) > 90


def test_fault_15_today_s_opsets_run_without_the_converters_of_yesterday(
    swept: Swept, made: Mapping[str, Path], traps: Path
) -> None:
    """Opsets above 16 were not supported, and programs were called that no package contains any more."""
    for graph in (swept.model, made["f16"]):
        (opset,) = (
            entry.version for entry in onnx.load(graph, load_external_data=False).opset_import if not entry.domain
        )
        assert opset == OPSET > 16
    assert {trial.candidate.backend for trial in swept.accepted} >= set(RUNTIMES)
    assert not list(traps.glob("*.called"))


def test_fault_16_weights_in_halves_give_no_nan(swept: Swept, made: Mapping[str, Path]) -> None:
    """TensorRT gave NaN for float16 weights; the advice was to export float32."""
    graph = onnx.load(swept.model, load_external_data=False).graph
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert halves and halves == {node.input[0] for node in graph.node if node.op_type == "Cast"} - {"timestep"}
    assert not [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    for trial in swept.accepted:
        assert not any(fidelity.nonfinite for fidelity in trial.fidelity.values())
    trial = swept.only("onnxruntime", "f16")
    assert trial.status == "accepted" and trial.worst_fidelity and trial.worst_fidelity.sqnr > 40
    for probe in swept.probes:
        expected, actual = answers(swept.model, probe.feeds), open_network(swept.out)(probe.feeds)
        for name, array in expected.items():
            assert np.isfinite(array).all() and np.isfinite(actual[name]).all()
            assert sqnr(array, actual[name]) > MIN_SQNR
