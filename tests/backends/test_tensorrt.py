"""TensorRT: graphs become engines here, by TensorRT for RTX and for chips that are not here. Nothing is run: no GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from numpy.typing import NDArray
from onnx import TensorProto

import stillhouse
from stillhouse.backends import RunnerOptions, open_runner, tensorrt
from stillhouse.backends.engine import Shape, shapes_of
from stillhouse.backends.engine_weights import places
from stillhouse.backends.precision import half
from stillhouse.backends.quantize import static
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.signature import read_signature
from stillhouse.backends.tensorrt import build_engine
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import Gpu, gpus
from tests.backends.networks import network, node, unet, write

RTX = "tensorrt-rtx"
SHAPES_UNET = Path(stillhouse.__file__).parent / "models/shapes/weights/unet/model.onnx"
USUAL: dict[str, Shape] = {"sample": (2, 4, 16, 16), "timestep": (2,), "encoder_hidden_states": (2, 24, 128)}


def built(graph: Path, out: Path, rows: tuple[int, int] | None = None, **options: Any) -> bytes:
    """The engine of a graph for a chip of the Ada generation, at the usual shapes."""
    signature = read_signature(graph)
    usual = {
        name: USUAL.get(name) or tuple(axis if isinstance(axis, int) else 2 for axis in axes)
        for name, axes in signature.inputs.items()
    }
    options.setdefault("capability", "8.9")
    build_engine(graph, out, shapes=shapes_of(signature, usual, rows), name=RTX, **options)
    return out.read_bytes()


@pytest.mark.parametrize("rows", [None, (1, 4)])
def test_a_network_whose_weights_lie_beside_it_becomes_an_engine(tmp_path: Path, rows: tuple[int, int] | None) -> None:
    """It holds the weights, which are halves on disk and float32 to the graph, as the graph has them."""
    engine = built(SHAPES_UNET, tmp_path / "engine", rows, timings=tmp_path / "timings")
    weights = (SHAPES_UNET.parent / "diffusion_pytorch_model.safetensors").stat().st_size
    assert 1.5 * weights < len(engine) < 6 * weights
    assert (tmp_path / "timings").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "timings"]


def test_every_layer_may_be_marked_as_one_that_is_changed(tmp_path: Path) -> None:
    """As imported, and in halves. What is no weight of the graph's is told before anything is built."""
    half(SHAPES_UNET, tmp_path / "half.onnx")
    log = tensorrt._log(tensorrt_rtx)
    for graph in (SHAPES_UNET, tmp_path / "half.onnx"):
        parsed, parser = tensorrt._parsed(tensorrt_rtx, tensorrt_rtx.Builder(log), graph, log)
        assert all(parsed.mark_weights_refittable(place.name) for place in places(graph).values())
        del parser
    with pytest.raises(BackendFailed, match="so that nobody.weight may be changed"):
        built(SHAPES_UNET, tmp_path / "engine", refitted=["nobody.weight"])


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_such_an_engine_is_built_where_there_is_a_gpu_only(tmp_path: Path) -> None:
    """Another engine can be built without: how its weights lie is then known for good."""
    with pytest.raises(BackendFailed, match="could not build .*CUDA"):
        built(SHAPES_UNET, tmp_path / "engine", refitted=[place.name for place in places(SHAPES_UNET).values()])
    assert not (tmp_path / "engine").exists()


@pytest.mark.skipif(not gpus(), reason="an engine runs on a GPU only")
@pytest.mark.parametrize("graphs", ["none", "cuda"])
@pytest.mark.parametrize("name", ["tensorrt", RTX])
def test_a_refitted_engine_answers_as_torch_does_with_those_weights(tmp_path: Path, name: str, graphs: str) -> None:
    pytest.importorskip(tensorrt.MODULES[name])
    settings = {"weights": "refit", "graphs": graphs}
    engine = open_runner(SHAPES_UNET, name, RunnerOptions("auto", shapes=USUAL, cache=tmp_path, settings=settings))
    torch = open_runner(SHAPES_UNET, "torch")
    assert isinstance(engine, GraphRunner) and isinstance(torch, GraphRunner) and engine.weights and torch.weights
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in USUAL.items()}
    feeds["timestep"] = np.array([5, 900], np.float32)
    for kinds in (("to_q", "to_out.0", "conv1"), ("to_k", "conv2"), ()):
        layers = [layer for layer in torch.weights.shapes if kinds and layer.endswith(kinds)]
        changed = {layer: torch.weights.plain(layer) * 1.3 for layer in layers}
        for one in (engine, torch):
            assert one.weights
            one.weights.put(changed)
        (ours,), (theirs,) = engine(feeds).values(), torch(feeds).values()
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())


def test_a_graph_without_weights_of_layers_is_not_refitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (Gpu("One", 1 << 30, "8.9"),))
    graph = write(unet(), tmp_path / "model.onnx")
    usual = {
        name: tuple(axis if isinstance(axis, int) else 2 for axis in axes)
        for name, axes in read_signature(graph).inputs.items()
    }
    options = RunnerOptions("auto", shapes=usual, settings={"weights": "refit"})
    with pytest.raises(InvalidRequest, match=r"weights is 'refit' of .*model.onnx, whose weights are no floats"):
        open_runner(graph, RTX, options)


@pytest.mark.parametrize("capability", ["8.0", "8.6", "12.0"])
def test_engines_are_built_for_chips_that_are_not_here(tmp_path: Path, capability: str) -> None:
    assert built(write(unet(), tmp_path / "model.onnx"), tmp_path / "engine", capability=capability)


def test_what_a_chip_cannot_compute_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="could not build .*FP32 GEMM is not supported"):
        built(write(unet(), tmp_path / "model.onnx"), tmp_path / "engine", capability="7.5")
    assert not (tmp_path / "engine").exists()


def test_precision_stands_in_the_graph(tmp_path: Path) -> None:
    """An engine of halves is smaller than one of float32, and so is one of integers."""
    rng = np.random.default_rng(0)

    def feeds() -> dict[str, NDArray[Any]]:
        drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in USUAL.items()}
        return {**drawn, "timestep": np.array([5, 900], np.float32)}

    whole = built(SHAPES_UNET, tmp_path / "whole")
    half(SHAPES_UNET, tmp_path / "half.onnx")
    assert len(built(tmp_path / "half.onnx", tmp_path / "half")) < 0.8 * len(whole)
    static(SHAPES_UNET, tmp_path / "integers.onnx", [feeds() for _ in range(2)], numbers="int8")
    assert len(built(tmp_path / "integers.onnx", tmp_path / "integers")) < len(whole)
    static(SHAPES_UNET, tmp_path / "unsigned.onnx", [feeds()])
    with pytest.raises(BackendFailed, match="is not understood: .*[Nn]on-zero zero point is not supported"):
        built(tmp_path / "unsigned.onnx", tmp_path / "unsigned")
    assert not (tmp_path / "unsigned").exists()


def test_an_operator_that_nobody_knows_is_told(tmp_path: Path) -> None:
    model = network([node("Abs", ["x"], ["y"])], [("x", ["n", 2])], [("y", ["n", 2], TensorProto.FLOAT)], {})
    model.graph.node[0].op_type = "Distil"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendFailed, match="is not understood: .*Distil"):
        built(tmp_path / "model.onnx", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_chip_that_nobody_knows_is_told_with_those_that_are(tmp_path: Path) -> None:
    graph = write(unet(), tmp_path / "model.onnx")
    with pytest.raises(InvalidRequest, match=r"compute capability 9.0; allowed: .*8.9"):
        built(graph, tmp_path / "engine", capability="9.0")


def test_settings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    graph = write(unet(), tmp_path / "model.onnx")
    for settings, told in (
        ({"row": "1-8"}, "did you mean 'rows'"),
        ({"rows": "8-1"}, "rows is '8-1'; allowed: the least and the most: 1-8"),
        ({"graphs": "yes"}, "no graphs 'yes'"),
        ({"weights": "loose"}, "no weights 'loose'; allowed: fixed, refit"),
        ({"device": "cpu"}, "device is 'cpu'; allowed: cuda, cuda:1"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            open_runner(graph, RTX, RunnerOptions("auto", settings=settings))
    with pytest.raises(UnsupportedPrecision, match="precision 'f16' of a graph that computes in f32; allowed: auto"):
        open_runner(graph, RTX, RunnerOptions("f16"))
    with pytest.raises(InvalidRequest, match="no shape for input"):
        open_runner(graph, RTX, RunnerOptions("auto"))


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_gpu_nothing_is_opened_and_the_reason_is_told() -> None:
    with pytest.raises(RuntimeMissing, match="tensorrt-rtx needs a GPU: "):
        open_runner(SHAPES_UNET, RTX, RunnerOptions("auto", shapes=USUAL))
    found = tensorrt.status(RTX)
    assert found.version and found.reason and found.reason.startswith("there is no GPU: ") and not found.devices


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (Gpu("One", 1 << 30, "8.9"),))
    with pytest.raises(InvalidRequest, match=r"there is no GPU cuda:1 among cuda:0 \(One\)"):
        open_runner(SHAPES_UNET, RTX, RunnerOptions("auto", shapes=USUAL, settings={"device": "cuda:1"}))


def test_tensorrt_itself_is_a_row_with_the_line_that_installs_it() -> None:
    with pytest.raises(RuntimeMissing, match="not installed; pip install tensorrt"):
        tensorrt.status("tensorrt")


def test_times_that_cannot_be_read_are_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "timings").write_bytes(content := b"what another build has written, or half of it")
    assert built(SHAPES_UNET, tmp_path / "engine", timings=tmp_path / "timings")
    assert (tmp_path / "timings").read_bytes() != content


def test_graphs_are_of_one_number_of_rows() -> None:
    with pytest.raises(InvalidRequest, match="graphs of an engine for several numbers of rows; allowed: graphs, or"):
        tensorrt._settings({"rows": "1-4", "graphs": "cuda"})


def test_floats_of_eight_bits_are_built_for_chips_that_have_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in USUAL.items()}
    static(SHAPES_UNET, tmp_path / "fp8.onnx", [{**drawn, "timestep": np.array([5, 900], np.float32)}], numbers="fp8")
    whole = built(SHAPES_UNET, tmp_path / "whole", capability="8.9")
    small = built(tmp_path / "fp8.onnx", tmp_path / "fp8", capability="8.9")
    assert len(small) < 0.9 * len(whole)
    with pytest.raises(BackendFailed, match="could not build|is not understood"):
        built(tmp_path / "fp8.onnx", tmp_path / "old", capability="8.0")
