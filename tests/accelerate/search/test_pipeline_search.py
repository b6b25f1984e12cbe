"""Sweep of a whole pipeline within a budget: components, sampling variants, and a directory that generates."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.accelerate.evaluation.task import read_task
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Bounds, Report
from stillhouse.accelerate.search.pipeline_processes import BASELINE_PIPELINE, CHOSEN_PIPELINE, OPENVINO_PIPELINE
from stillhouse.accelerate.search.pipeline_search import search_pipelines
from stillhouse.accelerate.selection.apply import apply_choice, remove_leftovers
from stillhouse.accelerate.selection.choose import choose_networks, choose_trials
from stillhouse.accelerate.selection.gain import beats_baseline
from stillhouse.accelerate.state import SweepState
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.views.write_reports import write_reports
from stillhouse.accelerate.workspace import f32_components, original_components, original_manifest, prepare_workspace
from stillhouse.images.files import read_picture
from stillhouse.measure.clock import Timing
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.accelerate.trials import make_report, make_trial

STEPS = 8


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A sweep of the embedded model with a quarter of its steps."""
    source, directory = tmp_path_factory.mktemp("few") / "shapes", tmp_path_factory.mktemp("whole") / "out"
    shutil.copytree(find_pipeline("shapes"), source)
    manifest = read_manifest(source)
    write_manifest(source, replace(manifest, defaults=replace(manifest.defaults, steps=STEPS)))
    options = AccelerateOptions(
        backends=("onnxruntime", "openvino"),
        recipes=("f32",),
        components=("denoiser",),
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
        threads=1,
        budget=35.0,
    )
    return directory, run_sweep(prepare_workspace(str(source), directory), options)


def test_the_plain_loops_are_measured_beside_the_chosen_networks(swept: tuple[Path, Report]) -> None:
    _, report = swept
    measured = {trial.candidate.key: trial for trial in report.trials_of(PIPELINE) if trial.ratio}
    assert {BASELINE_PIPELINE.key, CHOSEN_PIPELINE.key} <= set(measured)
    if OPENVINO_PIPELINE.key in measured:  # it comes last, where time is left
        pictures = measured[OPENVINO_PIPELINE.key].pictures
        assert pictures and pictures.psnr > 30
    assert report.baselines[PIPELINE] == BASELINE_PIPELINE.key


def test_every_way_to_walk_is_compared_with_the_plain_loop(swept: tuple[Path, Report]) -> None:
    _, report = swept
    chosen = report.trial(PIPELINE, CHOSEN_PIPELINE.key)
    assert chosen.status == "accepted" and chosen.pictures
    is_other_engine = report.trial("denoiser", report.evaluated_with["denoiser"]).candidate.backend != "onnxruntime"
    assert chosen.pictures.count >= 8 and (chosen.pictures.psnr < 99) == is_other_engine
    assert report.evaluated_with == choose_networks(report, "latency", report.bounds).chosen
    networks = {name: key for name, key in report.chosen.items() if name != PIPELINE}
    assert report.chosen == report.baselines or networks == report.evaluated_with


def test_no_process_is_left_to_the_defaults_that_an_earlier_sweep_may_have_chosen(swept: tuple[Path, Report]) -> None:
    directory, _ = swept
    tasks = [read_task(path) for path in directory.glob("trials/*/*/task.json")]
    assert {task.candidate.component for task in tasks} == {"denoiser", PIPELINE}
    before = original_manifest(directory).defaults
    assert all(task.defaults and replace(task.defaults, tile=before.tile) == before for task in tasks)


def test_networks_that_fail_together_are_not_chosen(swept: tuple[Path, Report]) -> None:
    _, report = swept
    blurred = [
        replace(trial, pictures=replace(trial.pictures, psnr=20.0))
        if trial.pictures and trial.candidate == CHOSEN_PIPELINE
        else trial
        for trial in report.trials
        if trial.candidate.recipe != "sampling" or trial.candidate == CHOSEN_PIPELINE
    ]
    strict = choose_trials(replace(report, trials=tuple(blurred)), "latency", report.bounds)
    assert "20.0 dB is below" in strict.trial(PIPELINE, CHOSEN_PIPELINE.key).reason
    assert strict.chosen == strict.baselines, "the whole original pipeline"


def test_the_result_draws_and_is_sealed(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    manifest = read_manifest(directory, verify=True)
    assert manifest.tuned and manifest.tuned.fingerprint == report.fingerprint
    assert "accelerate" in manifest.evidence
    chosen = report.trial("denoiser", report.chosen["denoiser"]).candidate
    assert manifest.components["denoiser"].backend == chosen.backend
    assert load(directory).generate("a red circle", seed=1).image.shape == (64, 64, 3)


def test_choosing_again_moves_the_manifest_and_back(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    strict = choose_trials(report, "memory", Bounds())
    apply_choice(directory, strict)
    baseline = strict.trial(PIPELINE, BASELINE_PIPELINE.key)
    if any(beats_baseline(trial, baseline, "memory") for trial in strict.trials_of(PIPELINE)):
        chosen = strict.trial(PIPELINE, strict.chosen[PIPELINE]).peak_bytes
        assert chosen and baseline.peak_bytes and chosen < baseline.peak_bytes
        # A variant runs the networks that it names; the others are those of the chosen pipeline.
        variant = strict.trial(PIPELINE, strict.chosen[PIPELINE]).candidate
        assert strict.chosen.items() >= {**strict.evaluated_with, **strict.networks_of(variant)}.items()
    else:
        assert strict.chosen == strict.baselines
        written, original = read_manifest(directory).components, f32_components(directory)
        assert {name: (item.graph, item.backend, item.precision) for name, item in written.items()} == {
            name: (item.graph, item.backend, item.precision) for name, item in original.items()
        }
        assert read_manifest(directory).defaults == original_manifest(directory).defaults
    read_manifest(directory, verify=True)
    apply_choice(directory, report)
    expected = original_components(directory)["text_encoder"]
    if report.chosen == report.baselines:  # the whole original pipeline, as it was measured
        expected = replace(f32_components(directory)["text_encoder"], threads=report.threads)
    assert read_manifest(directory).components["text_encoder"] == expected


def test_what_is_shown_lies_beside_the_report(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    write_reports(directory, report)
    remove_leftovers(directory, report)
    assert (directory / "report.html").stat().st_size > 10_000
    assert (directory / "summary.xlsx").is_file()
    shown = [file for trial in report.trials if trial.pictures for file in trial.pictures.files]
    assert shown and all(read_picture(directory / file).shape == (64, 64, 3) for file in shown)
    read_manifest(directory, verify=True)


def no_progress(activity: str, done: float, total: float) -> None:
    raise AssertionError("nothing may be generated")


def test_pictures_that_the_budget_does_not_allow_are_not_generated(tmp_path: Path) -> None:
    slow = make_trial("onnxruntime", seconds=Timing(20.0, 20.0, 20.0, 3), rows=2)  # 700 seconds a picture
    workspace = prepare_workspace("shapes", tmp_path / "out")
    options = AccelerateOptions(students=("shapes-3",), budget=600.0)
    sweep = SweepState(
        workspace, options, make_report(slow, baselines={"denoiser": slow.candidate.key}, budget=600.0), no_progress
    )
    search_pipelines(sweep)
    added = [trial for trial in sweep.report.trials if trial != slow]
    assert added and {trial.status for trial in added} == {"skipped"}
    assert all("the time budget ended first" in trial.reason for trial in added)
    considered = {name for trial in added for name in trial.candidate.options}
    assert considered >= {"student", "denoiser", "steps", "sampler", "guidance_interval"}
