"""Adapters on an open pipeline draw what adapters fused at import do, and leave no trace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter

from stillhouse.backends import RunnerOptions, open_runner
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.tensorrt_weights import EngineWeights, find_refittable
from stillhouse.backends.torch_weights import ModuleWeights
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.core import ImageRequest
from stillhouse.errors import ImportFailed, InvalidRequest
from stillhouse.pipelines.adapters import adapt_weights
from stillhouse.pipelines.lora import read_adapter
from stillhouse.pipelines.manifest import Component, StepCache, read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from tests.conftest import PROMPT, SIZE, Checkpoint
from tests.pipelines.test_lora import trained

pytestmark = pytest.mark.usefixtures("torch_threads")
STEPS = 2


@pytest.fixture(scope="module")
def styles(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRA of the U-Net, one of which changes the text encoder, too."""
    root = tmp_path_factory.mktemp("styles")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("sd1"))
    found = {}
    for seed, (name, parts) in enumerate({"ink": ("unet",), "oil": ("unet", "text_encoder")}.items()):
        torch.manual_seed(seed)
        layers = {"unet": ["to_q", "to_v", "conv1"], "text_encoder": ["q_proj", "fc1"]}
        states = {part: trained(pipeline, part, layers[part])[0] for part in parts}
        tensors = {f"{part}.{key}": tensor for part, state in states.items() for key, tensor in state.items()}
        found[name] = root / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, found[name])
    return found


@pytest.fixture
def pipeline(imported: Checkpoint) -> Pipeline:
    return Pipeline(imported("sd1"), backend="torch", threads=1)


def drawn(pipeline: Pipeline) -> NDArray[Any]:
    draft = pipeline.start(ImageRequest(PROMPT, seed=3, steps=STEPS, width=SIZE, height=SIZE))
    while not draft.is_done:
        pipeline.advance([draft])
    return pipeline.arrays.to_numpy(draft.latents)


@pytest.mark.parametrize("worn", [["ink:0.7"], ["oil"], ["ink:0.7", "oil:-0.5"]], ids=" and ".join)
def test_what_is_worn_draws_as_what_was_fused(
    worn: list[str], styles: dict[str, Path], checkpoint: Checkpoint, pipeline: Pipeline, tmp_path: Path
) -> None:
    texts = [text.replace(name, str(styles[name])) for text in worn for name in styles if text.startswith(name)]
    import_model(checkpoint("sd1"), tmp_path / "fused", ImportOptions("fused", loras=tuple(texts)))
    fused = drawn(Pipeline(tmp_path / "fused", backend="torch", threads=1))
    plain = drawn(pipeline)
    pipeline.set_adapters(texts)
    changed = drawn(pipeline)
    assert np.abs(changed - plain).max() > 1e-2
    np.testing.assert_allclose(changed, fused, atol=1e-5 * np.abs(fused).max())


def test_nothing_is_left_of_what_is_taken_off(styles: dict[str, Path], pipeline: Pipeline) -> None:
    plain = drawn(pipeline)
    pipeline.set_adapters([str(styles["oil"]), f"{styles['ink']}:0.3"])
    drawn(pipeline)
    pipeline.set_adapters([f"{styles['ink']}:0.9"])
    one = drawn(pipeline)
    pipeline.set_adapters([])
    assert np.array_equal(drawn(pipeline), plain)
    pipeline.set_adapters([f"{styles['ink']}:0.9"])
    assert np.array_equal(drawn(pipeline), one), "it does not matter what was worn before"


def test_layers_that_were_joined_into_one_wear_each_its_own(styles: dict[str, Path], imported: Checkpoint) -> None:
    manifest = Pipeline(imported("sd1")).manifest
    unets = [
        replace(manifest.components["denoiser"], backend="torch", settings={"qkv": qkv}) for qkv in ("apart", "joined")
    ]
    text = replace(manifest.components["text_encoder"], backend="torch")
    apart, joined = (
        Pipeline(imported("sd1"), components={"denoiser": one, "text_encoder": text}, threads=1) for one in unets
    )
    plain = drawn(joined)
    for worn in (["ink"], ["oil", "ink"]):
        for one in (apart, joined):
            one.set_adapters([str(styles[name]) for name in worn])
        wanted = drawn(apart)
        np.testing.assert_allclose(drawn(joined), wanted, atol=1e-5 * np.abs(wanted).max())
        assert np.abs(wanted - plain).max() > 1e-2
    joined.set_adapters([])
    assert np.array_equal(drawn(joined), plain)


def test_networks_that_are_opened_later_wear_it_too(styles: dict[str, Path], imported: Checkpoint) -> None:
    early, late = (Pipeline(imported("sd1"), backend="torch", threads=1) for _ in range(2))
    drawn(early)
    for one in (early, late):
        one.set_adapters([str(styles["oil"])])
    assert np.array_equal(drawn(early), drawn(late))


def test_what_was_compiled_stays_and_weights_where_they_lie(
    styles: dict[str, Path], imported: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of CUDA hold addresses, and compiled code is thrown away where a weight is another one."""
    counter = CompileCounter()

    def compiled(module: Any, **options: Any) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=counter, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    manifest = Pipeline(imported("sd1")).manifest
    unet = Component("unet/model.onnx", manifest.components["denoiser"].weights, "torch", settings={"compile": "full"})
    text = replace(manifest.components["text_encoder"], backend="torch")
    pipeline = Pipeline(imported("sd1"), components={"denoiser": unet, "text_encoder": text}, threads=1)
    drawn(pipeline)
    graphs = counter.frame_count
    runners = [runner for (name, _), runner in pipeline._runners._open.items() if name == "denoiser"]
    weights = runners[0].weights if isinstance(runners[0], GraphRunner) else None
    assert isinstance(weights, ModuleWeights) and len(runners) == 1
    network = weights.network
    places = [parameter.data_ptr() for parameter in network.parameters()]
    assert graphs > 0
    for worn in (["oil"], ["ink"], []):
        pipeline.set_adapters([str(styles[name]) for name in worn])
        drawn(pipeline)
    assert counter.frame_count == graphs
    assert [parameter.data_ptr() for parameter in network.parameters()] == places


@pytest.mark.parametrize("name", ["denoiser", "text_encoder"])
def test_an_engine_gets_the_weights_that_torch_gets(
    name: str, styles: dict[str, Path], imported: Checkpoint, tmp_path: Path
) -> None:
    """By the names of its graph: as it was imported, and where halves were made of it. No engine is refitted here."""
    graph = imported("sd1") / read_manifest(imported("sd1")).components[name].graph
    convert_to_float16(graph, tmp_path / "half.onnx")
    adapters = [read_adapter(f"{styles[style]}:0.7", ("denoiser", "text_encoder")) for style in ("ink", "oil")]
    runner = open_runner(graph, "torch", RunnerOptions(threads=1))
    assert isinstance(runner, GraphRunner) and runner.weights is not None
    wanted = adapt_weights(adapters, name, runner.weights)
    assert wanted
    for one in (graph, tmp_path / "half.onnx"):
        weights = EngineWeights(torch, None, None, find_refittable(one), "cuda", lambda: None)
        assert set(weights.shapes) >= set(runner.weights.shapes)
        made = adapt_weights(adapters, name, weights)
        assert made.keys() == wanted.keys()
        for layer, values in made.items():
            torch.testing.assert_close(values, wanted[layer], rtol=0, atol=2e-3 * float(values.abs().max()))


def test_an_adapter_of_another_network_is_refused_and_what_was_worn_stays(
    styles: dict[str, Path], pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.set_adapters([str(styles["ink"])])
    before = drawn(pipeline)
    name = "unet.down_blocks.0.resnets.0.conv1"
    foreign = {f"{name}.lora_A.weight": torch.ones(2, 7, 3, 3), f"{name}.lora_B.weight": torch.ones(9, 2, 1, 1)}
    save_file(foreign, tmp_path / "foreign.safetensors")
    with pytest.raises(ImportFailed, match="made for another denoiser"):
        pipeline.set_adapters([str(styles["oil"]), str(tmp_path / "foreign.safetensors")])
    with pytest.raises(ImportFailed, match="does not exist"):
        pipeline.set_adapters([str(tmp_path / "nowhere.safetensors")])
    assert np.array_equal(drawn(pipeline), before)


def test_a_u_net_in_two_depths_wears_nothing_and_says_so(styles: dict[str, Path], imported: Checkpoint) -> None:
    cut = StepCache("unet/full.onnx", "unet/shallow.onnx")
    pipeline = Pipeline(imported("sd1"), step_cache=cut, threads=1)
    with pytest.raises(InvalidRequest, match="split for feature caching.*import MODEL --lora"):
        pipeline.set_adapters([str(styles["ink"])])


@pytest.mark.parametrize(
    ("backend", "settings", "told"),
    [
        ("onnxruntime", {}, "an adapter cannot change denoiser, which runs on onnxruntime; allowed"),
        (
            "tensorrt",
            {"graphs": "cuda"},
            "runs on tensorrt with weights fixed; allowed: .*; on tensorrt with weights refit",
        ),
        ("torch", {"quantize": "int8"}, "runs on torch with quantize int8; allowed"),
    ],
)
def test_weights_that_cannot_be_changed_are_refused(
    backend: str, settings: dict[str, str], told: str, styles: dict[str, Path], imported: Checkpoint
) -> None:
    manifest = Pipeline(imported("sd1")).manifest
    unet = replace(manifest.components["denoiser"], backend=backend, settings=settings)
    pipeline = Pipeline(imported("sd1"), components={"denoiser": unet}, threads=1)
    with pytest.raises(InvalidRequest, match=told) as caught:
        pipeline.set_adapters([str(styles["ink"])])
    assert "import MODEL --lora" in str(caught.value)
