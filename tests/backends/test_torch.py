"""The torch backend runs the network that a graph was exported from, and comes to what the graph says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import numpy as np
import onnx
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

import stillhouse
from stillhouse.backends import Runner, RunnerOptions, open_runner, torch_attention, torch_device
from stillhouse.backends import torch as torch_backend
from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.convert.families.stable_diffusion import export_text_encoder, export_unet, export_vae
from stillhouse.convert.weights import write_module
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import Gpu
from tests.backends import networks
from tests.checkpoints import text_config, unet, vae

pytestmark = pytest.mark.usefixtures("torch_threads")
EXACT = 1e-5
"""float32 rounds at 6e-8, sums have up to 1,200 terms of either sign, and some forty layers follow one another: errors
stay near 1e-6 of the largest value."""
TOKENS = 20
UNETS = ("sd1", "xl", "lcm")
STORED = {"lcm": torch.float16, "text-projected": torch.bfloat16}
"""Weights on disk; what is computed in does not depend on it."""
TEXTS = ("text", "text-penultimate", "text-projected", "text-projected-penultimate")

Feeds: TypeAlias = dict[str, NDArray[Any]]
Exported: TypeAlias = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A graph by kind, beside its network; exported at the first call. Not to be changed."""
    root = tmp_path_factory.mktemp("networks")

    def find(kind: str) -> Path:
        folder = root / kind.partition("/")[0]
        if not folder.exists():
            torch.manual_seed(3)
            export(folder.name, folder)
        return root / kind if "/" in kind else folder / "model.onnx"

    return find


def export(kind: str, folder: Path) -> None:
    dtype = STORED.get(kind, torch.float32)
    if kind.startswith("vae"):
        autoencoder = vae().to(dtype)
        weights = write_module(autoencoder, folder)
        export_vae(autoencoder, folder / "encoder.onnx", folder / "decoder.onnx", weights)
    elif kind.startswith("text"):
        shape = transformers.CLIPTextModelWithProjection if "projected" in kind else transformers.CLIPTextModel
        encoder = shape(text_config("gelu", projection=16)).to(dtype)
        weights = write_module(encoder, folder)
        export_text_encoder(encoder, folder / "model.onnx", weights, 77, penultimate="penultimate" in kind)
    else:
        network = unet("sd1", time_cond_proj_dim=16) if kind == "lcm" else unet(kind)
        weights = write_module(network.to(dtype), folder)
        export_unet(network, folder / "model.onnx", weights, TOKENS)


def feeds_of(kind: str, rows: int = 2, height: int = 8, width: int = 12) -> Feeds:
    generator = np.random.default_rng(7)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal((rows, *shape)).astype(np.float32)

    if kind.startswith("text"):
        ids = generator.integers(0, 400, (rows, 77))
        ids[:, 30:] = text_config("gelu").eos_token_id
        return {"input_ids": ids}
    if kind == "vae/encoder.onnx":
        return {"sample": normal(3, 4 * height, 4 * width)}
    if kind == "vae/decoder.onnx":
        return {"latent_sample": normal(4, height, width)}
    feeds: Feeds = {
        "sample": normal(4, height, width),
        "timestep": np.linspace(3.5, 998, rows, dtype=np.float32),
        "encoder_hidden_states": normal(TOKENS, 64 if kind == "xl" else 32),
    }
    if kind == "xl":
        sizes = np.array([[64, 64, 0, 8, 64, 64]], np.float32)
        return {**feeds, "text_embeds": normal(16), "time_ids": np.repeat(sizes, rows, axis=0)}
    return {**feeds, "timestep_cond": normal(16)} if kind == "lcm" else feeds


def open_torch(graph: Path, precision: str = "f32", **settings: str) -> Runner:
    return open_runner(graph, "torch", RunnerOptions(precision, settings=settings))


def sqnr(other: NDArray[Any], reference: NDArray[Any]) -> float:
    noise = np.sum((other.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise))


@pytest.mark.parametrize("kind", [*UNETS, "vae/encoder.onnx", "vae/decoder.onnx", *TEXTS])
def test_comes_to_what_the_graph_says(exported: Exported, kind: str) -> None:
    """Of a text encoder, also which layer's states: the wrong ones, without the norm, would be far out of tolerance."""
    graph, runner = open_runner(exported(kind)), open_torch(exported(kind))
    assert (runner.backend, runner.precision, set(runner.layer_precisions)) == ("torch", "f32", {"f32"})
    assert [(spec.name, spec.dtype) for spec in runner.inputs] == [(spec.name, spec.dtype) for spec in graph.inputs]
    assert [spec.shape for spec in runner.inputs] == [spec.shape for spec in graph.inputs]
    for rows, height, width in ((2, 8, 12), (3, 12, 8)):
        feeds = feeds_of(kind, rows, height, width)
        want, got = graph(feeds), runner(feeds)
        assert list(got) == list(want)
        for name, array in want.items():
            assert got[name].dtype == np.float32
            assert got[name].flags.c_contiguous
            assert networks.relative_error(got[name], array) < EXACT


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {"attention": how}) for kind in ("xl", "vae/decoder.onnx") for how in ("vanilla", "sliced")),
        ("text", {"attention": "vanilla"}),
        *((kind, {"attention": "flash"}) for kind in ("sd1", "xl")),
        ("sd1", {"attention": "flash", "qkv": "joined"}),
        *((kind, {"memory_format": "channels_last"}) for kind in ("xl", "vae/encoder.onnx", "vae/decoder.onnx")),
        ("sd1", {"attention": "sliced", "memory_format": "channels_last"}),
        *((kind, {"qkv": "joined"}) for kind in UNETS),
        ("xl", {"qkv": "joined", "kernels": "fused", "memory_format": "channels_last"}),
        *((kind, {"kernels": "fused", "memory_format": "channels_last"}) for kind in ("sd1", "xl", "vae/decoder.onnx")),
    ],
)  # fmt: skip
def test_no_setting_changes_the_result(exported: Exported, kind: str, settings: dict[str, str]) -> None:
    feeds = feeds_of(kind)
    want, got = open_torch(exported(kind))(feeds), open_torch(exported(kind), **settings)(feeds)
    for name, array in want.items():
        assert got[name].flags.c_contiguous
        assert networks.relative_error(got[name], array) < EXACT


def test_attention_is_computed_as_asked(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from torch: the fused operation, or the product with the values, of all heads or of either half of them."""
    calls: list[tuple[str, int]] = []
    for module, name, axis in ((torch.nn.functional, "scaled_dot_product_attention", 1), (torch, "bmm", 0)):
        monkeypatch.setattr(module, name, _counting(getattr(module, name), name, axis, calls))
    heads = {}
    for how in ("sdpa", "vanilla", "sliced"):
        runner = open_torch(exported("sd1"), attention=how)
        calls.clear()
        runner(feeds_of("sd1", rows=1))
        assert {name for name, _ in calls} == {"scaled_dot_product_attention" if how == "sdpa" else "bmm"}
        heads[how] = [count for _, count in calls]
    assert len(heads["sdpa"]) == runner.layer_precisions["f32"] - _layers(exported("sd1"))
    assert heads["vanilla"] == heads["sdpa"]
    assert heads["sliced"] == [half for count in heads["vanilla"] for half in (count // 2, count - count // 2)]


def test_a_kernel_that_was_asked_for_computes_every_attention(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And torch's choice among them, which is of the whole process, is left alone."""
    graph = exported("sd1")
    calls: list[Any] = []
    flash = torch_attention.ATTENTION_KERNELS["flash"]

    def noting(*heads: torch.Tensor) -> torch.Tensor:
        calls.append(heads)
        return flash(*heads)

    monkeypatch.setattr(torch_attention, "ATTENTION_KERNELS", {**torch_attention.ATTENTION_KERNELS, "flash": noting})
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    runner = open_torch(graph, attention="flash")
    runner(feeds_of("sd1", rows=1))
    assert len(calls) == runner.layer_precisions["f32"] - _layers(graph)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    for name, kind in (("flash", "vae/encoder.onnx"), ("flash", "text")):
        with pytest.raises(InvalidRequest, match="attention is 'flash' in a network that is no denoiser"):
            open_torch(exported(kind), attention=name)


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient"])
def test_kernels_are_called_as_torch_declares_them(name: str) -> None:
    """Without numbers, on the GPU that is not here: shapes and dtypes come out as they would there."""
    with FakeTensorMode():
        query, text = (torch.empty(2, 8, tokens, 40, dtype=torch.float16, device="cuda") for tokens in (4096, 77))
        mixed = torch_attention.ATTENTION_KERNELS[name](query, text, text)
    assert mixed.shape == query.shape and mixed.dtype == torch.float16 and mixed.device.type == "cuda"


def _layers(graph: Path) -> int:
    """Convolutions and linear layers, counted as kernels and matrices in the weights file."""
    layout = read_safetensors_index(graph.with_name("diffusion_pytorch_model.safetensors"))
    return sum(len(tensor.shape) in (2, 4) for tensor in layout.values())


def _counting(function: Callable[..., Any], name: str, axis: int, calls: list[tuple[str, int]]) -> Callable[..., Any]:
    def counted(query: torch.Tensor, *rest: Any, **others: Any) -> Any:
        calls.append((name, query.shape[axis]))
        return function(query, *rest, **others)

    return counted


@pytest.mark.parametrize("kind", [*UNETS, "vae/encoder.onnx", "vae/decoder.onnx", "text-projected"])
def test_bfloat16_is_executed_and_close(exported: Exported, kind: str) -> None:
    """bfloat16 keeps 8 bits: one rounding is 2e-3, 57 dB; a few dozen that add up in squares cost 15 to 20 dB."""
    runner, feeds = open_torch(exported(kind), "bf16"), feeds_of(kind)
    assert (runner.precision, set(runner.layer_precisions)) == ("bf16", {"bf16"})
    want = open_torch(exported(kind))(feeds)
    for name, array in runner(feeds).items():
        assert array.dtype == np.float32
        assert 30 < sqnr(array, want[name]) < 70


def test_bfloat16_does_not_reach_timesteps(exported: Exported) -> None:
    """To it, 998 and 999 are the same number."""
    runner, feeds = open_torch(exported("sd1"), "bf16"), feeds_of("sd1", rows=1)
    one, other = (runner({**feeds, "timestep": np.array([t], np.float32)})["out_sample"] for t in (998, 999))
    assert networks.relative_error(one, other) > 1e-3


def test_auto_is_bfloat16_where_the_processor_has_it(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = torch.cpu.get_capabilities()
    has = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert open_torch(exported("sd1"), "auto").precision == ("bf16" if has else "f32")
    for instructions, precision in (({"avx512_f": True, "avx512_bf16": False}, "f32"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda instructions=instructions: instructions)
        assert open_torch(exported("sd1"), "auto").precision == precision


def test_layer_precisions_count_what_runs(exported: Exported) -> None:
    """By hand, of the text encoder: two layers with four projections, an attention and two linear layers each."""
    assert open_torch(exported("text")).layer_precisions == {"f32": 2 * (4 + 1 + 2)}
    assert open_torch(exported("text-projected"), "bf16").layer_precisions == {"bf16": 2 * (4 + 1 + 2) + 1}


def test_the_other_half_of_an_autoencoder_is_not_kept(exported: Exported) -> None:
    halves = [open_torch(exported(f"vae/{half}.onnx")).layer_precisions["f32"] for half in ("encoder", "decoder")]
    whole = vae()
    heavy = [part for part in whole.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    assert sum(halves) == len(heavy) + 2  # and one attention each
    assert min(halves) > 0


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("xl", {"sample": (2, 4, 8, 12)}),
        ("vae/decoder.onnx", {"latent_sample": (2, 4, 8, 12)}),
        ("vae/encoder.onnx", {"sample": (2, 3, 32, 48)}),
        ("text-projected", {"input_ids": (2, 77)}),
    ],
)
def test_static_shapes_are_kept_and_shown(exported: Exported, kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    runner, feeds = open_runner(exported(kind), "torch", RunnerOptions(shapes=shapes)), feeds_of(kind)
    assert {spec.name: spec.shape for spec in runner.inputs} == {name: array.shape for name, array in feeds.items()}
    assert {spec.name: spec.shape for spec in runner.outputs} == {n: array.shape for n, array in runner(feeds).items()}
    with pytest.raises(InvalidRequest, match="has shape"):
        runner(feeds_of(kind, rows=3))


@pytest.mark.parametrize("kind", ["sd1", "vae/encoder.onnx", "text-projected"])
def test_shapes_that_are_not_known_are_none(exported: Exported, kind: str) -> None:
    for spec in open_torch(exported(kind)).outputs:
        assert spec.shape[0] is None
        assert spec.shape[2:] in ((None, None), (), (32,))


def test_feeds_that_do_not_fit_are_refused(exported: Exported) -> None:
    runner, feeds = open_torch(exported("sd1")), feeds_of("sd1")
    with pytest.raises(InvalidRequest, match="no array for input timestep"):
        runner({name: array for name, array in feeds.items() if name != "timestep"})
    with pytest.raises(InvalidRequest, match=r"an array of float64; allowed: float32"):
        runner({**feeds, "sample": feeds["sample"].astype(np.float64)})
    with pytest.raises(InvalidRequest, match=r"input 'timestep' has shape \[1\]"):
        runner({**feeds, "timestep": feeds["timestep"][:1]})


def test_what_torch_gives_up_on_is_said_in_one_line(exported: Exported) -> None:
    feeds = feeds_of("vae/encoder.onnx", height=1, width=1)
    feeds["sample"] = feeds["sample"][:, :, :1, :1]
    with pytest.raises(BackendFailed, match=r"torch could not run .*encoder.onnx: [^\n]+$"):
        open_torch(exported("vae/encoder.onnx"))(feeds)


@pytest.mark.parametrize("kind", ["sd1", "vae/encoder.onnx", "text-projected"])
def test_results_belong_to_the_caller(exported: Exported, kind: str) -> None:
    runner, feeds = open_torch(exported(kind)), feeds_of(kind, rows=1)
    first = runner(feeds)
    remaining = {name: array.copy() for name, array in first.items()}
    runner({name: array[::-1] * 2 if array.dtype == np.float32 else array for name, array in feeds.items()})
    for name, array in remaining.items():
        np.testing.assert_array_equal(first[name], array)
        first[name][:] = 0  # and may be written to
    for array in feeds.values():
        array.setflags(write=False)  # feeds need not be
    for name, array in runner(feeds).items():
        np.testing.assert_array_equal(array, remaining[name])


def test_a_row_hardly_depends_on_its_neighbours(exported: Exported) -> None:
    """Not to the last bit, as on the other engines: torch cuts matrix products by their size."""
    runner, feeds = open_torch(exported("sd1")), feeds_of("sd1", rows=4)
    together = runner(feeds)["out_sample"]
    for row in range(4):
        alone = runner({name: array[row : row + 1] for name, array in feeds.items()})["out_sample"]
        assert networks.relative_error(alone, together[row : row + 1]) < EXACT


def test_threads_are_set_for_the_process_at_every_call(exported: Exported) -> None:
    feeds = feeds_of("text")
    one, two = (open_runner(exported("text"), "torch", RunnerOptions(threads=n)) for n in (1, 2))
    free = open_torch(exported("text"))
    results = []
    for runner, expected in ((one, 1), (two, 2), (free, 2), (one, 1)):
        results.append(runner(feeds)["last_hidden_state"])
        assert torch.get_num_threads() == expected
    assert all(networks.relative_error(result, results[0]) < EXACT for result in results)


def test_threads_wait_asleep(exported: Exported) -> None:
    """As torch's OpenMP itself says when it is loaded."""
    program = f"""if True:
        from pathlib import Path
        from stillhouse.backends import open_runner
        open_runner(Path({str(exported("text"))!r}), "torch")"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment["OMP_DISPLAY_ENV"] = "TRUE"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atention": "sdpa"}, "no setting of torch 'atention'; allowed: .*; did you mean 'attention'"),
        ({"attention": "flesh"}, "no attention 'flesh'; allowed: sdpa, vanilla, sliced, flash, .*did you mean 'flash'"),
        ({"memory_format": "channel_last"}, "did you mean 'channels_last'"),
        ({"compile": "yes"}, "no compile 'yes'; allowed: none, full, regional"),
        ({"device": "gpu"}, "device is 'gpu'; allowed: cpu, cuda, cuda:1"),
        ({"graphs": "cuda"}, "graphs is 'cuda' with device cpu; allowed: none, or a GPU as the device"),
        ({"offload": "cpu"}, "offload is 'cpu' with device cpu"),
        (
            {"device": "cuda", "graphs": "cuda", "offload": "cpu"},
            "graphs cannot be used with offload, which moves the weights",
        ),
        ({"device": "cuda", "quantize": "int8", "offload": "cpu"}, "quantize cannot be used with offload"),
        (
            {"device": "cuda", "kernels": "fused", "offload": "cpu"},
            "which read the weights, cannot be used with offload",
        ),
        (
            {"qkv": "joined", "attention": "vanilla"},
            "qkv is 'joined' with attention vanilla; allowed: sdpa, flash, cudnn, efficient",
        ),
    ],
)
def test_settings_that_are_not_known_are_refused(exported: Exported, settings: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_torch(exported("sd1"), **settings)


def test_settings_that_would_change_nothing_are_refused(exported: Exported) -> None:
    with pytest.raises(InvalidRequest, match="attention is 'sliced' in a text encoder; allowed: any other"):
        open_torch(exported("text"), attention="sliced")
    with pytest.raises(InvalidRequest, match="'channels_last' in a network without convolutions"):
        open_torch(exported("text"), memory_format="channels_last")
    plain = Path(stillhouse.__file__).parent / "shapes/weights/vae/decoder.onnx"  # it has no attention
    assert open_torch(plain, attention="sdpa").layer_precisions.keys() == {"f32"}
    for how in ("vanilla", "sliced"):
        with pytest.raises(InvalidRequest, match=f"attention is '{how}' in a network without attention"):
            open_torch(plain, attention=how)


def test_transformers_in_eight_bits_are_close_and_counted(exported: Exported) -> None:
    """Eight bits of weights and of inputs, each with its own scale: a product keeps some 40 dB, forty of them 25.

    torchao is in the extra `gpu` only: where it is installed, diffusers remarks on it whenever it is imported.
    """
    pytest.importorskip("torchao")
    runner, feeds = open_torch(exported("sd1"), quantize="int8"), feeds_of("sd1")
    assert runner.precision == "mixed" and runner.layer_precisions["int8"] >= 10
    want = open_torch(exported("sd1"))(feeds)
    for name, array in runner(feeds).items():
        assert 20 < sqnr(array, want[name]) < 60


def test_no_row_in_eight_bits_knows_its_neighbours(exported: Exported) -> None:
    """Were there one scale over a batch, a loud neighbour would cost a quiet row its last bits."""
    pytest.importorskip("torchao")
    runner, feeds = open_torch(exported("sd1"), quantize="int8"), feeds_of("sd1", rows=2)
    loud = {**feeds, "sample": np.stack([feeds["sample"][0], 100 * feeds["sample"][1]])}
    quiet, in_batch = (runner(batch)["out_sample"][0] for batch in (feeds, loud))
    assert networks.relative_error(in_batch, quiet) < 3e-5


def test_what_cannot_be_put_into_eight_bits_is_refused(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.backends.torch.find_spec", lambda name: object())
    with pytest.raises(InvalidRequest, match="quantize is 'int8' in a network without transformer blocks"):
        open_torch(exported("text"), quantize="int8")
    with pytest.raises(
        UnsupportedPrecision, match="fp8 was requested with device cpu; allowed: a GPU of compute capability 8.9"
    ):
        open_torch(exported("sd1"), quantize="fp8")
    with pytest.raises(InvalidRequest, match="qkv is 'joined' in a network that is no denoiser"):
        open_torch(exported("vae/decoder.onnx"), qkv="joined")
    monkeypatch.setattr("stillhouse.backends.torch.find_spec", lambda name: None if name == "torchao" else object())
    with pytest.raises(RuntimeMissing, match="torchao"):
        open_torch(exported("sd1"), quantize="int8")


def test_a_network_without_parts_that_kernels_know_is_refused(exported: Exported) -> None:
    with pytest.raises(InvalidRequest, match="kernels is 'fused' in a network that has nothing to fuse"):
        open_torch(exported("text"), kernels="fused")


def test_a_gpu_that_cannot_be_used_is_told_with_what_is_missing(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UnsupportedPrecision,
        match="torch cannot compute in precision 'int8' with device cuda; allowed: f32, f16, bf16, auto",
    ):
        open_torch(exported("sd1"), "int8", device="cuda")
    monkeypatch.setattr(torch_device, "cuda_build_version", lambda: None)
    with pytest.raises(RuntimeMissing, match="was built without CUDA; install the build of torch"):
        open_torch(exported("sd1"), "f16", device="cuda")
    monkeypatch.setattr(torch_device, "cuda_build_version", lambda: "13.0")
    monkeypatch.setattr(torch_device, "find_gpus", lambda: (Gpu("NVIDIA H200", 141 << 30, "9.0"),))
    with pytest.raises(InvalidRequest, match=r"no GPU cuda:4 among cuda:0 \(NVIDIA H200\)"):
        open_torch(exported("sd1"), "f16", device="cuda:4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeMissing, match="for CUDA 13.0 finds no GPU here"):
        open_torch(exported("sd1"), "f16", device="cuda")


def test_what_torch_was_built_for_is_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_device.cuda_build_version() == torch.version.cuda
    for text, expected_version in (
        ("cuda: Optional[str] = '13.0'\n", "13.0"),
        ("cuda = '12.8'\n", "12.8"),
        ("cuda = None\n", None),
    ):
        (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{text}hip = None\n")
        monkeypatch.setattr(
            torch_device, "find_spec", lambda name: ModuleSpec(name, None, origin=str(tmp_path / "__init__.py"))
        )
        assert torch_device.cuda_build_version() == expected_version


def test_no_gpu_memory_is_held_where_nothing_ran_there() -> None:
    assert torch_device.peak_gpu_memory() is None or torch.cuda.is_available()


def test_other_options_are_refused(exported: Exported) -> None:
    with pytest.raises(UnsupportedPrecision, match="torch cannot compute in precision 'f16'; allowed: f32, bf16, auto"):
        open_torch(exported("sd1"), "f16")
    with pytest.raises(InvalidRequest, match="streams is 2 on torch"):
        open_runner(exported("sd1"), "torch", RunnerOptions(streams=2))
    with pytest.raises(InvalidRequest, match=r"shape \[2, 5, 8, 8\]"):
        open_runner(exported("sd1"), "torch", RunnerOptions(shapes={"sample": (2, 5, 8, 8)}))


NOT_ONNX = r"allowed: .*torch runs diffusers' networks, not ONNX files; open it with onnxruntime or openvino"


def test_a_bare_onnx_file_is_refused(tmp_path: Path) -> None:
    graph = networks.write_model(networks.unet(), tmp_path / "model.onnx")
    with pytest.raises(BackendFailed, match=rf"model.onnx has no config.json beside it; {NOT_ONNX}"):
        open_runner(graph, "torch")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(BackendFailed, match=rf"model.onnx is not as exported: .*; {NOT_ONNX}"):
        open_runner(graph, "torch")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"_class_name": "FluxTransformer2DModel"}', "describes a FluxTransformer2DModel, which is not known"),
        ('{"architectures": ["T5EncoderModel"]}', "describes a T5EncoderModel, which is not known"),
        ("{}", "names no class of network"),
        ("[1]", "names no class of network"),
        ('{"architectures": []}', "names no class of network"),
        ('{"_class_name": ', "names no class of network"),
    ],
)
def test_another_network_is_refused(exported: Exported, tmp_path: Path, config: str, message: str) -> None:
    graph = copy_pipeline(exported("text"), tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BackendFailed, match=f"config.json {message}; {NOT_ONNX}"):
        open_runner(graph, "torch")


def test_a_graph_that_was_quantised_since_is_refused(exported: Exported, tmp_path: Path) -> None:
    graph = copy_pipeline(exported("text"), tmp_path)
    model = onnx.load(graph, load_external_data=False)
    model.graph.node.add(op_type="DynamicQuantizeLinear", input=["last_hidden_state"], output=["q", "s", "z"])
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(
        BackendFailed, match="is not as exported: it should compute in float32 with the weights in model.safetensors"
    ):
        open_runner(graph, "torch")


def test_a_graph_of_another_network_is_refused(exported: Exported, tmp_path: Path) -> None:
    graph = copy_pipeline(exported("sd1"), tmp_path)
    (tmp_path / "config.json").write_bytes(exported("vae/encoder.onnx").with_name("config.json").read_bytes())
    with pytest.raises(BackendFailed, match="has no fitting weights for|could not open"):
        open_runner(graph, "torch")
    graph = copy_pipeline(exported("vae/encoder.onnx"), tmp_path / "vae")
    model = onnx.load(graph, load_external_data=False)
    model.graph.output.pop()
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(BackendFailed, match="has inputs sample and outputs mean, which no AutoencoderKL has"):
        open_runner(graph, "torch")


def test_of_missing_weights_three_are_named(exported: Exported, tmp_path: Path) -> None:
    graph = copy_pipeline(exported("text"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] + 1}))
    names = r"\S+\.layer_norm1\.bias, \S+\.layer_norm1\.weight, \S+\.layer_norm2\.bias"
    message = rf"no fitting weights for 16 tensors of the network, such as {names}; import the model again"
    with pytest.raises(BackendFailed, match=message):
        open_runner(graph, "torch")


def test_a_text_graph_that_does_not_tell_its_layer_is_refused(exported: Exported, tmp_path: Path) -> None:
    graph = copy_pipeline(exported("text"), tmp_path)
    model = onnx.load(graph, load_external_data=False)
    model.graph.node[-1].op_type = "RMSNormalization"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(
        BackendFailed,
        match="does not show whether its hidden states come from the last layer or the one before; import",
    ):
        open_runner(graph, "torch")


def test_opening_says_nothing(exported: Exported, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("text", "sd1"):
        open_torch(exported(kind))
    assert capfd.readouterr() == ("", "")


def test_importing_the_backend_imports_no_torch() -> None:
    program = "import sys, stillhouse.backends.torch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.large
@pytest.mark.parametrize("how", ["regional", "full"])
@pytest.mark.parametrize("kind", ["sd1", "vae/decoder.onnx", "text"])
def test_compiling_does_not_change_the_result(exported: Exported, kind: str, how: str) -> None:
    """Half a minute and more each, for the C++ compiler."""
    feeds = feeds_of(kind)
    shapes = {name: array.shape for name, array in feeds.items()}
    runner = open_runner(exported(kind), "torch", RunnerOptions(shapes=shapes, settings={"compile": how}))
    want = open_torch(exported(kind))(feeds)
    for name, array in runner(feeds).items():
        assert networks.relative_error(array, want[name]) < EXACT
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0


def copy_pipeline(graph: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in graph.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert json.loads((folder / "config.json").read_bytes())
    return folder / graph.name


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_weights_in_eight_bits_are_not_run_as_for_inference_only(
    quantize: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchao's weights are of a class of their own, which that mode of torch refuses."""
    modes: list[tuple[bool, bool]] = []
    monkeypatch.setattr(torch_backend, "_quantize", lambda module, how, device: None)
    monkeypatch.setattr(torch_backend, "_is_quantized", lambda part: True)
    network = open_torch(exported("sd1"), quantize=quantize)
    forward = diffusers.UNet2DConditionModel.forward

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return forward(self, *given, **named)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", watched)
    network(feeds_of("sd1"))
    assert modes == [(quantize == "none", False)]
