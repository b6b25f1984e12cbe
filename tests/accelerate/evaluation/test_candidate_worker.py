"""A candidate is timed in the way it will be used."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stillhouse
from stillhouse.accelerate.calibration.calibration_data import Probe, read_probes, write_probes
from stillhouse.accelerate.evaluation.candidate_messages import RecordTrajectory
from stillhouse.accelerate.evaluation.candidate_worker import LARGE_BATCH_FILE, OUTPUTS_FILE, CandidateWorker
from stillhouse.accelerate.evaluation.sample_images import read_candidate_samples
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.evaluation.trajectory import read_trajectory
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.backends.runner import GraphRunner
from stillhouse.core import ImageRequest
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.runners import open_component

UNET = Path(stillhouse.__file__).parent / "shapes/weights/unet/model.onnx"

pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def task(tmp_path: Path) -> CandidateTask:
    rng = np.random.default_rng(0)
    shapes = {"sample": (2, 4, 16, 16), "encoder_hidden_states": (2, 24, 128)}
    probes = []
    for number in range(2):
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        probes.append(Probe(f"step {number}", {**feeds, "timestep": np.array([5, 900], np.float32)}))
    write_probes(tmp_path / "probes.npz", probes)
    return CandidateTask(
        Candidate("denoiser", "torch"), str(UNET), str(tmp_path), "", str(tmp_path / "probes.npz"), threads=1
    )


@pytest.fixture
def stayed(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Records the device arrays with which graphs are run."""
    calls: list[Mapping[str, Any]] = []
    run_on_device = GraphRunner.run_on_device

    def record(runner: GraphRunner, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        calls.append(feeds)
        return run_on_device(runner, feeds)

    monkeypatch.setattr(GraphRunner, "run_on_device", record)
    return calls


def test_a_u_net_is_timed_on_arrays_that_lie_where_it_runs(
    task: CandidateTask, stayed: list[Mapping[str, Any]]
) -> None:
    """As in a pipeline: no array is copied between host and GPU at each evaluation."""
    worker = CandidateWorker(task)
    worker.open()
    assert worker.time_calls(2) > 0
    assert worker.time_batch(3, 1) > 0
    assert [len(feeds["sample"]) for feeds in stayed] == [2, 2, 2, 3, 3], "each once before it is timed"
    assert all(isinstance(array, torch.Tensor) for feeds in stayed for array in feeds.values())
    assert not torch.equal(stayed[1]["sample"], stayed[2]["sample"]), "one probe after the other"


@pytest.mark.parametrize(("component", "backend"), [("denoiser", "onnxruntime"), ("network", "torch")])
def test_others_are_timed_on_numpy_s(
    component: str, backend: str, task: CandidateTask, stayed: list[Mapping[str, Any]]
) -> None:
    worker = CandidateWorker(replace(task, candidate=Candidate(component, backend)))
    worker.open()
    assert worker.time_calls(1) > 0
    assert not stayed


@pytest.mark.parametrize(
    ("backend", "options", "torch_peak", "expected"),
    [
        ("tensorrt", {"device": "cuda"}, None, 700),
        ("torch", {"device": "cuda:1"}, 900, 900),
        ("torch", {"device": "cuda"}, 300, 700),
        ("onnxruntime", {"provider": "cuda"}, None, 700),
        ("onnxruntime", {}, None, None),
    ],
)
def test_what_is_held_of_a_gpu_is_what_came_to_be_in_use_or_what_torch_held_at_its_highest(
    backend: str,
    options: dict[str, str],
    torch_peak: int | None,
    expected: int | None,
    task: CandidateTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    indices: list[int] = []
    readings = iter([1000, 1700])

    def used(index: int) -> int:
        indices.append(index)
        return next(readings)

    def no_network(*arguments: Any) -> Any:
        raise RuntimeError("the network is of no interest here")

    monkeypatch.setattr("stillhouse.accelerate.evaluation.candidate_worker.used_memory", used)
    monkeypatch.setattr("stillhouse.accelerate.evaluation.candidate_worker.peak_gpu_memory", lambda: torch_peak)
    monkeypatch.setattr("stillhouse.accelerate.evaluation.candidate_worker.open_component", no_network)
    worker = CandidateWorker(replace(task, candidate=Candidate("denoiser", backend, options=options)))
    with pytest.raises(RuntimeError, match="of no interest"):
        worker.open()
    assert worker.gpu_memory() == expected
    assert indices == ([] if expected is None else [int(options.get("device", "cuda:0")[5:] or 0)] * 2)


def test_a_static_decoder_that_sees_tiles_is_opened_for_a_tile(tmp_path: Path) -> None:
    """An engine opened for whole latents would refuse every tile."""
    weights = Path(stillhouse.__file__).parent / "shapes/weights"
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    write_probes(tmp_path / "probes.npz", [Probe("latents", {"latent_sample": latents})])
    outputs = {}
    for tile in ("32", None):
        options = {"shapes": "static", **({"tile": tile} if tile else {})}
        candidate = Candidate("decoder", "onnxruntime", options=options)
        folder = tmp_path / str(tile)
        folder.mkdir()
        graph, probes = str(weights / "vae/decoder.onnx"), str(tmp_path / "probes.npz")
        worker = CandidateWorker(
            CandidateTask(candidate, graph, str(folder), "", probes, threads=1, pipeline=str(weights))
        )
        worker.open()
        worker.run_probes()
        (outputs[tile],) = read_probes(folder / OUTPUTS_FILE)[0].feeds.values()
    assert outputs["32"].shape == outputs[None].shape
    assert np.corrcoef(outputs["32"].ravel(), outputs[None].ravel())[0, 1] > 0.9


def test_a_batch_is_brought_to_the_sizes_that_a_network_is_open_for(
    task: CandidateTask, stayed: list[Mapping[str, Any]]
) -> None:
    """As in a pipeline: an engine has no other sizes."""
    static = Candidate("denoiser", "torch", options={"shapes": "static", "rows": "1,2"})
    answers = {}
    for candidate in (static, task.candidate):
        worker = CandidateWorker(replace(task, candidate=candidate))
        worker.open()
        worker.run_large_batch(5)
        (answers[candidate.name],) = read_probes(worker.folder / LARGE_BATCH_FILE)[0].feeds.values()
    actual, expected = answers.values()
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    worker = CandidateWorker(replace(task, candidate=static))
    assert worker.time_batch(5, 1) > 0
    assert [len(feeds["sample"]) for feeds in stayed] == [2, 2, 1] * 2


@pytest.mark.parametrize(("rows", "opened"), [(2, [2]), (8, [2, 8])])
def test_a_batch_that_a_network_was_not_opened_for_is_timed_on_one_that_is(
    rows: int, opened: list[int], task: CandidateTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pipeline: one opening for each size."""
    sizes: list[int] = []

    def record(folder: Path, component: Component, shapes: Mapping[str, tuple[int, ...]], options: Any) -> Any:
        sizes.append(shapes["sample"][0])
        return open_component(folder, component, shapes, options)

    monkeypatch.setattr("stillhouse.accelerate.evaluation.candidate_worker.open_component", record)
    worker = CandidateWorker(replace(task, candidate=Candidate("denoiser", "openvino", options={"shapes": "static"})))
    worker.open()
    assert worker.time_batch(rows, 1) > 0
    assert sizes == opened


def test_each_picture_of_a_timing_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = Pipeline.start

    def record(pipeline: Pipeline, request: ImageRequest) -> ImageTrajectory:
        started.append(request.prompt)
        return start(pipeline, request)

    monkeypatch.setattr(Pipeline, "start", record)
    candidate = Candidate("pipeline", "onnxruntime", "baseline")
    worker = CandidateWorker(
        CandidateTask(candidate, "", str(tmp_path), "", threads=1, pipeline=str(find_pipeline("shapes-1")))
    )
    assert worker.time_pictures(ImageRequest("a red circle"), 3) > 0
    assert started == ["a red circle"] * 3


def test_pictures_of_a_batch_are_those_that_are_generated_alone(tmp_path: Path) -> None:
    task = CandidateTask(
        Candidate("pipeline", "stillhouse", "sampling"),
        graph="",
        folder=str(tmp_path),
        artifact="",
        threads=1,
        pipeline=str(find_pipeline("shapes")),
    )
    worker = CandidateWorker(task)
    requests = [ImageRequest("a red circle", seed=seed, steps=2) for seed in range(3)]
    assert worker.generate(requests) > 0
    alone = read_candidate_samples(tmp_path)
    worker.generate(requests, batch=2)
    together = read_candidate_samples(tmp_path)
    assert np.array_equal(alone.pictures, together.pictures)
    assert np.allclose(alone.latents, together.latents, atol=1e-4)
    worker.run(RecordTrajectory(requests[0], str(tmp_path / "trajectory.npz")))
    assert np.allclose(read_trajectory(tmp_path / "trajectory.npz").final, alone.latents[0], atol=1e-4)
