"""A pipeline that was tuned elsewhere verifies itself here: what is right and fast runs, and the user is told."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.backends.registry import open_runner
from stillhouse.errors import StillhouseError
from stillhouse.measure.machine import read_machine
from stillhouse.pipelines.fastest_component import RecordedCall, measure_component
from stillhouse.pipelines.load import EMBEDDED, find_pipeline, load
from stillhouse.pipelines.manifest import Manifest, Tuned, read_manifest, write_manifest
from stillhouse.pipelines.revalidate import NO_MEASURE, ForeignMachine, needs_revalidation, revalidate

ELSEWHERE = "0123456789ab"
NAME = "decoder"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where choices are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stillhouse" / "choices"


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Path, Manifest]:
    """The embedded model, its decoder tuned for a machine with bf16, as a sweep elsewhere leaves it."""
    directory = tmp_path / "pipeline"
    shutil.copytree(find_pipeline("shapes"), directory)
    manifest = read_manifest(directory)
    plain = manifest.components[NAME]
    feeds = {"latent_sample": np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)}
    wanted = open_runner(directory / plain.graph)(feeds)
    arrays = {f"feed/{k}": v for k, v in feeds.items()} | {f"want/{k}": v for k, v in wanted.items()}
    (directory / "verify").mkdir(exist_ok=True)
    np.savez(directory / "verify" / f"{NAME}.npz", allow_pickle=False, **arrays)
    theirs = replace(plain, backend="nowhere")
    told = Tuned(ELSEWHERE, 30.0, {NAME: f"verify/{NAME}.npz"}, {NAME: (plain,)})
    return directory, write_manifest(
        directory, replace(manifest, components={**manifest.components, NAME: theirs}, tuned=told)
    )


def test_what_was_tuned_here_is_not_verified_again(tuned: tuple[Path, Manifest]) -> None:
    directory, manifest = tuned
    assert manifest.tuned
    here = replace(manifest, tuned=replace(manifest.tuned, fingerprint=read_machine().fingerprint()))
    assert needs_revalidation(manifest) and not needs_revalidation(here)
    assert not needs_revalidation(replace(manifest, tuned=None))
    assert revalidate(directory, here) == here.components


def test_an_engine_that_is_not_here_gives_way_to_one_that_is(tuned: tuple[Path, Manifest]) -> None:
    directory, _ = tuned
    with pytest.warns(ForeignMachine, match="decoder is run by onnxruntime f32 .* instead of nowhere") as told:
        pipeline = load(directory)
    assert "was tuned on another machine" in str(told[0].message)
    assert pipeline.generate("a red circle", steps=2, seed=1).image.shape == (64, 64, 3)


def test_what_errs_here_is_refused_with_its_figure(tuned: tuple[Path, Manifest]) -> None:
    directory, manifest = tuned
    assert manifest.tuned
    path = directory / manifest.tuned.probes[NAME]
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["want/sample"] = -arrays["want/sample"]
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(StillhouseError, match=r"no way to run its decoder accurately on this machine: .*SQNR -6\.0 dB"):
        revalidate(directory, manifest)


def test_the_fastest_of_those_that_are_right_runs(
    tuned: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, manifest = tuned
    assert manifest.tuned
    plain = manifest.tuned.alternatives[NAME][0]
    choices = (plain, replace(plain, backend="openvino"))
    both = replace(manifest, tuned=replace(manifest.tuned, alternatives={NAME: choices}))
    ticks = iter([0.0, 9.0] * 3 + [0.0, 1.0] * 3)  # three calls of each, of nine seconds and of one
    monkeypatch.setattr("stillhouse.pipelines.fastest_component.perf_counter", lambda: next(ticks))
    with pytest.warns(ForeignMachine):
        assert revalidate(directory, both)[NAME].backend == "openvino"


def test_a_backend_that_is_asked_for_is_taken_as_it_is(tuned: tuple[Path, Manifest]) -> None:
    directory, _ = tuned
    assert load(directory, backend="onnxruntime").generate("a red circle", steps=1).image.shape == (64, 64, 3)


def test_the_choice_is_kept_for_this_machine(
    tuned: tuple[Path, Manifest], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = tuned
    with pytest.warns(ForeignMachine):
        chosen = load(directory).manifest.components
    (kept,) = cache.glob("*.json")
    assert load(directory).manifest.components == chosen  # without a warning, which would be an error
    other = replace(read_machine(), processor="another processor")
    monkeypatch.setattr("stillhouse.pipelines.machine_choices.read_machine", lambda: other)
    with pytest.warns(ForeignMachine):
        load(directory)
    kept.write_text("spoilt")
    with pytest.warns(ForeignMachine):
        assert load(directory).manifest.components == chosen


def test_without_a_place_to_keep_it_the_choice_is_made_again(
    tuned: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(ForeignMachine):
            load(tuned[0])


@pytest.mark.parametrize("model", EMBEDDED)
def test_embedded_models_are_measured_at_first_use(model: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_MEASURE, raising=False)
    manifest = read_manifest(find_pipeline(model))
    assert manifest.tuned
    offered = (manifest.components["denoiser"], *manifest.tuned.alternatives["denoiser"])
    assert load(model, measure=False).manifest.components == manifest.components
    assert not cache.exists()
    assert load(model).manifest.components["denoiser"] in offered
    assert len(list(cache.glob("*.json"))) == 1


def test_embedded_models_can_be_opened_as_they_are(cache: Path) -> None:
    """The variable is set in all tests: their pictures do not depend on the machine."""
    assert load("shapes").manifest.components == read_manifest(find_pipeline("shapes")).components
    assert not cache.exists()


def test_a_row_with_other_bits_in_a_larger_batch_is_refused_where_bits_count(
    tuned: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, manifest = tuned
    component = manifest.components["denoiser"]
    feeds = {
        "sample": np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": np.zeros((2, 77, 128), np.float32),
    }

    class BatchDependent:
        def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"out_sample": feeds["sample"] * np.float32(1 + 1e-6 * len(feeds["sample"]))}

    monkeypatch.setattr("stillhouse.pipelines.fastest_component.open_component", lambda *given: BatchDependent())
    recorded = RecordedCall(feeds, {"out_sample": feeds["sample"]})
    plain = replace(component, streams=1)
    assert not measure_component(directory, "denoiser", plain, recorded, 30.0).refusal
    measured = measure_component(directory, "denoiser", plain, recorded, 30.0, needs_equal_rows=True)
    assert "gives a row another result in a batch of 8 than in a smaller one" in measured.refusal
