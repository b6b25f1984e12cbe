"""Open pipelines: which process a candidate runs in, and how slow pipelines are timed."""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.evaluation.sample_images import CandidateSamples
from stillhouse.accelerate.evaluation.scored_samples import ScoredSamples, read_scored, write_scored
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.search import pipeline_processes
from stillhouse.accelerate.search.pipeline_processes import (
    BASELINE_PIPELINE,
    CHOSEN_PIPELINE,
    PipelineProcesses,
    process_candidate,
)
from stillhouse.accelerate.search.sampling_variants import variant_candidate
from stillhouse.accelerate.search.students import student_candidate
from stillhouse.accelerate.state import SweepState
from stillhouse.accelerate.workspace import f32_components, original_manifest, prepare_workspace
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from tests.accelerate.trials import make_report


def test_candidates_of_equal_networks_share_a_process_unless_features_are_cached() -> None:
    names = {"denoiser": "openvino f32, bf16", "decoder": "onnxruntime f32"}
    plain, cached = variant_candidate(names), variant_candidate({**names, "cache_interval": "2"})
    assert process_candidate(variant_candidate({"steps": "5"})) == CHOSEN_PIPELINE
    assert process_candidate(variant_candidate({**names, "steps": "5", "sampler": "ddim"})) == plain
    assert process_candidate(variant_candidate({**names, "steps": "9", "cache_interval": "3"})) == cached
    assert process_candidate(BASELINE_PIPELINE) == BASELINE_PIPELINE
    assert process_candidate(student_candidate("shapes-1")) == student_candidate("shapes-1")


def test_slow_pipelines_are_timed_by_the_pictures_that_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_processes, "SLOW_PICTURE_SECONDS", 0.0)
    source = tmp_path / "source"
    shutil.copytree(find_pipeline("shapes"), source)
    manifest = read_manifest(source)
    write_manifest(source, replace(manifest, defaults=replace(manifest.defaults, steps=2)))
    workspace = prepare_workspace(str(source), tmp_path / "out")
    sweep = SweepState(workspace, AccelerateOptions(threads=1), make_report())
    manifest = original_manifest(workspace.directory)
    with ExitStack() as stack:
        processes = PipelineProcesses(sweep, manifest, tmp_path / "out" / "pipelines", stack)
        for candidate in (BASELINE_PIPELINE, CHOSEN_PIPELINE):
            assert processes.open(candidate, f32_components(workspace.directory), manifest.defaults)
        trial = processes.evaluate(CHOSEN_PIPELINE, 2)
        assert trial.pictures and (trial.pictures.count, trial.pictures.psnr) == (2, 99.0)
        assert trial.seconds and trial.seconds.runs == 2 and trial.ratio
        assert sorted(processes.picture_seconds[CHOSEN_PIPELINE.key])[-1] == pytest.approx(trial.seconds.p95, rel=0.1)
        processes.make_room(0, keep=())
        assert processes.is_open(BASELINE_PIPELINE), "without a memory limit, nothing is closed"
        processes.close(CHOSEN_PIPELINE)
        assert not processes.is_open(CHOSEN_PIPELINE) and processes.scored_count(CHOSEN_PIPELINE) == 2


def test_scored_pictures_of_the_baseline_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = CandidateSamples(
        rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), rng.standard_normal((3, 4, 2, 2)).astype(np.float32)
    )
    write_scored(tmp_path / "a" / "scored.npz", ScoredSamples(samples, (True, False, True), (True, False, False)))
    stored = read_scored(tmp_path / "a" / "scored.npz")
    assert np.array_equal(stored.samples.pictures, samples.pictures)
    assert np.array_equal(stored.samples.latents, samples.latents)
    assert (stored.correct, stored.strict) == ((True, False, True), (True, False, False))
    two = stored.head(1).concatenate(stored.head(1))
    assert (two.correct, two.strict, len(two.samples.pictures)) == ((True, True), (True, True), 2)
