"""A new pipeline gets the backends that are fastest here and accurate; another machine chooses anew."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.backends.backend import CandidateContext
from stillhouse.backends.registry import find_backend
from stillhouse.backends.runner import RunnerOptions
from stillhouse.backends.runtime import BackendStatus
from stillhouse.core import ImageRequest
from stillhouse.measure.machine import Machine, read_machine
from stillhouse.pipelines import choose_backends as module
from stillhouse.pipelines import fastest_component
from stillhouse.pipelines.choose_backends import (
    MIN_SQNR,
    STATIC_ROWS,
    choose_backends,
    has_memory,
    offer_backends,
    set_known_backends,
)
from stillhouse.pipelines.fastest_component import (
    MeasuredComponent,
    RecordedCall,
    measure_component,
    read_recorded_call,
)
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import Component, read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.roles import DECODER, DENOISER
from stillhouse.pipelines.runners import open_component
from tests.conftest import Checkpoint

MACHINE = Machine("a processor", 2, 8 << 30, ("avx2",), "Linux x86_64", "3.11")


@pytest.fixture
def pipeline(smallest: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smallest("sd1"), tmp_path / "pipeline"))


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str, int], float]:
    """Seconds by backend, precision and streams, in place of those that the tests' machine needs."""
    table: dict[tuple[str, str, int], float] = {}

    def measure(
        directory: Path,
        role: str,
        component: Component,
        recorded: RecordedCall,
        min_sqnr: float,
        *,
        needs_equal_rows: bool = False,
    ) -> MeasuredComponent:
        measured = measure_component(directory, role, component, recorded, min_sqnr, needs_equal_rows=needs_equal_rows)
        return replace(measured, seconds=table.get((component.backend, component.precision, component.streams), 1.0))

    monkeypatch.setattr(module, "measure_component", measure)
    return table


def test_the_fastest_is_written_into_the_manifest(pipeline: Path, seconds: dict[tuple[str, str, int], float]) -> None:
    seconds["openvino", "f32", 1] = 0.5
    choices = {choice.role: choice for choice in choose_backends(pipeline, read_manifest(pipeline))}
    assert {DENOISER, DECODER} <= choices.keys()
    components = read_manifest(pipeline).components
    for role, choice in choices.items():
        assert components[role] == choice.fastest.component
        assert (components[role].backend, components[role].precision) == ("openvino", "f32")
    assert load(pipeline).generate("a red circle", steps=1).image.any()


def test_what_is_not_faster_changes_nothing(pipeline: Path, seconds: dict[tuple[str, str, int], float]) -> None:
    seconds["onnxruntime", "f32", 1] = 0.1
    before = read_manifest(pipeline)
    choose_backends(pipeline, before)
    assert read_manifest(pipeline).components == before.components


def test_what_is_inaccurate_is_refused(
    pipeline: Path, seconds: dict[tuple[str, str, int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_SQNR", 200.0)
    seconds["openvino", "f32", 1] = 0.5
    choices = choose_backends(pipeline, read_manifest(pipeline))
    assert all(choice.fastest is choice.baseline for choice in choices)
    assert all("errs here: SQNR" in item.refusal for choice in choices for item in choice.measured)


def test_another_machine_has_what_it_needs_to_choose_anew(
    pipeline: Path, seconds: dict[tuple[str, str, int], float]
) -> None:
    seconds["openvino", "f32", 1] = 0.5
    choose_backends(pipeline, read_manifest(pipeline))
    manifest = read_manifest(pipeline, verify=True)
    assert manifest.tuned
    assert manifest.tuned.fingerprint == read_machine().fingerprint()
    assert manifest.tuned.min_sqnr == MIN_SQNR
    plain = Component(manifest.components[DENOISER].graph, manifest.components[DENOISER].weights)
    assert plain in manifest.tuned.alternatives[DENOISER]
    recorded = read_recorded_call(pipeline / manifest.tuned.probes[DENOISER])
    assert measure_component(pipeline, DENOISER, plain, recorded, 90.0).refusal == ""


def test_after_the_time_limit_no_further_network_is_opened(
    pipeline: Path, seconds: dict[tuple[str, str, int], float]
) -> None:
    choices = choose_backends(pipeline, read_manifest(pipeline), seconds=0.0)
    assert choices
    assert all(choice.is_cut and not choice.measured for choice in choices)


def test_the_picture_from_which_inputs_are_recorded_is_small(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 64)
    manifest = read_manifest(pipeline)
    large = replace(manifest, defaults=replace(manifest.defaults, width=1024, height=512))
    choose_backends(pipeline, large, seconds=0.0)
    tuned = read_manifest(pipeline).tuned
    assert tuned
    latents = read_recorded_call(pipeline / tuned.probes[DENOISER]).feeds["sample"]
    assert np.array_equal(latents.shape[2:], np.array([32, 64]) // manifest.latent.downscale)


@pytest.mark.parametrize(
    ("instructions", "known"),
    [
        (("avx2",), ("openvino", "f32")),
        (("avx2", "avx512_bf16"), ("openvino", "bf16")),
        (("avx2", "amx_bf16"), ("openvino", "bf16")),
        (("asimd",), ("onnxruntime", "f32")),
    ],
)
def test_without_a_measurement_the_kind_of_processor_decides(
    pipeline: Path, instructions: tuple[str, ...], known: tuple[str, str]
) -> None:
    assert set_known_backends(pipeline, read_manifest(pipeline), replace(MACHINE, instructions=instructions)) == known
    manifest = read_manifest(pipeline)
    assert {role for role, item in manifest.components.items() if (item.backend, item.precision) == known} >= {
        DENOISER,
        DECODER,
    }
    assert manifest.tuned is None


def test_a_pipeline_is_measured_where_it_fits_into_memory(pipeline: Path) -> None:
    manifest = read_manifest(pipeline)
    assert has_memory(pipeline, manifest, MACHINE)
    assert has_memory(pipeline, manifest, replace(MACHINE, memory=None))
    assert not has_memory(pipeline, manifest, replace(MACHINE, memory=1000))


PLAIN: Mapping[str, str] = {}
STATIC = {"shapes": "static", "axes": "default"}
STREAMS = {"streams": "2", "axes": "open"}


@pytest.mark.parametrize(
    ("role", "is_large", "precisions", "expected"),
    [
        (
            DENOISER,
            False,
            ("f32", "bf16"),
            [("bf16", way) for way in (PLAIN, STATIC, STREAMS)] + [("f32", way) for way in (PLAIN, STATIC, STREAMS)],
        ),
        (DENOISER, False, ("f32",), [("f32", PLAIN), ("f32", STATIC), ("f32", STREAMS)]),
        (DENOISER, True, ("f32",), [("f32", PLAIN), ("f32", STREAMS)]),
        (DECODER, False, ("f32", "bf16"), [("bf16", PLAIN), ("f32", PLAIN)]),
    ],
)
def test_openvino_offers_what_takes_pictures_of_all_sizes(
    role: str, is_large: bool, precisions: tuple[str, ...], expected: Sequence[tuple[str, Mapping[str, str]]]
) -> None:
    backend = find_backend("openvino")
    status = BackendStatus("openvino", "1", ("CPU",), precisions, None, "")
    context = CandidateContext(role, "high", status, threads=2, is_large=is_large)
    specs = list(backend.defaults(context))
    assert [(spec.precision, spec.options) for spec in specs] == expected
    assert all(spec.recipe == "f32" for spec in specs)


def test_a_network_that_is_compiled_for_the_default_size_runs_other_sizes_with_open_axes(pipeline: Path) -> None:
    manifest = read_manifest(pipeline)
    plain = replace(manifest.components[DENOISER], backend="openvino")
    settings = {"axes": "default"}
    fixed = Pipeline(pipeline, components={DENOISER: replace(plain, static=True, rows=(1, 2, 4), settings=settings)})
    side = manifest.defaults.width // manifest.latent.downscale
    runner = fixed.runner(DENOISER, {"sample": (2, 4, side, side)})
    assert runner.inputs[0].shape == (2, 4, side, side)
    other = fixed.runner(DENOISER, {"sample": (2, 4, side, side + 4)})
    assert other.inputs[0].shape[2:] == (None, None)
    assert fixed.runner(DENOISER, {"sample": (6, 4, 2 * side, side)}) is other
    assert fixed.batch_sizes == (1, 2, 4)


@pytest.mark.parametrize("wider", [0, 32])
def test_a_picture_has_the_same_bits_in_static_shapes_and_with_open_axes(pipeline: Path, wider: int) -> None:
    manifest = read_manifest(pipeline)
    plain = replace(manifest.components[DENOISER], backend="openvino")
    static = replace(plain, static=True, rows=(1, 2, 4), settings={"axes": "default"})
    pictures = []
    for component, count in ((plain, 1), (plain, 3), (static, 1), (static, 3)):
        opened = Pipeline(pipeline, components={DENOISER: component})
        width = manifest.defaults.width + wider
        requests = [ImageRequest("a red circle", seed=seed, steps=2, width=width) for seed in range(count)]
        trajectories = [opened.start(request) for request in requests]
        for _ in opened.steps(trajectories):
            pass
        pictures.append(opened.finish(trajectories[0]).image)
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_only_a_small_denoiser_is_offered_static_shapes(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = offer_backends(pipeline, read_manifest(pipeline)).tuned
    assert offered
    ways = [(way.precision, way.rows, way.settings) for way in offered.alternatives[DENOISER] if way.static]
    assert ways == [(precision, STATIC_ROWS, {"axes": "default"}) for precision in ("f32", "bf16")]
    assert not any(way.static for way in offered.alternatives[DECODER])
    monkeypatch.setattr(module, "is_large", lambda graph, signature: True)
    large = offer_backends(pipeline, read_manifest(pipeline)).tuned
    assert large
    assert not any(way.static for way in large.alternatives[DENOISER])


def test_static_shapes_are_refused_where_a_row_differs_in_a_larger_batch(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = offer_backends(pipeline, read_manifest(pipeline))
    assert manifest.tuned
    recorded = read_recorded_call(pipeline / manifest.tuned.probes[DENOISER])
    static = next(way for way in manifest.tuned.alternatives[DENOISER] if way.static)
    assert measure_component(pipeline, DENOISER, static, recorded, 90.0, needs_equal_rows=True).refusal == ""
    open_plain = open_component

    def open_changed(
        directory: Path, component: Component, shapes: Mapping[str, tuple[int, ...]], options: RunnerOptions
    ) -> Any:
        runner = open_plain(directory, component, shapes, options)
        if len(recorded.feeds["sample"]) == shapes["sample"][0]:
            return runner
        return lambda feeds: {name: array * np.float32(1 + 1e-6) for name, array in runner(feeds).items()}

    monkeypatch.setattr(fastest_component, "open_component", open_changed)
    measured = measure_component(pipeline, DENOISER, static, recorded, 90.0, needs_equal_rows=True)
    assert measured.refusal.endswith("gives a row another result in a batch of 8 than in a smaller one")
    assert measure_component(pipeline, DENOISER, static, recorded, 90.0).refusal == ""


def test_one_open_network_takes_pictures_of_all_sizes(
    pipeline: Path, seconds: dict[tuple[str, str, int], float]
) -> None:
    seconds["openvino", "f32", 2] = 0.1
    choose_backends(pipeline, read_manifest(pipeline))
    opened = load(pipeline)
    component = opened.manifest.components[DENOISER]
    assert (component.streams, component.settings) == (2, {"axes": "open"})
    opened.generate("a red circle", steps=1)
    runner = opened.runner(DENOISER, {"sample": (2, 4, 8, 8)})
    assert opened.runner(DENOISER, {"sample": (6, 4, 16, 24)}) is runner
    width = 2 * opened.manifest.defaults.width
    assert opened.generate("a red circle", steps=1, width=width).image.shape[1] == width
