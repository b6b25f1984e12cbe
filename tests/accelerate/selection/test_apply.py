"""Files that remain after a sweep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, Probe, write_probes
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE, PICTURES_FILE
from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import REPORT_FILE, Report
from stillhouse.accelerate.records.trial import BUDGET_ENDED
from stillhouse.accelerate.search.sampling_variants import variant_candidate
from stillhouse.accelerate.selection.apply import apply_choice, remove_leftovers, restore_original
from stillhouse.accelerate.workspace import f32_components, original_manifest, prepare_workspace
from stillhouse.pipelines.manifest import TRIALS, read_manifest
from tests.accelerate.trials import make_report, make_trial

BASELINE, OTHER = Candidate("denoiser", "onnxruntime"), Candidate("denoiser", "openvino")


def left(sweep: Report, directory: Path) -> set[str]:
    """Return the remaining files of a baseline and another candidate with pictures."""
    for candidate in (BASELINE, OTHER):
        folder = directory / TRIALS / "denoiser" / candidate.key
        folder.mkdir(parents=True)
        for name in (OUTPUTS_FILE, PICTURES_FILE):
            (folder / name).touch()
    remove_leftovers(directory, sweep)
    names = {BASELINE.key: "baseline", OTHER.key: "other"}
    return {f"{names[path.parent.name]} {path.name}" for path in directory.rglob("*.npz")}


def test_of_a_sweep_that_is_over_only_the_baselines_outputs_are_left(tmp_path: Path) -> None:
    report = make_report(
        make_trial("", candidate=BASELINE), make_trial("", candidate=OTHER), baselines={"denoiser": BASELINE.key}
    )
    assert left(replace(report, finished=True), tmp_path) == {f"baseline {OUTPUTS_FILE}"}


def test_a_sweep_that_goes_on_finds_what_it_compares_with(tmp_path: Path) -> None:
    skipped = make_trial("", candidate=replace(OTHER, precision="bf16"), status="skipped", reason=BUDGET_ENDED)
    report = make_report(
        make_trial("", candidate=BASELINE),
        make_trial("", candidate=OTHER),
        skipped,
        baselines={"denoiser": BASELINE.key},
    )
    expected = {f"baseline {OUTPUTS_FILE}", f"baseline {PICTURES_FILE}"}
    assert left(replace(report, finished=True), tmp_path / "budget") == expected
    cut_off = replace(report, trials=report.trials[:2], finished=False)
    assert left(cut_off, tmp_path / "interrupted") == expected


def test_of_a_restored_directory_only_the_source_is_left(tmp_path: Path) -> None:
    for name in (REPORT_FILE, f"{TRIALS}/source.json", f"{TRIALS}/denoiser/{OTHER.key}/{OUTPUTS_FILE}", "model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    restore_original(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        f"{TRIALS}/source.json",
        "model.onnx",
    }


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """A directory with what a sweep of the embedded model leaves of its baseline."""
    directory = prepare_workspace("shapes", tmp_path / "out").directory
    folder = directory / TRIALS / "denoiser"
    (folder / BASELINE.key).mkdir(parents=True)
    write_probes(folder / PROBES_FILE, [Probe("noise 0.9", {"sample": np.zeros(2)})])
    write_probes(folder / BASELINE.key / OUTPUTS_FILE, [Probe("noise 0.9", {"out_sample": np.ones(2)})])
    return directory


def test_a_choice_goes_with_the_next_best_ones_and_the_baseline(swept: Path) -> None:
    backends = {"first": (5.0, 30.0), "second": (4.0, 40.0), "third": (3.0, 50.0), "fourth": (2.0, 60.0)}
    trials = [make_trial(name, ratio, sqnr) for name, (ratio, sqnr) in backends.items()]
    report = make_report(
        make_trial("", 1.0, 99.0, candidate=BASELINE),
        *trials,
        baselines={"denoiser": BASELINE.key},
        chosen={"denoiser": trials[1].candidate.key},
    )
    apply_choice(swept, report)
    manifest = read_manifest(swept, verify=True)
    assert manifest.tuned
    assert manifest.components["denoiser"].backend == "second"
    alternatives = [component.backend for component in manifest.tuned.alternatives["denoiser"]]
    assert alternatives == ["first", "third", "onnxruntime"]
    with np.load(swept / manifest.tuned.probes["denoiser"]) as probe:
        assert {name: array.tolist() for name, array in probe.items()} == {
            "feed/sample": [0.0, 0.0],
            "want/out_sample": [1.0, 1.0],
        }


def test_where_the_plain_loop_stays_the_whole_original_pipeline_is_written(swept: Path) -> None:
    """It is what was measured: the original graphs on onnxruntime in float32, also of networks without candidates."""
    plain = make_trial("", candidate=Candidate(PIPELINE, "onnxruntime", "baseline"))
    baselines = {"denoiser": BASELINE.key, PIPELINE: plain.candidate.key}
    trials = (make_trial("", candidate=BASELINE), make_trial("", 5.0, candidate=OTHER), plain)
    apply_choice(swept, make_report(*trials, baselines=baselines, chosen=baselines))
    manifest = read_manifest(swept, verify=True)
    assert manifest.components == f32_components(swept)
    assert manifest.defaults == original_manifest(swept).defaults


@pytest.mark.parametrize("interval", [1, 2])
def test_a_network_is_split_only_where_features_are_cached(swept: Path, interval: int) -> None:
    variant = make_trial("", 2.0, candidate=variant_candidate({"cache_interval": str(interval)}))
    report = make_report(variant, chosen={PIPELINE: variant.candidate.key})
    apply_choice(swept, report)
    manifest = read_manifest(swept, verify=True)
    assert original_manifest(swept).step_cache is None
    assert manifest.defaults.cache_interval == interval
    assert (manifest.step_cache is not None) == (interval > 1)
