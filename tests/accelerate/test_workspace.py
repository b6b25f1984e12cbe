"""A workspace is prepared completely or not at all, and never overwrites other files."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.accelerate.workspace import lock_directory, original_components, prepare_workspace
from stillhouse.errors import InvalidRequest, PipelineError, UnknownModel
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import read_manifest, write_manifest
from tests.accelerate.networks import detector, encoder, external


def test_an_embedded_model_becomes_a_pipeline_directory(tmp_path: Path) -> None:
    workspace = prepare_workspace("shapes", tmp_path / "out")
    assert {component.name for component in workspace.components} == {
        "text_encoder",
        "denoiser",
        "encoder",
        "decoder",
    }
    assert read_manifest(tmp_path / "out", verify=True).name == "shapes"
    assert original_components(tmp_path / "out") == read_manifest(find_pipeline("shapes")).components
    assert all(component.has_dynamic_batch for component in workspace.components)


def test_a_relative_directory_means_the_same_to_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = prepare_workspace(str(detector(Path("detector.onnx"))), Path("out"))
    assert workspace.directory == tmp_path / "out"
    assert workspace.components[0].graph.is_absolute()


def test_an_onnx_file_brings_its_external_data_along(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(external(tmp_path / "model.onnx")), tmp_path / "out")
    (component,) = workspace.components
    assert not workspace.is_pipeline
    assert sorted(path.name for path in component.graph.parent.iterdir()) == sorted(
        ["model.onnx", *component.signature.external]
    )


def test_a_sweep_is_found_again_by_its_source(tmp_path: Path) -> None:
    graph = str(detector(tmp_path / "detector.onnx"))
    workspace = prepare_workspace(graph, tmp_path / "out")
    assert prepare_workspace(graph, tmp_path / "out") == workspace


def test_a_directory_of_another_model_is_left_alone(tmp_path: Path) -> None:
    prepare_workspace("shapes", tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(InvalidRequest, match="contains measurements of shapes"):
        prepare_workspace(str(detector(tmp_path / "detector.onnx")), tmp_path / "out")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_another_model_of_the_same_name_is_called_another(tmp_path: Path) -> None:
    workspace = prepare_workspace(str(detector(tmp_path / "model.onnx")), tmp_path / "out")
    with pytest.raises(InvalidRequest, match=r"measurements of another model.onnx, not of .*model.onnx"):
        prepare_workspace(str(encoder(tmp_path / "model.onnx")), workspace.directory)


def test_a_faster_pipeline_is_accelerated_from_what_it_was_before(tmp_path: Path) -> None:
    faster = prepare_workspace("shapes", tmp_path / "faster").directory
    manifest = read_manifest(faster)
    (faster / "trials" / "denoiser").mkdir()
    (faster / "trials" / "denoiser" / "made.onnx").write_bytes(
        (faster / manifest.components["denoiser"].graph).read_bytes()
    )
    unet = replace(manifest.components["denoiser"], graph="trials/denoiser/made.onnx")
    write_manifest(faster, replace(manifest, components={**manifest.components, "denoiser": unet}))
    again = prepare_workspace(str(faster), tmp_path / "again").directory
    assert read_manifest(again, verify=True).components == manifest.components
    assert not (again / "trials" / "denoiser").exists()


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").touch()
    with pytest.raises(InvalidRequest, match="is not empty"):
        prepare_workspace("shapes", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="is a file"):
        prepare_workspace("shapes", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_nothing_can_be_written_nothing_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidRequest, match="cannot be written"):
        prepare_workspace("shapes", tmp_path / "out")


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        prepare_workspace("shapes", tmp_path / "file" / "out")


@pytest.mark.parametrize("bytes_left", [0, 100])
def test_a_truncated_graph_is_named(tmp_path: Path, bytes_left: int) -> None:
    graph = detector(tmp_path / "detector.onnx")
    graph.write_bytes(graph.read_bytes()[:bytes_left])
    with pytest.raises(PipelineError, match=r"detector\.onnx is no ONNX graph"):
        prepare_workspace(str(graph), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    graph = external(tmp_path / "model.onnx")
    for file in tmp_path.iterdir():
        if file != graph:
            file.unlink()
    with pytest.raises(PipelineError, match="is missing"):
        prepare_workspace(str(graph), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="shapes"):
        prepare_workspace("shape", tmp_path / "out")
    with pytest.raises(PipelineError, match="there is no file"):
        prepare_workspace(str(tmp_path / "none.onnx"), tmp_path / "out")


def test_two_runs_do_not_use_one_directory(tmp_path: Path) -> None:
    with (
        lock_directory(tmp_path / "out"),
        pytest.raises(InvalidRequest, match="is in use by another run of `stillhouse accelerate`"),
        lock_directory(tmp_path / "out"),
    ):
        pass
    with lock_directory(tmp_path / "out"):
        assert prepare_workspace(str(detector(tmp_path / "detector.onnx")), tmp_path / "out").components


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with lock_directory(tmp_path / "out"):
        assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "out").exists()
