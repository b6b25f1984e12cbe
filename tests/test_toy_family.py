"""A family that an installed package adds: imported, generated with, accelerated and served without a line for it."""

import base64
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.workspace import prepare_workspace
from stillhouse.backends.registry import open_runner
from stillhouse.convert.families import find_conversion
from stillhouse.convert.import_model import import_model
from stillhouse.core import ImageRequest
from stillhouse.errors import BackendFailed, ImportFailed
from stillhouse.pipelines.manifest import read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.roles import DECODER, DENOISER, TEXT_ENCODERS
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.convert.families.toy_conversion import TOY, ToyDecoder, ToyTextEncoder, ToyTransformer
from tests.pipelines.families import toy_family
from tests.pipelines.families.networks import write_tokenizer
from tests.serve.running import running_server

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = """[stillhouse.families]
toy = tests.pipelines.families.toy_family:TOY
[stillhouse.conversions]
ToyPipeline = tests.convert.families.toy_conversion:TOY
[stillhouse.torch_networks]
ToyTransformer = tests.convert.families.toy_conversion:TRANSFORMER
"""
REQUESTS = (
    ImageRequest("a red circle", "blue", seed=1),
    ImageRequest("a big blue circle left of a small red square", seed=2),
)
RUNTIME_LINES = 150


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python path of processes that have a package with the toy family."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "toy_family-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module", autouse=True)
def installed(package: str) -> object:
    """Install the package for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", package)
        patch.setattr(sys, "path", [package.split(os.pathsep)[0], *sys.path])
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, as diffusers would save it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "toy"
    torch.manual_seed(0)
    networks = {"text_encoder": ToyTextEncoder(), "transformer": ToyTransformer(), "decoder": ToyDecoder()}
    for folder, network in networks.items():
        network.save_pretrained(directory / folder)
    FlowMatchEulerDiscreteScheduler().save_pretrained(directory / "scheduler")
    write_tokenizer(directory / "tokenizer")
    index = {
        "_class_name": "ToyPipeline",
        **{folder: ["toy", type(network).__name__] for folder, network in networks.items()},
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (directory / "model_index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture(scope="module")
def directory(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The imported pipeline."""
    out = tmp_path_factory.mktemp("pipelines") / "toy"
    import_model(checkpoint, out)
    return out


def test_a_family_is_two_files() -> None:
    source = Path(toy_family.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= RUNTIME_LINES
    assert find_conversion("ToyPipeline") is TOY


def test_it_is_imported(directory: Path) -> None:
    manifest = read_manifest(directory, verify=True)
    assert manifest.family == "toy" and manifest.source["class"] == "ToyPipeline"
    assert {role: component.graph for role, component in manifest.components.items()} == {
        TEXT_ENCODERS[0]: "text_encoder/model.onnx",
        DENOISER: "transformer/model.onnx",
        DECODER: "decoder/model.onnx",
    }


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_its_graphs_say_what_its_networks_say(directory: Path, backend: str) -> None:
    network = ToyTransformer.from_pretrained(directory / "transformer")
    feeds = (torch.randn(3, 10, 12), torch.rand(3), torch.randn(3, 9, 8), (torch.rand(3, 9) > 0.4).float())
    names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    runner = open_runner(directory / "transformer/model.onnx", backend)
    output = runner({name: tensor.numpy() for name, tensor in zip(names, feeds, strict=True)})
    with torch.inference_mode():
        np.testing.assert_allclose(output["velocity"], network(*feeds).numpy(), atol=1e-5)


def test_it_generates_whatever_is_in_the_batch(directory: Path) -> None:
    pipeline = Pipeline(directory, threads=1)
    request, other = REQUESTS[0], replace(REQUESTS[0], prompt="a blue square", seed=9, guidance=1.0)
    alone, together = pipeline.start(request), [pipeline.start(request), pipeline.start(other)]
    assert (alone.rows, together[1].rows) == (3, 1)
    for trajectories in ([alone], together):
        for _ in pipeline.steps(trajectories):
            pass
    assert alone.latents.tobytes() == together[0].latents.tobytes()
    assert pipeline.finish(alone).image.std() > 5


def test_it_is_accelerated(checkpoint: Path, tmp_path: Path) -> None:
    """From the checkpoint: the baseline and one candidate of each component, then whole pictures."""
    options = AccelerateOptions(
        backends=("onnxruntime",),
        recipes=("f32",),
        threads=1,
        timeout=120.0,
        budget=90.0,
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
        requests=REQUESTS,
    )
    report = run_sweep(prepare_workspace(str(checkpoint), tmp_path / "out"), options)
    assert report.finished, describe(report)
    for component in (DENOISER, DECODER, TEXT_ENCODERS[0]):
        assert component in report.chosen, describe(report)
        assert [trial for trial in report.trials_of(component) if trial.status == "accepted"], describe(report)
    assert not [trial for trial in report.trials if trial.status == "failed"], describe(report)
    pipeline = Pipeline(tmp_path / "out", threads=1)
    assert pipeline.generate("a red circle", seed=1).image.std() > 5


def describe(report: Report) -> str:
    """Return every trial with its reason."""
    return "\n".join(f"{trial.candidate} {trial.status} {trial.reason}" for trial in report.trials)


def test_it_is_served(directory: Path, tmp_path: Path) -> None:
    expected = Pipeline(directory, threads=1).generate("a red circle", negative_prompt="blue", seed=3).image
    (tmp_path / "stillhouse.toml").write_text(f'[tiers.free]\npipeline = "{directory}"\n')
    with running_server("--config", "stillhouse.toml", cwd=tmp_path) as server:
        body = {"prompt": "a red circle", "negative_prompt": "blue", "seed": 3, "response_format": "b64_json"}
        status, content = server.send("POST", "/v1/images/generations", body)
    assert status == 200, content
    picture = base64.b64decode(json.loads(content)["data"][0]["b64_json"])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), expected)


def test_classes_that_no_package_knows_are_refused(checkpoint: Path, directory: Path, tmp_path: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    (source / "model_index.json").write_text(json.dumps({**index, "_class_name": "OtherPipeline"}))
    with pytest.raises(ImportFailed, match="is a OtherPipeline, which is not known; allowed: .*, ToyPipeline"):
        import_model(source, tmp_path / "out")
    with pytest.raises(
        BackendFailed,
        match="describes a ToyDecoder, which is not known; allowed: graphs beside a .*, ToyTransformer: torch runs",
    ):
        open_runner(directory / "decoder/model.onnx", "torch")
