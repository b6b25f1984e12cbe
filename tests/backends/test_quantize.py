"""Small integers where they are wanted: within the bounds of rounding, really run, and only there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from openvino import Core

from stillhouse.backends import RunnerOptions, open_runner, openvino
from stillhouse.backends.openvino import has_vnni as openvino_has_vnni
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.qdq import WEIGHT_TYPES, QuantType, WeightType
from stillhouse.backends.quantize import compress_openvino_weights, quantize_dynamic, quantize_openvino, quantize_static
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.signature import read_signature
from stillhouse.core import Array
from stillhouse.errors import BackendFailed, InvalidRequest, PipelineError, RuntimeMissing
from stillhouse.pipelines.load import find_pipeline
from tests.backends.networks import (
    CHANNELS,
    Value,
    branches_and_loop,
    make_graph,
    make_model,
    node,
    unet,
    unet_feeds,
    unet_float64,
    unet_weights,
    write_model,
)

HEAVY = ("Conv", "MatMul", "Gemm")
FEEDS = [unet_feeds(2, seed=seed) for seed in range(4)]
PROBE = unet_feeds(2, seed=9)


def sqnr(got: NDArray[Any], want: NDArray[Any]) -> float:
    return float(10 * np.log10((np.float64(want) ** 2).sum() / ((np.float64(want) - got) ** 2).sum()))


def run_dequantized(graph: Path, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """What the standard's own evaluator makes of a graph."""
    (result,) = ReferenceEvaluator(str(graph)).run(None, dict(feeds))
    return np.asarray(result)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_model(unet(), tmp_path / "model.onnx")


def test_static_integers_run_and_come_close(graph: Path, tmp_path: Path) -> None:
    """Five layers round their inputs to 8 bits: each 6.02 * 8 - 7 = 41 dB for Gaussian inputs with 4 sigma of range."""
    quantize_static(graph, tmp_path / "static.onnx", FEEDS)
    runner = open_runner(tmp_path / "static.onnx")
    assert (runner.precision, runner.layer_precisions) == (
        "mixed",
        {"f32": 2, "int8": 5},
    )  # the products of attention stay
    assert sqnr(runner(PROBE)["out_sample"], unet_float64(PROBE, unet_weights())) > 28
    assert read_signature(tmp_path / "static.onnx").inputs == read_signature(graph).inputs
    onnx.checker.check_model(onnx.load(tmp_path / "static.onnx"), full_check=True)


@pytest.mark.parametrize(("numbers", "decibels"), [("int8", 28), ("fp8", 18)])
def test_what_gpus_multiply_comes_close_and_has_no_zero_points(
    numbers: QuantType, decibels: float, graph: Path, tmp_path: Path
) -> None:
    """Floats of eight bits have three behind the point: inputs and weights lose 31 dB each, five layers 7 more."""
    quantize_static(graph, tmp_path / "static.onnx", FEEDS, quant_type=numbers)
    if numbers == "fp8":  # of which onnxruntime has no kernels that it would not fuse wrongly
        result = run_dequantized(tmp_path / "static.onnx", PROBE)
    else:
        result = open_runner(tmp_path / "static.onnx")(PROBE)["out_sample"]
    assert sqnr(result, unet_float64(PROBE, unet_weights())) > decibels
    model = onnx.load(tmp_path / "static.onnx")
    onnx.checker.check_model(model, full_check=True)
    zeros = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith(".zero")]
    assert zeros and not any(zero.astype(np.float32).any() for zero in zeros)
    assert {zero.dtype.name for zero in zeros} == {"int8" if numbers == "int8" else "float8_e4m3fn"}


def test_floats_of_eight_bits_that_are_exact_stay_exact(tmp_path: Path) -> None:
    """Powers of two, and the largest is one that the scale leaves as it is."""
    weights = (448 * 2.0 ** -np.random.default_rng(3).integers(0, 8, (16, 8))).astype(np.float32)
    weights[0] = 448
    model = make_model([node("MatMul", ["x", "w"], ["y"])], [("x", ["n", 16])], [("y", ["n", 8])], {"w": weights})
    x = (448 * 2.0 ** -np.random.default_rng(4).integers(0, 8, (3, 16))).astype(np.float32)
    x[0, 0] = -448
    quantize_static(write_model(model, tmp_path / "model.onnx"), tmp_path / "fp8.onnx", [{"x": x}], quant_type="fp8")
    np.testing.assert_allclose(run_dequantized(tmp_path / "fp8.onnx", {"x": x}), x @ weights, rtol=1e-6)


def test_an_operator_that_means_another_thing_in_a_later_opset_is_refused(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("ReduceMean", ["p"], ["y"])]
    model = make_model(nodes, [("x", ["n", 2])], [("y", ["n", 1])], {"w": np.eye(2, dtype=np.float32)})
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("axes", [1]))
    model.opset_import[0].version = 17
    graph = write_model(model, tmp_path / "model.onnx")
    with pytest.raises(
        InvalidRequest, match=r"ReduceMean y of opset \d+ in .*; allowed: opset 19; export the model again"
    ):
        quantize_static(graph, tmp_path / "fp8.onnx", [{"x": np.ones((1, 2), np.float32)}], quant_type="fp8")


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
@pytest.mark.parametrize("operators", [("MatMul", "Gemm"), HEAVY])
def test_dynamic_integers_run_and_come_close(
    weights: WeightType, operators: tuple[str, ...], graph: Path, tmp_path: Path
) -> None:
    quantize_dynamic(graph, tmp_path / "dynamic.onnx", weights=weights, operators=operators)
    runner = open_runner(tmp_path / "dynamic.onnx")
    assert runner.layer_precisions == {
        "f32": 7 - (5 if "Conv" in operators else 3),
        "int8": 5 if "Conv" in operators else 3,
    }
    assert sqnr(runner(PROBE)["out_sample"], unet_float64(PROBE, unet_weights())) > 28
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "dynamic.onnx").graph.initializer}
    assert stored["q.weights"] == {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[weights]


@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_what_is_kept_is_exact(form: str, graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.onnx"

    def write_it(keep: list[str]) -> None:
        if form == "static":
            quantize_static(graph, path, FEEDS, keep=keep)
        else:
            quantize_dynamic(graph, path, keep=keep, operators=HEAVY)

    write_it(["a", "out_sample"])
    assert open_runner(path).layer_precisions == {"f32": 4, "int8": 3}
    assert sqnr(open_runner(path)(PROBE)["out_sample"], unet_float64(PROBE, unet_weights())) > 40
    with pytest.raises(InvalidRequest, match="no node 'out_samples'; .* did you mean 'out_sample'"):
        write_it(["out_samples"])
    with pytest.raises(
        InvalidRequest, match="nothing to quantise; allowed: a Conv or MatMul or Gemm with float32 weights"
    ):
        write_it(["a", "embedded", "q", "k", "out_sample"])


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_product_is_off_by_no_more_than_rounding(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """|x' - x| <= step / 2 in the calibrated range, and so for weights: sum |x| dw + |w| dx + dx dw for an element."""
    rows, inner, columns = (data.draw(st.integers(1, 9)) for _ in range(3))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    form = data.draw(st.sampled_from(["static", "int8", "uint8"]))
    turned, biased = data.draw(st.booleans()), data.draw(st.booleans())
    x = (random.standard_normal((rows, inner)) * random.uniform(0.01, 100) + random.uniform(-3, 3)).astype(np.float32)
    w = (random.standard_normal((inner, columns)) * random.uniform(0.01, 10, columns)).astype(np.float32)
    w[:, 0] *= data.draw(st.sampled_from([0, 1]))
    b = (random.standard_normal(columns) * 5).astype(np.float32)
    layer = node("Gemm", ["x", "w", "b"][: 2 + biased], ["y"], transB=int(turned))
    weights = {"w": w.T if turned else w, "b": b}
    path = tmp_path_factory.mktemp("product") / "model.onnx"
    write_model(make_model([layer], [("x", ["n", inner])], [("y", ["n", columns])], weights), path)
    if form == "static":
        quantize_static(path, path, [{"x": x}])
    else:
        quantize_dynamic(path, path, weights="int8" if form == "int8" else "uint8")
    runner = open_runner(path)
    assert runner.layer_precisions == {"int8": 1}
    wide, narrow = x.astype(np.float64), w.astype(np.float64)
    want = wide @ narrow + (b if biased else 0)
    dx = (max(x.max(), 0) - min(x.min(), 0)) / 255  # half a step of rounding, and half of a zero point that is moved
    dw = np.abs(narrow).max(0) / (127 if form == "uint8" else 63) / 2
    bound = np.abs(wide).sum(1)[:, None] * dw + dx * np.abs(narrow).sum(0) + inner * dx * dw
    # In fixed point the bias is rounded too; where weights are tiny beside it, their scale grows to 2^-30 of it.
    bound = bound + np.abs(b) * 2**-24 + dx * dw + np.abs(wide).sum(1)[:, None] * np.abs(b) * 2**-30 / max(dx, 1e-9)
    assert (np.abs(runner({"x": x})["y"] - want) <= bound * 1.001 + 1e-6 * np.abs(want).max()).all()


def test_the_largest_sums_do_not_saturate(tmp_path: Path) -> None:
    """Without VNNI, 255 * 127 + 255 * 127 does not fit into the 16 bits that x86 adds two products in."""
    weights = {"w": np.ones((64, 4), np.float32)}
    graph = write_model(
        make_model([node("MatMul", ["x", "w"], ["y"])], [("x", ["n", 64])], [("y", ["n", 4])], weights),
        tmp_path / "m.onnx",
    )
    x = np.ones((3, 64), np.float32)
    for kind in WEIGHT_TYPES:
        quantize_dynamic(graph, tmp_path / "d.onnx", weights=kind)
        np.testing.assert_allclose(open_runner(tmp_path / "d.onnx")({"x": x})["y"], 64, rtol=1e-5)
    quantize_static(graph, tmp_path / "s.onnx", [{"x": x}])
    np.testing.assert_allclose(open_runner(tmp_path / "s.onnx")({"x": x})["y"], 64, rtol=1e-5)


def test_a_row_of_static_integers_does_not_know_its_neighbours(graph: Path, tmp_path: Path) -> None:
    quantize_static(graph, tmp_path / "static.onnx", FEEDS)
    runner = open_runner(tmp_path / "static.onnx")
    together = runner(PROBE)["out_sample"]
    alone = runner({name: array[1:] for name, array in PROBE.items()})["out_sample"]
    np.testing.assert_array_equal(together[1:], alone)


def test_an_activation_behind_a_convolution_is_part_of_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"], pads=[1] * 4),
        node("Add", ["d", "x"], ["y"]),
    ]
    weights = {name: random.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8 for name in "wv"}
    weights["b"] = random.standard_normal(8).astype(np.float32)
    shape = ["n", 8, 8, 8]
    source = write_model(make_model(nodes, [("x", shape)], [("y", shape), ("d", shape)], weights), tmp_path / "m.onnx")
    x = random.standard_normal((2, 8, 8, 8)).astype(np.float32)
    quantize_static(source, tmp_path / "s.onnx", [{"x": x}])
    kinds = [one.op_type for one in onnx.load(tmp_path / "s.onnx").graph.node]
    assert kinds.index("Relu") == kinds.index("Conv") + 1
    runner = open_runner(tmp_path / "s.onnx")
    assert runner.layer_precisions == {"int8": 2}
    for name, want in open_runner(source)({"x": x}).items():
        assert sqnr(runner({"x": x})[name], want) > 30


def test_weights_that_are_no_plain_matrix_stay(tmp_path: Path) -> None:
    """Batched weights, a bias that is computed, a scaled Gemm and a product of two inputs."""
    nodes = [
        node("MatMul", ["x", "stack"], ["a"]),
        node("MatMul", ["a", "a"], ["b"]),
        node("ReduceMean", ["b"], ["c"], keepdims=0),
        node("Unsqueeze", ["c", "axes"], ["d"]),
        node("Gemm", ["d", "one"], ["e"], alpha=2.0),
        node("Reshape", ["e", "axes"], ["bias"]),
        node("Gemm", ["e", "one", "bias"], ["f"]),
        node("MatMul", ["f", "one"], ["y"]),
    ]
    weights = {"stack": np.ones((2, 2, 2), np.float32), "axes": np.array([0, 1]), "one": np.ones((1, 1), np.float32)}
    weights["axes"] = np.array([0, 1])
    nodes[5] = node("Reshape", ["e", "flat"], ["bias"])
    weights["flat"] = np.array([1])
    source = write_model(make_model(nodes, [("x", [2, 2, 2])], [("y", [1, 1])], weights), tmp_path / "m.onnx")
    quantize_dynamic(source, tmp_path / "d.onnx")
    x = np.ones((2, 2, 2), np.float32)
    assert open_runner(tmp_path / "d.onnx").layer_precisions == {"f32": 4, "int8": 1}
    np.testing.assert_allclose(
        open_runner(tmp_path / "d.onnx")({"x": x})["y"], open_runner(source)({"x": x})["y"], rtol=0.02
    )


def test_feeds_are_asked_for_and_must_make_sense(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "static.onnx"
    with pytest.raises(InvalidRequest, match="no feeds to calibrate with"):
        quantize_static(graph, out, [])
    with pytest.raises(BackendFailed, match="not finite"):
        quantize_static(graph, out, [{**PROBE, "sample": np.full((2, CHANNELS, 8, 8), np.inf, np.float32)}])
    with pytest.raises(BackendFailed, match="could not run"):
        quantize_static(graph, out, [{"sample": PROBE["sample"]}])
    with pytest.raises(PipelineError, match="absent.onnx"):
        quantize_static(tmp_path / "absent.onnx", out, FEEDS)
    with pytest.raises(InvalidRequest, match="no kind of weights 'int4'; allowed: int8, uint8"):
        quantize_dynamic(graph, out, weights="int4")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="no operator 'Convolution'"):
        quantize_dynamic(graph, out, operators=["Convolution"])
    assert not out.exists()


def test_an_old_opset_is_converted_which_test_opset_checks_or_refused(tmp_path: Path) -> None:
    model, out = unet(), tmp_path / "out.onnx"
    model.opset_import[0].version = 12
    graph = write_model(model, tmp_path / "old.onnx")
    with pytest.raises(InvalidRequest, match="is of opset 12, and there are no inputs.*; allowed: 13 and later"):
        quantize_dynamic(graph, out)
    quantize_static(graph, out, FEEDS)
    assert open_runner(out).layer_precisions == {"f32": 2, "int8": 5}
    assert sqnr(open_runner(out)(PROBE)["out_sample"], unet_float64(PROBE, unet_weights())) > 28


def test_weights_have_seven_bits_where_eight_would_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of 7-bit weights is opened everywhere, one of 8 bits only where products are added in 32 bits."""
    graph = _linear(tmp_path, np.float32)
    feeds = [{"x": np.random.default_rng(seed).standard_normal((2, 6, 32)).astype(np.float32)} for seed in range(5)]
    want, found = open_runner(graph)(feeds[4])["y"], {}
    for has_vnni in (False, True):
        monkeypatch.setattr(openvino, "has_vnni", lambda answer=has_vnni: answer)
        quantize_openvino(graph, out := tmp_path / f"{has_vnni}.xml", feeds[:4])
        if openvino_has_vnni():
            found[has_vnni] = sqnr(open_runner(out, "openvino")(feeds[4])["y"], want)
    assert not found or found[True] > found[False] + 1.0
    monkeypatch.setattr(openvino, "has_vnni", lambda: False)
    open_runner(tmp_path / "False.xml", "openvino")
    with pytest.raises(RuntimeMissing, match="quantised for processors with VNNI.*stillhouse accelerate"):
        open_runner(tmp_path / "True.xml", "openvino")


@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_openvinos_static_integers_run_come_close_and_keep(stored: type[np.floating], tmp_path: Path) -> None:
    graph, out = _linear(tmp_path, stored), tmp_path / "int8.xml"
    feeds = [{"x": np.random.default_rng(seed).standard_normal((2, 6, 32)).astype(np.float32)} for seed in range(5)]
    quantize_openvino(graph, out, feeds[:4])
    runner, want = open_runner(out, "openvino"), open_runner(graph)(feeds[4])["y"]
    assert (runner.precision, runner.layer_precisions) == ("int8", {"int8": 4})
    assert sqnr(runner(feeds[4])["y"], want) > 25
    quantize_openvino(graph, out, feeds[:4], keep=["/gemm/Gemm", "/last/MatMul"])
    unquantised = open_runner(out, "openvino")
    assert (unquantised.precision, unquantised.layer_precisions) == ("mixed", {"f32": 2, "int8": 2})
    assert sqnr(unquantised(feeds[4])["y"], want) > 30
    with pytest.raises(InvalidRequest, match="no feeds"):
        quantize_openvino(graph, out, [])
    with pytest.raises(
        InvalidRequest, match=r"int8.onnx is no name of an OpenVINO graph; allowed: a name that ends in .xml"
    ):
        quantize_openvino(graph, tmp_path / "int8.onnx", feeds)


@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (6, 3, 6, 3)], ids=["one shape", "two shapes"])
def test_a_large_graph_is_quantised_with_open_axes(
    lengths: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranges are measured in static shapes and in the processor's precision; neither stays in the graph."""
    monkeypatch.setattr("stillhouse.backends.quantize.is_large", lambda graph, signature: True)
    precisions = []
    compile_model = Core.compile_model

    def compile_seen(core: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        precisions.append(options.get("config"))
        return compile_model(core, model, *arguments, **options)

    monkeypatch.setattr(Core, "compile_model", compile_seen)
    graph, out, random = _linear(tmp_path, np.float32), tmp_path / "int8.xml", np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((2, length, 32)).astype(np.float32)} for length in lengths]
    quantize_openvino(graph, out, feeds)
    assert precisions and not any(precisions)
    monkeypatch.undo()
    assert read_signature(out).inputs == read_signature(graph).inputs
    other = {"x": random.standard_normal((2, 9, 32)).astype(np.float32)}
    runner = open_runner(out, "openvino")
    assert runner.layer_precisions == {"int8": 4}
    assert sqnr(runner(other)["y"], open_runner(graph)(other)["y"]) > 25


def test_openvinos_small_weights_are_small_and_keep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = _linear(tmp_path, np.float32, width=256)
    x = {"x": np.random.default_rng(9).standard_normal((2, 6, 256)).astype(np.float32)}
    want, sizes = open_runner(graph)(x)["y"], {}
    for bits, close in ((8, 40), (4, 15)):
        out = tmp_path / f"{bits}.xml"
        compress_openvino_weights(graph, out, bits=8 if bits == 8 else 4)
        runner = open_runner(out, "openvino")
        assert (runner.precision, runner.layer_precisions) == ("f32", {"f32": 4})  # expanded, then multiplied as before
        assert sqnr(runner(x)["y"], want) > close
        sizes[bits] = out.with_suffix(".bin").stat().st_size
    compress_openvino_weights(
        graph, tmp_path / "kept.xml", keep=["/first/MatMul", "/middle/MatMul", "/gemm/Gemm", "/last/MatMul"]
    )
    assert sqnr(open_runner(tmp_path / "kept.xml", "openvino")(x)["y"], want) > 100
    sizes[32] = (tmp_path / "kept.xml").with_suffix(".bin").stat().st_size
    assert sizes[4] < sizes[8] < 0.3 * sizes[32]
    with pytest.raises(InvalidRequest, match="weights cannot have 2 bits; allowed: 8, 4"):
        compress_openvino_weights(graph, out, bits=2)  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")
    assert read_signature(tmp_path / "8.xml").inputs == read_signature(graph).inputs


def test_four_bits_are_refused_where_no_weight_takes_them(graph: Path, tmp_path: Path) -> None:
    """Convolutions and the last layer stay in 8 bits. So does a layer in `keep`, in 32."""
    conv = make_model(
        [node("Conv", ["x", "w"], ["y"])],
        [("x", ["n", 64, 4, 4])],
        [("y", ["n", 64, 4, 4])],
        {"w": np.ones((64, 64, 1, 1), np.float32)},
    )
    out = tmp_path / "out" / "four.xml"
    for source, keep in ((write_model(conv, tmp_path / "conv.onnx"), []), (graph, ["q", "k"])):
        with pytest.raises(
            InvalidRequest, match=r"no weight of .* can be stored in 4 bits: convolutions.*; allowed: 8"
        ):
            compress_openvino_weights(source, out, bits=4, keep=keep)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_weights_of_four_and_of_eight_bits_are_counted(graph: Path, tmp_path: Path) -> None:
    counts = {}
    for bits in (8, 4):
        compress_openvino_weights(graph, tmp_path / f"{bits}.xml", bits=8 if bits == 8 else 4)
        runner = open_runner(tmp_path / f"{bits}.xml", "openvino")
        assert isinstance(runner, GraphRunner)
        counts[bits] = runner.weight_types
    assert counts == {8: {"int8": 5}, 4: {"int4": 1, "int8": 4}}


def _linear(directory: Path, stored: type[np.floating], width: int = 32) -> Path:
    """Linear layers as torch exports them: halves behind a Cast and a Transpose, and a Gemm."""
    random = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        name: (random.standard_normal((width, width)) / np.sqrt(width)).astype(stored) for name in ("u", "v", "w")
    }
    weights["b"] = random.standard_normal(width).astype(np.float32)
    weights["flat"], weights["back"] = np.array([-1, width]), np.array([2, -1, width])
    layers = [
        node("Cast", ["u"], ["uf"], to=TensorProto.FLOAT),
        node("Transpose", ["uf"], ["ut"], perm=[1, 0], name="/first/Transpose"),
        node("MatMul", ["x", "ut"], ["first"], name="/first/MatMul"),
        node("Sigmoid", ["first"], ["s"]),
        node("Cast", ["v"], ["vf"], to=TensorProto.FLOAT),
        node("Transpose", ["vf"], ["vt"], perm=[1, 0], name="/middle/Transpose"),
        node("MatMul", ["s", "vt"], ["middle"], name="/middle/MatMul"),
        node("Sigmoid", ["middle"], ["m"]),
        node("Reshape", ["m", "flat"], ["f"]),
        node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT),
        node("Gemm", ["f", "wf", "b"], ["last"], name="/gemm/Gemm", transB=1),
        node("Reshape", ["last", "back"], ["r"]),
        node("MatMul", ["r", "ut"], ["y"], name="/last/MatMul"),
    ]
    shape: list[Any] = ["batch", "tokens", width]
    values: list[Value] = [("x", shape)]
    return write_model(make_model(layers, values, [("y", [2, "tokens", width])], weights), directory / "linear.onnx")


def test_the_shapes_u_net_keeps_its_signal(tmp_path: Path) -> None:
    """The widest ranges of real latents are asked for in the product; Gaussian ones show that every layer is taken."""
    source = find_pipeline("shapes") / "unet" / "model.onnx"
    random = np.random.default_rng(0)
    feeds = [
        {
            "sample": random.standard_normal((1, 4, 16, 16)).astype(np.float32),
            "timestep": np.array([level], np.float32),
            "encoder_hidden_states": random.standard_normal((1, 24, 128)).astype(np.float32),
        }
        for level in (50, 500, 950)
    ]
    quantize_static(source, tmp_path / "static.onnx", feeds)
    runner = open_runner(tmp_path / "static.onnx", options=RunnerOptions(threads=1))
    assert runner.layer_precisions == {"f32": 28, "int8": 133}
    want = open_runner(source)
    assert all(sqnr(runner(each)["out_sample"], want(each)["out_sample"]) > 20 for each in feeds)


@pytest.mark.large
@pytest.mark.parametrize("recipe", ["static", "dynamic", "half", "openvino"])
def test_more_than_two_gigabytes_of_weights(recipe: str, tmp_path: Path) -> None:
    """33 random matrices that keep the length of a vector: 2.2 GB of float32 in a file beside the graph.

    In static integers a layer adds noise 33.7 dB below its result (weights of 4.5 sigma in 63 steps), 33 layers 18.5.
    """
    width, layers = 4096, 33
    matrix = (np.random.default_rng(0).standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    nodes, tensors = [], []
    with (tmp_path / "weights.bin").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", file.tell()), ("length", matrix.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(matrix, layer, axis=1).tobytes())
            tensors.append(tensor)
            nodes.append(node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"], name=f"/layers.{layer}/MatMul"))
    ends = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("h0", f"h{layers}")]
    stack = onnx.helper.make_graph(nodes, "stack", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(stack, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    graph, out = write_model(model, tmp_path / "model.onnx"), tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    feeds = {"h0": np.random.default_rng(1).standard_normal((2, width)).astype(np.float32)}
    (want,) = open_runner(graph)(feeds).values()
    if recipe == "openvino":
        out = out.with_suffix(".xml")
        compress_openvino_weights(graph, out)
    elif recipe == "static":
        quantize_static(graph, out, [feeds])
    elif recipe == "dynamic":
        quantize_dynamic(graph, out)
    else:
        convert_to_float16(graph, out)
    runner = open_runner(out, "openvino" if recipe == "openvino" else "onnxruntime")
    assert runner.layer_precisions == {"int8" if recipe in ("static", "dynamic") else "f32": layers}
    (got,) = runner(feeds).values()
    assert sqnr(got, want) > (50 if recipe == "half" else 17)
    size = sum(file.stat().st_size for file in out.parent.iterdir())
    assert size < 0.51 * layers * matrix.nbytes


def branches(directory: Path, width: int = 16) -> tuple[Path, dict[str, NDArray[Any]]]:
    """x @ u, less by the condition c: x @ w in one branch, and @ w twice in the other. Each branch has its own w.

    One branch stores its weights as an initializer, in a file of its own, and the other in a Constant node. Names are
    the same in both, which ONNX allows, and both read the tensor that the layer outside reads.
    """
    draw = np.random.default_rng(5).standard_normal
    weights = {name: (draw((width, width)) / np.sqrt(width)).astype(np.float32) for name in ("u", "then", "else")}
    inner = {}
    for name in ("then", "else"):
        tensor = onnx.numpy_helper.from_array(weights[name], "w")
        last = [node("MatMul", ["p", "w"], ["q"], name="second")] if name == "else" else []
        nodes = [node("MatMul", ["x", "w"], ["p"], name="first"), *last]
        if name == "else":
            nodes.insert(0, node("Constant", [], ["w"], value=tensor))
        inner[name] = make_graph(nodes, [("q" if last else "p", ["n", width])])
        inner[name].initializer.extend([tensor] if name == "then" else [])
    nodes = [
        node("MatMul", ["x", "u"], ["a"], name="outer"),
        node("If", ["c"], ["b"], then_branch=inner["then"], else_branch=inner["else"]),
        node("Sub", ["a", "b"], ["y"]),
    ]
    inputs: list[Value] = [("x", ["n", width]), ("c", [], TensorProto.BOOL)]
    model = make_model(nodes, inputs, [("y", ["n", width])], {"u": weights["u"]})
    path = directory / "branches.onnx"
    onnx.save(model, path, save_as_external_data=True, location="branches.bin", size_threshold=100)
    return path, weights


def branches_float64(x: Array, choice: bool, weights: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    inner = wide["then"] if choice else wide["else"] @ wide["else"]
    return x.astype(np.float64) @ (wide["u"] - inner)


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_dynamic_integers_reach_into_branches(weights: WeightType, tmp_path: Path) -> None:
    """One layer loses about 38 dB, two in a row a little more."""
    graph, values = branches(tmp_path)
    (tmp_path / "out").mkdir()
    quantize_dynamic(graph, out := tmp_path / "out" / "dynamic.onnx", weights=weights)
    runner, x = open_runner(out), np.random.default_rng(6).standard_normal((4, 16)).astype(np.float32)
    assert (runner.precision, runner.layer_precisions) == ("int8", {"int8": 4})
    for choice in (True, False):
        assert sqnr(runner({"x": x, "c": np.array(choice)})["y"], branches_float64(x, choice, values)) > 28
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert read_signature(out).inputs == read_signature(graph).inputs


def test_layers_in_branches_can_be_kept(tmp_path: Path) -> None:
    graph, _ = branches(tmp_path)
    (tmp_path / "out").mkdir()
    quantize_dynamic(graph, out := tmp_path / "out" / "kept.onnx", keep=["first"])
    assert open_runner(out).layer_precisions == {"f32": 2, "int8": 2}
    with pytest.raises(InvalidRequest, match="no node 'third'; allowed: .*first"):
        quantize_dynamic(graph, out, keep=["third"])


def test_static_integers_stay_outside_of_branches_and_are_counted_so(tmp_path: Path) -> None:
    graph, values = branches(tmp_path)
    (tmp_path / "out").mkdir()
    x = np.random.default_rng(6).standard_normal((4, 16)).astype(np.float32)
    quantize_static(graph, out := tmp_path / "out" / "static.onnx", [{"x": x, "c": np.array(True)}])
    runner = open_runner(out)
    assert (runner.precision, runner.layer_precisions) == ("mixed", {"f32": 3, "int8": 1})
    for choice in (True, False):
        assert sqnr(runner({"x": x, "c": np.array(choice)})["y"], branches_float64(x, choice, values)) > 28


def test_openvinos_weights_are_compressed_in_branches_and_loops_too(tmp_path: Path) -> None:
    """NNCF knows one level of branches only, and none where branches share a constant, as OpenVINO reads them."""
    graph, values = branches(tmp_path)
    compress_openvino_weights(graph, out := tmp_path / "weights.xml")
    runner, x = open_runner(out, "openvino"), np.random.default_rng(6).standard_normal((4, 16)).astype(np.float32)
    assert isinstance(runner, GraphRunner) and runner.weight_types == {"int8": 3}
    assert runner.layer_precisions == {"f32": 4}
    for choice in (True, False):
        assert sqnr(runner({"x": x, "c": np.array(choice)})["y"], branches_float64(x, choice, values)) > 38
    random = np.random.default_rng(7).standard_normal((2, 2)).astype(np.float32)
    shared = write_model(branches_and_loop({"w": random, "times": np.array(3)}), tmp_path / "loop.onnx")
    compress_openvino_weights(shared, out)
    runner = open_runner(out, "openvino")
    assert isinstance(runner, GraphRunner) and runner.weight_types == {"int8": 3}


def test_openvinos_static_integers_need_inputs_of_every_branch(tmp_path: Path) -> None:
    graph, values = branches(tmp_path)
    x = np.random.default_rng(6).standard_normal((4, 16)).astype(np.float32)
    feeds = [{"x": x, "c": np.array(choice)} for choice in (True, False)]
    with pytest.raises(BackendFailed, match="a branch of an If in .* is taken by none of the recorded inputs"):
        quantize_openvino(graph, out := tmp_path / "static.xml", feeds[:1])
    quantize_openvino(graph, out, feeds)
    runner = open_runner(out, "openvino")
    for choice, feed in zip((True, False), feeds, strict=True):
        assert sqnr(runner(feed)["y"], branches_float64(x, choice, values)) > 28
    assert runner.layer_precisions == {"int8": 4}


def test_openvinos_static_integers_are_refused_where_nothing_takes_them(tmp_path: Path) -> None:
    graph = write_model(make_model([node("Relu", ["x"], ["y"])], [("x", ["n"])], [("y", ["n"])]), tmp_path / "m.onnx")
    with pytest.raises(InvalidRequest, match="has nothing to quantise; allowed: a convolution or matrix product"):
        quantize_openvino(graph, tmp_path / "static.xml", [{"x": np.ones(2, np.float32)}])
