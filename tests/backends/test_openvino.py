"""What only OpenVINO does: precisions that depend on the processor, and a cache of compiled networks."""

from pathlib import Path

import numpy as np
import pytest

from stillhouse.backends import RunnerOptions, backends, open_runner
from stillhouse.backends.graph import save_graph
from stillhouse.backends.openvino import offered
from stillhouse.errors import UnsupportedPrecision
from tests.backends.networks import apart, network, node, unet, unet_feeds, unet_float64, unet_weights, write

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
    assert offered(capabilities) == precisions


@pytest.mark.parametrize("precision", ["bf16", "f16", "f64", "int8"])
def test_refuses_what_the_processor_has_not(precision: str, tmp_path: Path) -> None:
    """OpenVINO would take the hint and compute in f32, so nobody would learn of it."""
    precisions = next(row.precisions for row in backends() if row.name == "openvino")
    if precision in precisions:
        pytest.skip(f"this processor has {precision}")
    with pytest.raises(UnsupportedPrecision, match=f"'{precision}' on openvino .*; allowed: {', '.join(precisions)}"):
        open_runner(write(unet(), tmp_path / "model.onnx"), "openvino", RunnerOptions(precision))


def test_its_own_choice_is_read_back(tmp_path: Path) -> None:
    runner = open_runner(write(unet(), tmp_path / "model.onnx"), "openvino", RunnerOptions("auto"))
    assert runner.precision in next(row.precisions for row in backends() if row.name == "openvino")
    feeds = unet_feeds(2)
    assert apart(runner(feeds)["out_sample"], unet_float64(feeds, unet_weights())) < 3e-2


def test_a_network_without_heavy_layers_has_a_precision_too(tmp_path: Path) -> None:
    model = network([node("Relu", ["x"], ["y"])], [("x", ["n"])], [("y", ["n"])])
    assert open_runner(write(model, tmp_path / "relu.onnx"), "openvino").precision == "f32"


def test_the_cache_is_used_and_sees_changed_weights(tmp_path: Path) -> None:
    weights, cache = tmp_path / "weights.safetensors", tmp_path / "cache"
    options, feeds = RunnerOptions(cache=cache), unet_feeds(2)
    results, blobs = [], []
    for seed in (1, 1, 2):
        stnp.save_file(unet_weights(seed), weights)
        save_graph(unet(unet_weights(seed)), tmp_path / "model.onnx", weights)
        runner = open_runner(tmp_path / "model.onnx", "openvino", options)
        assert runner.precision == "f32"
        results.append(runner(feeds)["out_sample"])
        blobs.append(len(list(cache.iterdir())))
    assert blobs == [1, 1, 2]
    np.testing.assert_array_equal(results[0], results[1])
    assert apart(results[2], unet_float64(feeds, unet_weights(2))) < 1e-5
