"""A new pipeline gets the backends that are fastest here and accurate; another machine chooses anew."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.backends.backend import CandidateContext
from stillhouse.backends.registry import find_backend
from stillhouse.backends.runtime import BackendStatus
from stillhouse.measure.machine import Machine, read_machine
from stillhouse.pipelines import choose_backends as module
from stillhouse.pipelines.choose_backends import MIN_SQNR, choose_backends, has_memory, set_known_backends
from stillhouse.pipelines.fastest_component import (
    MeasuredComponent,
    RecordedCall,
    measure_component,
    read_recorded_call,
)
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import Component, read_manifest
from stillhouse.pipelines.roles import DECODER, DENOISER
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


@pytest.mark.parametrize(
    ("role", "precisions", "expected"),
    [
        (DENOISER, ("f32", "bf16"), [("bf16", 1), ("bf16", 2), ("f32", 1), ("f32", 2)]),
        (DENOISER, ("f32",), [("f32", 1), ("f32", 2)]),
        (DECODER, ("f32", "bf16"), [("bf16", 1), ("f32", 1)]),
    ],
)
def test_openvino_offers_what_takes_pictures_of_all_sizes(
    role: str, precisions: tuple[str, ...], expected: Sequence[tuple[str, int]]
) -> None:
    backend = find_backend("openvino")
    status = BackendStatus("openvino", "1", ("CPU",), precisions, None, "")
    context = CandidateContext(role, "high", status, threads=2)
    specs = list(backend.defaults(context))
    assert [(spec.precision, int(spec.options.get("streams", 1))) for spec in specs] == expected
    assert all(spec.recipe == "f32" and "shapes" not in spec.options for spec in specs)


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
