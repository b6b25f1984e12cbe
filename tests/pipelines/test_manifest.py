import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.diffusion import Schedule
from stillhouse.errors import ManifestError, PipelineError, TamperedFile
from stillhouse.pipelines.families.stable_diffusion import STABLE_DIFFUSION
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import (
    ALWAYS_HASHED_BYTES,
    MANIFEST,
    VERIFY_FOLDER,
    Component,
    Defaults,
    Latent,
    Manifest,
    Sampling,
    StepCache,
    Tuned,
    convert_manifest,
    document_checksum,
    graph_paths,
    needed_files,
    read_manifest,
    write_manifest,
)

MINIMAL = Manifest(
    name="tiny",
    family="stable-diffusion",
    components={"denoiser": Component("unet/model.onnx", "unet/weights.safetensors")},
    tokenizers={"text_encoder": "tokenizer"},
    sampling=Sampling(Schedule(zero_terminal_snr=True), "v_prediction", "trailing"),
    latent=Latent(channels=4, scaling_factor=0.18215, shift_factor=0.0, downscale=8),
    granularity=64,
    family_options={"in_channels": 4},
    defaults=Defaults(steps=35, guidance=5.0, sampler="ddim", width=64, height=64),
    source={"importer": "test", "loras": []},
    evidence={"score": {"share": 0.93, "of": 1000}},
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with every needed file; the weights are larger than what is hashed at each opening."""
    for name in needed_files(MINIMAL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "unet/weights.safetensors").write_bytes(bytes(ALWAYS_HASHED_BYTES + 1))
    return tmp_path


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((directory / MANIFEST).read_text())
    change(document)
    (directory / MANIFEST).write_text(json.dumps(document))


def test_what_is_written_is_read_again(directory: Path) -> None:
    written = write_manifest(directory, MINIMAL)
    assert read_manifest(directory, verify=True) == written
    assert replace(written, files={}) == MINIMAL
    assert written.files["tokenizer/tokenizer.json"].bytes == len("tokenizer/tokenizer.json")


def put(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(name.encode())


def test_everything_that_acceleration_decides_is_read_again(directory: Path) -> None:
    unet = Component(
        "unet/model.onnx",
        "unet/weights.safetensors",
        "openvino",
        "bf16",
        streams=2,
        threads=1,
        static=True,
        settings={"EXECUTION_MODE_HINT": "PERFORMANCE"},
    )
    tuned = replace(
        MINIMAL,
        components={"denoiser": unet},
        defaults=replace(MINIMAL.defaults, guidance_interval=(0.1, 0.7), cache_interval=3, tile=512),
        step_cache=StepCache("unet/full.onnx", "unet/shallow.onnx"),
    )
    put(directory, "unet/full.onnx", "unet/shallow.onnx")
    written = write_manifest(directory, tuned)
    assert read_manifest(directory, verify=True) == written == replace(tuned, files=written.files)
    assert (
        set(graph_paths(tuned))
        == {"unet/model.onnx", "unet/full.onnx", "unet/shallow.onnx"}
        <= set(needed_files(tuned))
    )


@pytest.mark.parametrize("name", ["full", "shallow"])
def test_a_step_cache_needs_both_of_its_graphs(directory: Path, name: str) -> None:
    put(directory, f"unet/{name}.onnx")
    with pytest.raises(PipelineError, match=r"unet/\w+.onnx is missing"):
        write_manifest(directory, replace(MINIMAL, step_cache=StepCache("unet/full.onnx", "unet/shallow.onnx")))


def test_a_step_cache_of_another_graph_is_refused(directory: Path) -> None:
    put(directory, "unet/full.onnx", "unet/shallow.onnx", "trials/unet/int8/model.onnx")
    cut = StepCache("unet/full.onnx", "unet/shallow.onnx")
    int8 = Component("trials/unet/int8/model.onnx", "trials/unet/int8/model.onnx")
    with pytest.raises(
        PipelineError, match=r"unet/full.onnx was not split from the denoiser's graph trials/.*leave step_cache out"
    ):
        write_manifest(directory, replace(MINIMAL, components={"denoiser": int8}, step_cache=cut))


def test_a_manifest_from_before_acceleration_is_read(directory: Path) -> None:
    """Fields that it does not have get what they were before they existed."""
    write_manifest(directory, MINIMAL)

    def age(document: dict[str, Any]) -> None:
        del document["step_cache"], document["checksum"]
        for name in ("guidance_interval", "cache_interval", "tile"):
            del document["defaults"][name]
        for name in ("threads", "static", "settings"):
            del document["components"]["denoiser"][name]
        document["checksum"] = document_checksum(document)

    edit(directory, age)
    assert replace(read_manifest(directory), files={}) == MINIMAL


def test_evidence_may_change_and_what_is_needed_may_not(directory: Path) -> None:
    """Reports are written again; but a graph out of a trial counts, and all that lies beside it."""
    beside = "trials/unet/openvino-int8/model.bin"
    unet = Component("trials/unet/openvino-int8/model.xml", beside)
    weights = replace(unet, graph="unet/model.onnx", weights="trials/weights/unet.safetensors")
    evidence = ["report.json", "report.html", "summary.xlsx", "trials/unet/onnxruntime-f32/log.txt", "trials/plan.json"]
    needed = [unet.graph, beside, "trials/unet/openvino-int8/reproduce.py", "trials/weights/unet.safetensors"]
    put(directory, *evidence, *needed, "trials/weights/other", "unet/report.json", "strips/0.png")
    written = write_manifest(directory, replace(MINIMAL, components={"denoiser": unet, "decoder": weights}))
    assert {name for name in written.files if name.startswith("trials")} == set(needed)
    assert not written.files.keys() & set(evidence)
    assert {"unet/report.json", "strips/0.png", "unet/weights.safetensors"} <= written.files.keys()
    for name in evidence:
        (directory / name).unlink()
    read_manifest(directory, verify=True)
    (directory / beside).write_bytes(b"x" * len(beside))
    with pytest.raises(TamperedFile, match=r"model.bin has other content"):
        read_manifest(directory)


def test_a_graph_at_the_top_leaves_the_reports_unrecorded(directory: Path) -> None:
    put(directory, "model.onnx", "report.json")
    written = write_manifest(
        directory, replace(MINIMAL, components={"denoiser": Component("model.onnx", "model.onnx")})
    )
    assert "model.onnx" in written.files and "report.json" not in written.files


def test_written_twice_it_is_the_same(directory: Path) -> None:
    written = write_manifest(directory, MINIMAL)
    text = (directory / MANIFEST).read_bytes()
    assert write_manifest(directory, written) == written
    assert (directory / MANIFEST).read_bytes() == text


def test_nothing_is_written_when_a_file_is_missing(directory: Path) -> None:
    (directory / "unet/model.onnx").unlink()
    with pytest.raises(PipelineError, match="unet/model.onnx is missing"):
        write_manifest(directory, MINIMAL)
    assert not list(directory.glob("*stillhouse*"))


def test_a_failed_write_leaves_the_old_manifest(directory: Path) -> None:
    write_manifest(directory, MINIMAL)
    before = (directory / MANIFEST).read_bytes()
    with pytest.raises(TypeError):
        write_manifest(directory, replace(MINIMAL, evidence={"no JSON": object()}))
    assert (directory / MANIFEST).read_bytes() == before
    assert not list(directory.glob(".*"))


@pytest.mark.parametrize("name", ["unet/model.onnx", "tokenizer/tokenizer.json"])
def test_a_small_file_with_other_content(directory: Path, name: str) -> None:
    write_manifest(directory, MINIMAL)
    (directory / name).write_bytes(name.upper().encode())
    with pytest.raises(TamperedFile, match=f"{name} has other content"):
        read_manifest(directory)


def test_large_files_are_hashed_on_request(directory: Path) -> None:
    write_manifest(directory, MINIMAL)
    (directory / "unet/weights.safetensors").write_bytes(bytes(ALWAYS_HASHED_BYTES) + b"1")
    read_manifest(directory)
    with pytest.raises(TamperedFile, match=r"weights.safetensors has other content.*\(SHA-256\)"):
        read_manifest(directory, verify=True)


def test_a_file_of_another_size(directory: Path) -> None:
    write_manifest(directory, MINIMAL)
    (directory / "unet/weights.safetensors").write_bytes(bytes(ALWAYS_HASHED_BYTES))
    with pytest.raises(
        TamperedFile, match=f"has {ALWAYS_HASHED_BYTES:,} bytes, but its manifest says {ALWAYS_HASHED_BYTES + 1:,}"
    ):
        read_manifest(directory)


def test_a_file_that_is_gone(directory: Path) -> None:
    write_manifest(directory, MINIMAL)
    (directory / "unet/weights.safetensors").unlink()
    with pytest.raises(TamperedFile, match="weights.safetensors is missing"):
        read_manifest(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(version=3), r"version 3; allowed: versions 1 to 2; import the model again"),
        (lambda document: document.pop("version"), "has no field 'version'"),
        (lambda document: document.pop("latent"), r"is broken: \$.latent is missing"),
        (lambda document: document["defaults"].update(steps="many"), r"\$.defaults.steps is 'many'"),
        (lambda document: document["defaults"].update(steps=4), "was edited: its checksum does not fit"),
        (lambda document: document.pop("checksum"), "was edited: its checksum does not fit"),
        (
            lambda document: document["sampling"]["schedule"].update(beta_end=2.0),
            r"\$.sampling.schedule is refused: beta_end is 2.0",
        ),
        (
            lambda document: document["defaults"].update(cache_interval=0),
            r"\$.defaults is refused: cache_interval is 0",
        ),
        (lambda document: document["defaults"].update(tile=8), r"\$.defaults is refused: tile is 8; allowed: a whole"),
        (
            lambda document: document["defaults"].update(guidance_interval=[0.5]),
            r"\$.defaults.guidance_interval is \[0.5\]; allowed: array of length 2",
        ),
        (lambda document: document["defaults"].update(guidance_interval=[0.5, 0.1]), "the beginning of guidance_in"),
        (lambda document: document.update(step_cache={"full": "a"}), r"\$.step_cache.shallow is missing"),
        (lambda document: document.update(sampler="ddim"), r"\$.sampler is not known here; allowed: name, family, "),
        (
            lambda document: document["components"]["denoiser"].update(stream=2),
            r"\$.components.denoiser.stream is not known here; allowed: graph, weights, backend",
        ),
        (
            lambda document: document.update(family="flux"),
            "has the family 'flux', which is not installed; allowed: stable-diffusion, stable-diffusion-xl",
        ),
    ],
)
def test_a_broken_manifest(directory: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    write_manifest(directory, MINIMAL)
    edit(directory, change)
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(directory)
    assert str(directory / MANIFEST) in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_no_manifest_at_all(directory: Path, content: bytes) -> None:
    (directory / MANIFEST).write_bytes(content)
    with pytest.raises(ManifestError, match=MANIFEST):
        read_manifest(directory)


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist.*stillhouse import"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "{}/secret", "link"])
def test_files_outside_of_the_directory(directory: Path, name: str) -> None:
    (directory.parent / "secret").write_bytes(b"secret")
    write_manifest(directory, MINIMAL)
    (directory / "link").symlink_to(directory.parent / "secret")

    def forge(document: dict[str, Any]) -> None:
        document["files"][name.format(directory.parent)] = {"bytes": 6, "sha256": "0" * 64}
        del document["checksum"]
        document["checksum"] = document_checksum(document)

    edit(directory, forge)
    with pytest.raises(ManifestError, match="names a file outside of its directory"):
        read_manifest(directory)


VERSION_1 = json.loads((Path(__file__).parent / "manifests" / "version_1.json").read_text())
"""The manifest of the embedded model, as it was written before version 2."""


def test_a_manifest_of_version_1_is_read(tmp_path: Path) -> None:
    shutil.copytree(find_pipeline("shapes"), tmp_path / "shapes")
    today = read_manifest(tmp_path / "shapes")
    files = {name: record for name, record in today.files.items() if not name.startswith(VERIFY_FOLDER)}
    (tmp_path / "shapes" / MANIFEST).write_text(json.dumps(VERSION_1))
    assert read_manifest(tmp_path / "shapes", verify=True) == replace(today, tuned=None, files=files)


def test_every_field_of_version_1_is_read() -> None:
    """Those that acceleration and distillation set, and one that has another name."""
    document = {name: value for name, value in VERSION_1.items() if name != "checksum"}
    decoder = {"graph": "trials/a.onnx", "weights": "w", "backend": "openvino", "rows": [1, 2]}
    document["defaults"] = {**document["defaults"], "refresh": 3, "guidance_interval": [0, 0.5]}
    document["step_cache"] = {"full": "unet/full.onnx", "shallow": "unet/shallow.onnx"}
    document["tuned"] = {
        "fingerprint": "f",
        "min_sqnr": 30,
        "probes": {"unet": "u.npz", "text_encoder": "t.npz"},
        "alternatives": {"vae_decoder": [decoder]},
    }
    document |= {"guidance_channels": 256, "zero_negative": True, "unet_in_channels": 9}
    manifest = convert_manifest(document)
    assert manifest == replace(
        convert_manifest({name: value for name, value in VERSION_1.items() if name != "checksum"}),
        defaults=Defaults(35, 3.0, "ddim", 64, 64, guidance_interval=(0.0, 0.5), cache_interval=3),
        step_cache=StepCache("unet/full.onnx", "unet/shallow.onnx"),
        tuned=Tuned(
            "f",
            30.0,
            {"denoiser": "u.npz", "text_encoder": "t.npz"},
            {"decoder": (Component("trials/a.onnx", "w", "openvino", rows=(1, 2)),)},
        ),
        family_options={"in_channels": 9, "guidance_channels": 256, "zero_negative": True},
    )
    assert STABLE_DIFFUSION.takes_guidance(manifest) and STABLE_DIFFUSION.is_inpainting(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaults": {**VERSION_1["defaults"], "steps": 4}}, "was edited: its checksum does not fit"),
        ({"defaults": {**VERSION_1["defaults"], "step": 4}}, r"\$.defaults.step is not known here; allowed: steps"),
        ({"components": []}, "is broken: the document cannot be read as a manifest of version 1"),
        ({"tokenizers": []}, "is broken: the document cannot be read as a manifest of version 1"),
    ],
)
def test_a_broken_manifest_of_version_1(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({**VERSION_1, **change}))
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": "4"}, r"\$.family_options.in_channels is '4'; allowed: int"),
        ({"in_channels": 4, "channels": 4}, r"\$.family_options.channels is not known here; allowed: in_channels"),
        ({}, r"\$.family_options.in_channels is missing"),
    ],
)
def test_options_are_those_of_the_family(directory: Path, options: dict[str, Any], message: str) -> None:
    write_manifest(directory, replace(MINIMAL, family_options=options))
    with pytest.raises(ManifestError, match=message):
        read_manifest(directory)
