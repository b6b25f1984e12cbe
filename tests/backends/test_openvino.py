"""What only OpenVINO does: precisions that depend on the processor, and a cache of compiled networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.backends import RunnerOptions, backends, open_runner
from stillhouse.backends.backend import CandidateContext
from stillhouse.backends.openvino import (
    candidates,
    has_vnni,
    read_openvino_model,
    save_openvino_model,
    supported_precisions,
)
from stillhouse.backends.openvino import status as backend_status
from stillhouse.backends.runner import GraphRunner
from stillhouse.backends.signature import read_signature
from stillhouse.errors import BackendFailed, InvalidRequest, UnsupportedPrecision
from tests.backends.networks import (
    branches_and_loop,
    make_model,
    node,
    relative_error,
    unet,
    unet_feeds,
    unet_float64,
    unet_weights,
    write_linked,
    write_model,
)

stnp = pytest.importorskip("safetensors.numpy")


@pytest.mark.parametrize(
    ("capabilities", "precisions"),
    [
        (["FP32", "INT8", "BIN"], ("f32", "auto")),
        (["FP32", "BF16", "INT8"], ("f32", "bf16", "auto")),
        (["WINOGRAD", "FP16", "BF16", "FP32"], ("f32", "bf16", "f16", "auto")),
    ],
)
def test_offers_what_the_processor_has(capabilities: list[str], precisions: tuple[str, ...]) -> None:
    assert supported_precisions(capabilities) == precisions


@pytest.mark.parametrize("precision", ["bf16", "f16", "f64", "int8"])
def test_refuses_what_the_processor_has_not(precision: str, tmp_path: Path) -> None:
    """OpenVINO would take the hint and compute in f32, so nobody would learn of it."""
    precisions = next(row.precisions for row in backends() if row.name == "openvino")
    if precision in precisions:
        pytest.skip(f"this processor has {precision}")
    with pytest.raises(
        UnsupportedPrecision,
        match=f"openvino cannot compute in precision '{precision}' on this processor; allowed: {', '.join(precisions)}",
    ):
        open_runner(write_model(unet(), tmp_path / "model.onnx"), "openvino", RunnerOptions(precision))


def test_its_own_choice_is_read_back(tmp_path: Path) -> None:
    runner = open_runner(write_model(unet(), tmp_path / "model.onnx"), "openvino", RunnerOptions("auto"))
    assert runner.precision in next(row.precisions for row in backends() if row.name == "openvino")
    feeds = unet_feeds(2)
    assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, unet_weights())) < 3e-2


def test_a_network_without_heavy_layers_has_a_precision_too(tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], [("x", ["n"])], [("y", ["n"])])
    assert open_runner(write_model(model, tmp_path / "relu.onnx"), "openvino").precision == "f32"


def test_the_cache_is_used_and_sees_changed_weights(tmp_path: Path) -> None:
    weights, cache = tmp_path / "weights.safetensors", tmp_path / "cache"
    options, feeds = RunnerOptions(cache=cache), unet_feeds(2)
    results, blobs = [], []
    for seed in (1, 1, 2):
        stnp.save_file(unet_weights(seed), weights)
        write_linked(unet(unet_weights(seed)), tmp_path / "model.onnx", weights)
        runner = open_runner(tmp_path / "model.onnx", "openvino", options)
        assert runner.precision == "f32"
        results.append(runner(feeds)["out_sample"])
        blobs.append(len(list(cache.rglob("*.blob"))))
    assert blobs == [1, 1, 2]
    np.testing.assert_array_equal(results[0], results[1])
    assert relative_error(results[2], unet_float64(feeds, unet_weights(2))) < 1e-5


@pytest.mark.parametrize("requested", [{"threads": 1}, {"streams": 2, "shapes": {"sample": (1, 4, 8, 8)}}])
def test_what_was_compiled_for_other_options_is_not_taken_from_the_cache(
    requested: dict[str, Any], tmp_path: Path
) -> None:
    """OpenVINO's own key tells no precision: a U-Net that was kept in f32 drew NaN in f16."""
    graph, cache, feeds = write_model(unet(), tmp_path / "model.onnx"), tmp_path / "cache", unet_feeds(2)
    precisions = next(row.precisions for row in backends() if row.name == "openvino")
    for one in (options := [RunnerOptions(), *(RunnerOptions(name, **requested) for name in precisions)]):
        stored = open_runner(graph, "openvino", replace(one, cache=cache))
        fresh = open_runner(graph, "openvino", one)
        assert stored.precision == fresh.precision
        np.testing.assert_array_equal(stored(feeds)["out_sample"], fresh(feeds)["out_sample"])
    assert len(list(cache.rglob("*.blob"))) == len(options)


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    with pytest.raises(InvalidRequest, match="no setting of openvino 'spinning'; allowed: dynamic_quantization"):
        open_runner(graph, "openvino", RunnerOptions(settings={"spinning": "1"}))
    with pytest.raises(InvalidRequest, match="no dynamic_quantization '32'; allowed: 0, 1"):
        open_runner(graph, "openvino", RunnerOptions(settings={"dynamic_quantization": "32"}))


@pytest.fixture
def stored_integers(tmp_path: Path) -> tuple[Path, NDArray[np.float64]]:
    """A layer whose weights are given as int8, and these weights."""
    generator = np.random.default_rng(0)
    integers = generator.integers(-127, 128, (256, 128), dtype=np.int8)
    scales = generator.uniform(1e-3, 2e-3, 128).astype(np.float32)
    nodes = [node("DequantizeLinear", ["i", "s", "z"], ["w"], axis=1), node("MatMul", ["x", "w"], ["y"])]
    weights: dict[str, NDArray[Any]] = {"i": integers, "s": scales, "z": np.zeros(128, np.int8)}
    graph = write_model(make_model(nodes, [("x", ["n", 256])], [("y", ["n", 128])], weights), tmp_path / "model.onnx")
    return graph, integers.astype(np.float64) * scales


def test_float32_is_float32_also_where_weights_are_integers(
    stored_integers: tuple[Path, NDArray[np.float64]], tmp_path: Path
) -> None:
    """OpenVINO rounds the inputs of such layers to int8, unless told not to, and its kernel's name does not say so.

    24 bits leave more than 100 dB. 8 bits, of which a normal number with the largest of 32 at 2.1 sigma uses 7, leave
    45 dB: 6.02 * 8 + 4.77 - 20 * log10(2.1). Without VNNI it rounds nothing, whatever it is told.
    """
    graph, weights = stored_integers
    x = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    quantised = ("int8", 40, 50) if has_vnni() else ("f32", 100, 200)
    for value, precision, low, high in (("0", "f32", 100, 200), ("1", *quantised), ("0", "f32", 100, 200)):
        settings = {"dynamic_quantization": value}
        runner = open_runner(graph, "openvino", RunnerOptions(cache=tmp_path / "cache", settings=settings))
        assert (runner.precision, runner.layer_precisions) == (precision, {precision: 1})
        error = runner({"x": x})["y"] - x.astype(np.float64) @ weights
        assert low < 10 * np.log10(np.square(x @ weights).sum() / np.square(error).sum()) < high
        assert isinstance(runner, GraphRunner) and runner.weight_types == {"int8": 1}
        rows = np.concatenate([runner({"x": x[row : row + 1]})["y"] for row in range(8)])
        np.testing.assert_allclose(rows, runner({"x": x})["y"], rtol=1e-4, atol=1e-5)
    assert open_runner(graph, "openvino").layer_precisions == {"f32": 1}


def test_a_network_in_floats_stays_so_with_dynamic_quantisation(tmp_path: Path) -> None:
    options = RunnerOptions(settings={"dynamic_quantization": "1"})
    runner = open_runner(write_model(unet(), tmp_path / "model.onnx"), "openvino", options)
    assert (runner.precision, runner.layer_precisions) == ("f32", {"f32": 7})


def test_dynamic_quantisation_is_tried_where_weights_are_integers() -> None:
    for given, recipes in ((False, {"int8-weights", "int4-weights"}), (True, {"f32", "int8-weights", "int4-weights"})):
        context = CandidateContext("network", "high", backend_status(), has_integer_weights=given)
        specs = [spec for spec in candidates(context) if spec.options.get("dynamic_quantization") == "1"]
        assert {spec.recipe for spec in specs} == recipes


@pytest.mark.parametrize(("role", "attention"), [("denoiser", "int8"), ("decoder", None)])
def test_the_likeliest_configuration_of_a_large_network_comes_first(role: str, attention: str | None) -> None:
    """A budget may end after it."""
    first = next(iter(candidates(CandidateContext(role, "high", backend_status()))))
    assert (first.recipe, first.precision) == ("int8-static", "bf16")
    assert (first.options.get("layers"), first.options.get("attention")) == ("rewritten", attention)


def test_layers_in_branches_and_loops_are_counted(tmp_path: Path) -> None:
    """One product before, two in one branch, and one in the loop in the other branch."""
    weights = {"w": np.eye(2, dtype=np.float32), "times": np.array(3)}
    graph = write_model(branches_and_loop(weights), tmp_path / "model.onnx")
    x = np.array([[1, 2]], np.float32)
    for backend, settings in (("openvino", {}), ("onnxruntime", {"count_layers": "1"})):
        runner = open_runner(graph, backend, RunnerOptions(settings=settings))
        assert (runner.precision, runner.layer_precisions) == ("f32", {"f32": 4})
        for choice in (True, False):
            np.testing.assert_array_equal(runner({"x": x, "c": np.array(choice)})["y"], x)


@pytest.mark.parametrize("options", [RunnerOptions(), RunnerOptions(shapes={"sample": (2, 4, 8, 8)})])
def test_heavy_layers_are_counted_also_where_they_are_fused(options: RunnerOptions, tmp_path: Path) -> None:
    """Two convolutions, a Gemm, two layers, and the two products of attention, which become one kernel."""
    graph = write_model(unet(), tmp_path / "model.onnx")
    for _ in range(2):  # compiled, and from the cache
        cached = replace(options, cache=tmp_path / "cache")
        assert open_runner(graph, "openvino", cached).layer_precisions == {"f32": 7}


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    graph = write_model(unet(), tmp_path / "model.onnx")
    save_openvino_model(read_openvino_model(graph, read_signature(graph)), tmp_path / "ir" / "model.xml")
    return tmp_path / "ir" / "model.xml"


def test_its_own_graphs_compute_as_the_onnx_file_that_they_come_from(ir: Path) -> None:
    runner, feeds = open_runner(ir, "openvino"), unet_feeds(3)
    assert relative_error(runner(feeds)["out_sample"], unet_float64(feeds, unet_weights())) < 1e-5
    assert (runner.precision, [spec.name for spec in runner.inputs]) == ("f32", ["sample", "timestep"])
    assert sorted(ir.parent.iterdir()) == [ir.with_suffix(".bin"), ir]


def test_its_own_graphs_hold_to_the_names_of_axes(ir: Path) -> None:
    """The format has no names, and the runtime reads past the end of the shorter input."""
    feeds = unet_feeds(3)
    with pytest.raises(InvalidRequest, match=r"input 'timestep' has shape \[2\]; allowed: \[B\]"):
        open_runner(ir, "openvino")({**feeds, "timestep": feeds["timestep"][:2]})
    static = open_runner(ir, "openvino", RunnerOptions(shapes={"sample": (3, 4, 8, 8)}))
    assert [spec.shape for spec in static.inputs] == [(3, 4, 8, 8), (3,)]
    streams = open_runner(ir, "openvino", RunnerOptions(shapes={"sample": (1, 4, 8, 8)}, streams=2))
    np.testing.assert_allclose(streams(feeds)["out_sample"], static(feeds)["out_sample"], atol=1e-5)


def test_onnxruntime_refuses_its_graphs(ir: Path) -> None:
    with pytest.raises(InvalidRequest, match="is an OpenVINO graph; allowed: an ONNX file; open it on openvino"):
        open_runner(ir, "onnxruntime")


def test_the_cache_sees_changed_weights_of_its_own_graphs(tmp_path: Path) -> None:
    options, feeds = RunnerOptions(cache=tmp_path / "cache"), unet_feeds(2)
    for seed in (1, 2):
        graph = write_model(unet(unet_weights(seed)), tmp_path / "model.onnx")
        save_openvino_model(read_openvino_model(graph, read_signature(graph)), tmp_path / "model.xml")
        result = open_runner(tmp_path / "model.xml", "openvino", options)(feeds)["out_sample"]
        assert relative_error(result, unet_float64(feeds, unet_weights(seed))) < 1e-5


def test_weights_behind_a_transpose_become_weights(tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["h"], name="/linear/MatMul"),
        node("Transpose", ["square"], ["same"], perm=[0, 1]),  # no transposition at all
        node("MatMul", ["h", "same"], ["y"], name="/plain/MatMul"),
    ]
    square = np.array([[1, 2], [3, 4]], np.float32)
    model = make_model(nodes, [("x", ["n", 3])], [("y", ["n", 2])], {"w": weights, "square": square})
    graph = write_model(model, tmp_path / "model.onnx")
    network_of = read_openvino_model(graph, read_signature(graph))
    products = {one.get_friendly_name(): one for one in network_of.get_ops() if one.get_type_name() == "MatMul"}
    assert products.keys() == {"/linear/MatMul", "y"}  # a node that gives a result goes by the result's name
    assert products["/linear/MatMul"].input_value(1).get_node().get_type_name() == "Constant"
    save_openvino_model(network_of, tmp_path / "model.xml")
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(
        open_runner(tmp_path / "model.xml", "openvino")({"x": x})["y"], x @ weights.T @ square
    )


def test_a_failure_leaves_no_part_of_its_own_graph(ir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="a name that ends in .xml"):
        save_openvino_model(object(), tmp_path / "model.onnx")
    before = ir.read_bytes()
    with pytest.raises(BackendFailed, match="openvino could not write"):
        save_openvino_model(object(), ir)
    assert ir.read_bytes() == before
    assert len(list(ir.parent.iterdir())) == 2
