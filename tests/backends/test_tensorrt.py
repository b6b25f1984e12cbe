"""TensorRT: graphs become engines here, by TensorRT for RTX and for chips that are not here. Nothing is run: no GPU."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import stillhouse
from stillhouse.backends import RunnerOptions, open_runner, tensorrt
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.quantize import quantize_static
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.backends.tensorrt import build_engine
from stillhouse.backends.tensorrt_cache import Shape, batch_profiles, shape_ranges
from stillhouse.backends.tensorrt_weights import find_refittable
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from stillhouse.gpu import Gpu, find_gpus
from tests.backends.networks import make_model, node, unet, write_model

RTX = "tensorrt-rtx"
SHAPES_UNET = Path(stillhouse.__file__).parent / "shapes/weights/unet/model.onnx"
USUAL: dict[str, Shape] = {"sample": (2, 4, 16, 16), "timestep": (2,), "encoder_hidden_states": (2, 24, 128)}


def build(graph: Path, out: Path, rows: Sequence[int] = (), **options: Any) -> bytes:
    """The engine of a graph for a chip of the Ada generation, at the usual shapes, or for batches of some sizes."""
    signature = read_signature(graph)
    usual = {
        name: USUAL.get(name) or tuple(axis if isinstance(axis, int) else 2 for axis in axes)
        for name, axes in signature.inputs.items()
    }
    options.setdefault("capability", "8.9")
    ranges = options.pop("ranges", {})
    profiles = batch_profiles(signature, usual, rows) if rows else [shape_ranges(signature, usual, ranges)]
    build_engine(graph, out, profiles=profiles, name=RTX, **options)
    return out.read_bytes()


@pytest.mark.parametrize(
    "options", [{}, {"ranges": {"batch": (1, 4), "height": (8, 16)}}, {"rows": (1, 2, 4)}], ids=repr
)
def test_a_network_whose_weights_lie_beside_it_becomes_an_engine(tmp_path: Path, options: dict[str, Any]) -> None:
    """It holds the weights, which are halves on disk and float32 to the graph, as the graph has them: once, for however
    many sizes of batches it is tuned."""
    engine = build(SHAPES_UNET, tmp_path / "engine", timings=tmp_path / "timings", **options)
    weights = (SHAPES_UNET.parent / "diffusion_pytorch_model.safetensors").stat().st_size
    assert 1.5 * weights < len(engine) < 6 * weights
    assert (tmp_path / "timings").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "timings"]


def test_every_layer_may_be_marked_as_one_that_is_changed(tmp_path: Path) -> None:
    """As imported, and in halves. What is no weight of the graph's is told before anything is built."""
    convert_to_float16(SHAPES_UNET, tmp_path / "half.onnx")
    log = tensorrt._make_logger(tensorrt_rtx)
    for graph in (SHAPES_UNET, tmp_path / "half.onnx"):
        parsed, parser = tensorrt._parse_graph(tensorrt_rtx, tensorrt_rtx.Builder(log), graph, log)
        assert all(parsed.mark_weights_refittable(place.name) for place in find_refittable(graph).values())
        del parser
    with pytest.raises(BackendFailed, match="cannot make nobody.weight of .* refittable"):
        build(SHAPES_UNET, tmp_path / "engine", refittable=["nobody.weight"])


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_such_an_engine_is_built_where_there_is_a_gpu_only(tmp_path: Path) -> None:
    """Another engine can be built without: how its weights lie is then known for good."""
    with pytest.raises(BackendFailed, match="could not build .*CUDA"):
        build(
            SHAPES_UNET, tmp_path / "engine", refittable=[place.name for place in find_refittable(SHAPES_UNET).values()]
        )
    assert not (tmp_path / "engine").exists()


@pytest.mark.skipif(not find_gpus(), reason="an engine runs on a GPU only")
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
        changed = {layer: torch.weights.original(layer) * 1.3 for layer in layers}
        for one in (engine, torch):
            assert one.weights
            one.weights.update(changed)
        (ours,), (theirs,) = engine(feeds).values(), torch(feeds).values()
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max())


def test_a_graph_without_weights_of_layers_is_not_refitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_gpus", lambda: (Gpu("One", 1 << 30, "8.9"),))
    graph = write_model(unet(), tmp_path / "model.onnx")
    usual = {
        name: tuple(axis if isinstance(axis, int) else 2 for axis in axes)
        for name, axes in read_signature(graph).inputs.items()
    }
    options = RunnerOptions("auto", shapes=usual, settings={"weights": "refit"})
    with pytest.raises(InvalidRequest, match=r"weights is 'refit' for .*model.onnx, whose weights are not floats"):
        open_runner(graph, RTX, options)


@pytest.mark.parametrize("capability", ["8.0", "8.6", "12.0"])
def test_engines_are_built_for_chips_that_are_not_here(tmp_path: Path, capability: str) -> None:
    assert build(write_model(unet(), tmp_path / "model.onnx"), tmp_path / "engine", capability=capability)


def test_what_a_chip_cannot_compute_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="could not build .*FP32 GEMM is not supported"):
        build(write_model(unet(), tmp_path / "model.onnx"), tmp_path / "engine", capability="7.5")
    assert not (tmp_path / "engine").exists()


def test_precision_stands_in_the_graph(tmp_path: Path) -> None:
    """An engine of halves is smaller than one of float32, and so is one of integers."""
    rng = np.random.default_rng(0)

    def feeds() -> dict[str, NDArray[Any]]:
        drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in USUAL.items()}
        return {**drawn, "timestep": np.array([5, 900], np.float32)}

    whole = build(SHAPES_UNET, tmp_path / "whole")
    convert_to_float16(SHAPES_UNET, tmp_path / "half.onnx")
    assert len(build(tmp_path / "half.onnx", tmp_path / "half")) < 0.8 * len(whole)
    quantize_static(SHAPES_UNET, tmp_path / "integers.onnx", [feeds() for _ in range(2)], quant_type="int8")
    assert len(build(tmp_path / "integers.onnx", tmp_path / "integers")) < len(whole)
    quantize_static(SHAPES_UNET, tmp_path / "unsigned.onnx", [feeds()])
    with pytest.raises(BackendFailed, match="cannot parse .*[Nn]on-zero zero point is not supported"):
        build(tmp_path / "unsigned.onnx", tmp_path / "unsigned")
    assert not (tmp_path / "unsigned").exists()


def test_an_operator_that_nobody_knows_is_told(tmp_path: Path) -> None:
    model = make_model([node("Abs", ["x"], ["y"])], [("x", ["n", 2])], [("y", ["n", 2], TensorProto.FLOAT)], {})
    model.graph.node[0].op_type = "Distil"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendFailed, match="cannot parse .*Distil"):
        build(tmp_path / "model.onnx", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_a_chip_that_nobody_knows_is_told_with_those_that_are(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    with pytest.raises(InvalidRequest, match=r"compute capability 9.0; allowed: .*8.9"):
        build(graph, tmp_path / "engine", capability="9.0")


def test_settings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    for settings, told in (
        ({"axis": "rows=1-8"}, "did you mean 'axes'"),
        (
            {"axes": "rows=8-1"},
            "axes is 'rows=8-1'; allowed: minimum and maximum of each axis: rows=1-8,height=32-64",
        ),
        ({"axes": "rows=1-8,height"}, "axes is 'rows=1-8,height'"),
        ({"axes": "rows=1-8,rows=2-4"}, "axes is"),
        ({"batches": "some"}, "no batches 'some'; allowed: apart, together"),
        (
            {"axes": "rows=1-4", "graphs": "cuda"},
            "graphs is 'cuda', but axes lets lengths of inputs change; "
            "allowed: only one of the settings graphs and axes",
        ),
        (
            {"axes": "rows=1-4", "batches": "together"},
            "batches is 'together', but axes lets lengths of inputs change; "
            "allowed: only one of the settings batches and axes",
        ),
        ({"graphs": "yes"}, "no graphs 'yes'"),
        ({"weights": "loose"}, "no weights 'loose'; allowed: fixed, refit"),
        ({"device": "cpu"}, "device is 'cpu'; allowed: cuda, cuda:1"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            open_runner(graph, RTX, RunnerOptions("auto", settings=settings))
    with pytest.raises(
        UnsupportedPrecision, match="precision 'f16' was requested for a graph that computes in f32; allowed: auto"
    ):
        open_runner(graph, RTX, RunnerOptions("f16"))
    with pytest.raises(InvalidRequest, match="no shape for input"):
        open_runner(graph, RTX, RunnerOptions("auto"))


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_gpu_nothing_is_opened_and_the_reason_is_told() -> None:
    with pytest.raises(RuntimeMissing, match="tensorrt-rtx needs a GPU: "):
        open_runner(SHAPES_UNET, RTX, RunnerOptions("auto", shapes=USUAL))
    found = tensorrt.status(RTX)
    assert found.version and found.reason and found.reason.startswith("there is no GPU: ") and not found.devices


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_gpus", lambda: (Gpu("One", 1 << 30, "8.9"),))
    with pytest.raises(InvalidRequest, match=r"there is no GPU cuda:1 among cuda:0 \(One\)"):
        open_runner(SHAPES_UNET, RTX, RunnerOptions("auto", shapes=USUAL, settings={"device": "cuda:1"}))


def test_tensorrt_itself_is_a_row_with_the_line_that_installs_it() -> None:
    with pytest.raises(RuntimeMissing, match="not installed; pip install tensorrt"):
        tensorrt.status("tensorrt")


def _huge(folder: Path) -> Path:
    """A product with 2.3 GB of weights, zeros that take no place on disk."""
    rows, columns = 4096, 140_000
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(4 * rows * columns))):
        weights.external_data.add(key=key, value=value)
    with (folder / "w.bin").open("wb") as file:
        file.truncate(4 * rows * columns)
    ends = [
        helper.make_tensor_value_info(*one)
        for one in (("x", TensorProto.FLOAT, [1, rows]), ("y", TensorProto.FLOAT, [1, columns]))
    ]
    graph = helper.make_graph([node("MatMul", ["x", "w"], ["y"])], "huge", ends[:1], ends[1:], [weights])
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return folder / "model.onnx"


def test_weights_beyond_two_gigabytes_are_understood(tmp_path: Path) -> None:
    """More than a message of protobuf may have."""
    graph, log = _huge(tmp_path), tensorrt._make_logger(tensorrt_rtx)
    parsed, parser = tensorrt._parse_graph(tensorrt_rtx, tensorrt_rtx.Builder(log), graph, log)
    assert parsed.num_inputs == 1 and tuple(parsed.get_output(0).shape) == (1, 140_000)
    del parser


@pytest.mark.large
def test_they_become_an_engine_that_holds_them(tmp_path: Path) -> None:
    """Twenty seconds, and 7 GB of memory."""
    build_engine(
        _huge(tmp_path),
        tmp_path / "engine",
        profiles=[shape_ranges(read_signature(tmp_path / "model.onnx"), {})],
        name=RTX,
        capability="8.9",
    )
    assert (tmp_path / "engine").stat().st_size > 4 * 4096 * 140_000


def test_times_that_cannot_be_read_are_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "timings").write_bytes(content := b"what another build has written, or half of it")
    assert build(SHAPES_UNET, tmp_path / "engine", timings=tmp_path / "timings")
    assert (tmp_path / "timings").read_bytes() != content


def test_lengths_that_all_profiles_have_are_fixed() -> None:
    signature = Signature({"x": ("rows", 4, "height"), "t": ("rows",)}, ("out",), {}, "f32")
    usual = {"x": (2, 4, 16), "t": (2,)}
    assert tensorrt._axes(signature, [shape_ranges(signature, usual)]) == {"x": (2, 4, 16), "t": (2,)}
    ranged = [shape_ranges(signature, usual, {"height": (8, 16)})]
    assert tensorrt._axes(signature, ranged) == {"x": (2, 4, "height"), "t": (2,)}
    together = batch_profiles(signature, usual, (1, 2, 4))
    assert tensorrt._axes(signature, together) == {"x": ("rows", 4, 16), "t": ("rows",)}


class _FakeContext:
    """Of an engine that no GPU is here to run: it notes what it is told, and answers with nothing."""

    def __init__(self) -> None:
        self.profile, self.shapes, self.runs = 0, dict[str, tuple[int, ...]](), 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None: ...

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        return True


class _FakeEngine:
    def __init__(self, most: int) -> None:
        self.contexts, self.most, self.memory = list[_FakeContext](), most, set[Any]()

    def create_execution_context(self, memory: Any) -> _FakeContext | None:
        self.memory.add(memory)
        if len(self.contexts) == self.most:
            return None
        self.contexts.append(_FakeContext())
        return self.contexts[-1]

    def get_tensor_dtype(self, name: str) -> Any:
        return tensorrt_rtx.DataType.FLOAT


def test_each_size_of_a_batch_is_run_by_its_own_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a context of its own, made when it is first needed: recordings of several are replayed in turns."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    signature = Signature({"x": ("rows", 3), "t": ("rows",)}, ("out",), {}, "f32")
    profiles = batch_profiles(signature, {"x": (2, 3), "t": (2,)}, (1, 2, 4))
    opened = _FakeEngine(most=2)
    engine = tensorrt.TensorRTEngine(torch, tensorrt_rtx, opened, ("x", "t"), ("out",), profiles)
    assert len(opened.contexts) == 1, "too little memory is told at the opening"
    for rows in (4, 1, 4):
        (answer,) = engine(torch.ones(rows, 3), torch.ones(rows))
        assert answer.shape == (rows, 3)
    assert [(one.profile, one.runs, one.shapes["x"]) for one in opened.contexts] == [(0, 1, (1, 3)), (2, 2, (4, 3))]
    assert opened.memory == {tensorrt_rtx.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE}, "none takes the most"
    with pytest.raises(BackendFailed, match=r"not built for inputs of shapes \(3, 3\), \(3,\)"):
        engine(torch.ones(3, 3), torch.ones(3))
    with pytest.raises(BackendFailed, match="too little GPU memory"):
        engine(torch.ones(2, 3), torch.ones(2))


def test_floats_of_eight_bits_are_built_for_chips_that_have_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in USUAL.items()}
    quantize_static(
        SHAPES_UNET, tmp_path / "fp8.onnx", [{**drawn, "timestep": np.array([5, 900], np.float32)}], quant_type="fp8"
    )
    whole = build(SHAPES_UNET, tmp_path / "whole", capability="8.9")
    small = build(tmp_path / "fp8.onnx", tmp_path / "fp8", capability="8.9")
    assert len(small) < 0.9 * len(whole)
    with pytest.raises(BackendFailed, match="could not build|cannot parse"):
        build(tmp_path / "fp8.onnx", tmp_path / "old", capability="8.0")
