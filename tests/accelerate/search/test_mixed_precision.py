"""Mixed precision keeps only the block that int8 damages; unsolvable cases return with a reason."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.accelerate.calibration.calibration_data import CALIBRATION_FILE, PROBES_FILE, Probe, write_probes
from stillhouse.accelerate.evaluation.baseline import measure_baseline
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.evaluate import evaluate
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.records.candidate import NETWORK, Candidate
from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.mixed_precision import search_mixed_precision
from stillhouse.backends.graph_blocks import list_blocks
from stillhouse.measure.clock import Ratio
from tests.accelerate.networks import FLOAT, INT64, GraphBuilder
from tests.accelerate.trials import make_trial

WIDTH, ROWS, WORDS, LOUD = 32, 8, 50, 5000.0
BOUND = 20.0
INT8 = Candidate(NETWORK, "onnxruntime", "int8-static")


@dataclass
class OpenNetwork:
    """A network with its evaluation context, the baseline's trial and its open run."""

    context: EvaluationContext
    baseline: Trial
    baseline_run: BaselineRun

    def search(self, *trials: Trial, left: Callable[[], float] = lambda: 1.0) -> list[Trial]:
        return list(search_mixed_precision([self.baseline, *trials], self.context, self.baseline_run, left))


def uneven(path: Path) -> Path:
    """Four layers. Before the third, one channel is thousands of times larger than the others, and its weights are
    small.
    """
    net = GraphBuilder(7)
    x = "x"
    for _ in range(2):
        x = net.add_node("Relu", net.linear(x, WIDTH, WIDTH, gain=2**0.5))
    loud = np.ones(WIDTH, np.float32)
    loud[0] = LOUD
    weights = net.rng.standard_normal((WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5 / loud[:, None]
    x = net.add_node("Mul", x, net.constant(loud))
    x = net.add_node("Relu", net.add_node("MatMul", x, net.constant(weights.astype(np.float32)), out="uneven"))
    net.add_node("Add", net.add_node("MatMul", x, net.weight(WIDTH, WIDTH)), net.vector(WIDTH), out="y")
    return net.write_model(path, [("x", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])


def plain(path: Path) -> Path:
    """One layer."""
    net = GraphBuilder(8)
    net.add_node("Add", net.add_node("MatMul", "x", net.weight(WIDTH, WIDTH)), net.vector(WIDTH), out="y")
    return net.write_model(path, [("x", ["n", WIDTH], FLOAT)], [("y", ["n", WIDTH], FLOAT)])


def table(path: Path) -> Path:
    """An embedding table that f16 cannot represent and that is not a block, followed by one layer."""
    net = GraphBuilder(9)
    words = net.constant((1e6 * net.rng.standard_normal((WORDS, WIDTH))).astype(np.float32))
    net.add_node("MatMul", net.add_node("Gather", words, "ids"), net.weight(WIDTH, WIDTH), out="y")
    return net.write_model(path, [("ids", ["n"], INT64)], [("y", ["n", WIDTH], FLOAT)])


def open_network(folder: Path, graph: Path, feeds: list[dict[str, NDArray[Any]]], bounds: Bounds) -> OpenNetwork:
    for file in (PROBES_FILE, CALIBRATION_FILE):
        write_probes(folder / file, [Probe(f"input {number}", arrays) for number, arrays in enumerate(feeds)])
    context = EvaluationContext(
        folder=folder / "trials",
        root=folder,
        graph=graph,
        probes=folder / PROBES_FILE,
        calibration=folder / CALIBRATION_FILE,
        bounds=bounds,
        rows=ROWS,
        command_timeout=120.0,
        timing_budget=TimingBudget(min_rounds=2, max_rounds=2),
    )
    baseline, baseline_run = measure_baseline(Candidate(NETWORK, "onnxruntime"), context)
    assert baseline_run, baseline.reason
    return OpenNetwork(context, baseline, baseline_run)


def floats() -> list[dict[str, NDArray[Any]]]:
    normal = np.random.default_rng(0).standard_normal
    return [{"x": normal((ROWS, WIDTH)).astype(np.float32)} for _ in range(4)]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenNetwork]:
    folder = tmp_path_factory.mktemp("bisect")
    network = open_network(folder, uneven(folder / "model.onnx"), floats(), Bounds(min_sqnr=BOUND))
    yield network
    network.baseline_run.process.kill()


@pytest.fixture(scope="module")
def rejected(spoilt: OpenNetwork) -> Trial:
    """The measured int8 trial with a ratio that always makes mixed precision worthwhile."""
    trial = evaluate(INT8, spoilt.context, spoilt.baseline_run)
    assert trial.status == "rejected" and "below the bound" in trial.reason
    return replace(trial, ratio=Ratio(5.0, 4.9, 5.1))


def test_the_part_that_spoils_it_is_kept_and_nothing_else(spoilt: OpenNetwork, rejected: Trial) -> None:
    (rescued,) = spoilt.search(rejected)
    nodes = [name for block in list_blocks(spoilt.context.graph) for name in block.nodes]
    assert rescued.status == "accepted"
    assert rescued.worst_fidelity and rescued.worst_fidelity.sqnr >= BOUND
    assert rescued.candidate == replace(INT8, keep=rescued.candidate.keep)
    assert len(nodes) == 4 and rescued.candidate.keep == (nodes[2],)
    assert rescued.artifact and (spoilt.context.root / rescued.artifact).is_dir()
    assert rescued.ratio and rescued.ratio != rejected.ratio


def test_what_is_kept_is_looked_for_once_for_a_recipe(spoilt: OpenNetwork, rejected: Trial) -> None:
    before = replace(rejected, candidate=replace(INT8, keep=("some node",)))
    assert spoilt.search(rejected, before, left=never) == []


def never() -> float:
    raise AssertionError("the remaining time must not be queried where nothing is searched")


@pytest.mark.parametrize(
    "other",
    [
        {"status": "accepted"},
        {"candidate": Candidate("denoiser", "onnxruntime", "int8-dynamic")},
        {"candidate": Candidate("denoiser", "onnxruntime", "uint8-dynamic")},
        {"candidate": Candidate(NETWORK, "openvino", "f32", "bf16")},
        {"ratio": Ratio(0.5, 0.4, 0.6)},
    ],
    ids=["accepted", "int8-dynamic", "uint8-dynamic", "f32", "slow"],
)
def test_what_is_not_worth_it_or_errs_otherwise_is_left_alone(
    spoilt: OpenNetwork, rejected: Trial, other: dict[str, Any]
) -> None:
    assert spoilt.search(replace(rejected, **other), left=never) == []


def test_what_took_too_much_memory_only_is_left_alone(spoilt: OpenNetwork) -> None:
    large = replace(make_trial("", 5.0, status="rejected", candidate=INT8), peak_bytes=2 << 30)
    context = replace(spoilt.context, bounds=Bounds(min_sqnr=BOUND, max_memory=1 << 30))
    assert list(search_mixed_precision([spoilt.baseline, large], context, spoilt.baseline_run, never)) == []


@pytest.mark.parametrize("looks", [1, 2])
def test_where_the_time_ends_the_rejected_trial_says_so(spoilt: OpenNetwork, rejected: Trial, looks: int) -> None:
    seconds = iter([1.0] * looks + [0.0])
    (same,) = spoilt.search(rejected, left=lambda: next(seconds))
    assert same == replace(rejected, reason=same.reason)
    assert same.reason == f"{rejected.reason}; mixed precision found no solution: the time budget ended first"


def test_without_any_time_nothing_is_said_anew(spoilt: OpenNetwork, rejected: Trial) -> None:
    assert spoilt.search(rejected, left=lambda: 0.0) == []


def test_where_int8_of_nothing_is_left_the_rejected_trial_says_so(tmp_path: Path) -> None:
    network = open_network(tmp_path, plain(tmp_path / "model.onnx"), floats(), Bounds(min_sqnr=500.0))
    too_strict = make_trial("", 5.0, sqnr=40.0, status="rejected", candidate=INT8, reason="below the bound")
    try:
        (same,) = network.search(too_strict)
    finally:
        network.baseline_run.process.kill()
    assert (same.status, same.candidate) == ("rejected", INT8)
    assert same.reason.startswith("below the bound; mixed precision found no solution: ")
    assert "has nothing to quantise" in same.reason


def test_where_nothing_that_can_be_kept_helps_the_rejected_trial_says_so(tmp_path: Path) -> None:
    ids: list[dict[str, NDArray[Any]]] = [{"ids": np.arange(ROWS) + 9 * number} for number in range(4)]
    network = open_network(tmp_path, table(tmp_path / "model.onnx"), ids, Bounds(min_sqnr=BOUND))
    half = Candidate(NETWORK, "onnxruntime", "f16")
    try:
        trial = evaluate(half, network.context, network.baseline_run)
        assert trial.status == "rejected" and "NaN or infinite" in trial.reason
        (same,) = network.search(replace(trial, ratio=Ratio(5.0, 4.9, 5.1)))
    finally:
        network.baseline_run.process.kill()
    assert (same.status, same.candidate) == ("rejected", half)
    assert "no choice among 1 blocks to keep in float32 makes the network accurate enough" in same.reason
