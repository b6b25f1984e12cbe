"""Networks that were accelerated alone: whatever the fastest way, they take the shapes that their file allows."""

from pathlib import Path

import numpy as np
import pytest

from stillhouse.backends.registry import open_runner
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.network import MAX_OPEN_SHAPES, NetworkRecord, NetworkRunner, open_network, write_network
from tests.accelerate.networks import NETWORKS, VOCABULARY

SHAPE: tuple[int, ...] = (1, 16)


def accelerated(folder: Path, component: Component) -> Path:
    """A directory in which a text encoder was accelerated for texts of one row and 16 tokens."""
    NETWORKS["encoder"](folder / component.graph)
    shapes = {"input_ids": SHAPE, "attention_mask": SHAPE}
    write_network(folder, NetworkRecord("encoder", component, shapes))
    return folder


@pytest.mark.parametrize(
    "component",
    [
        Component("model.onnx", "", "openvino", static=True),
        Component("model.onnx", "", "openvino", streams=2),
        Component("model.onnx", "", "onnxruntime", static=True),
    ],
    ids=["static", "streams", "onnxruntime static"],
)
@pytest.mark.parametrize("shape", [SHAPE, (3, 16), (1, 9), (2, 5)])
def test_other_shapes_of_the_file_give_the_answers_of_the_file(
    tmp_path: Path, component: Component, shape: tuple[int, ...]
) -> None:
    network = open_network(accelerated(tmp_path, component))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape)
    feeds = {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}
    expected = open_runner(tmp_path / "model.onnx")(feeds)
    for name, array in network(feeds).items():
        assert np.allclose(array, expected[name], atol=1e-4)  # float32 sums in another order, of values near 1
    assert [spec.shape for spec in network.inputs] == [(None, None)] * 2


def test_the_shapes_that_stay_open_are_bounded(tmp_path: Path) -> None:
    network = open_network(accelerated(tmp_path, Component("model.onnx", "", "openvino", static=True)))
    assert isinstance(network, NetworkRunner)
    for length in range(1, MAX_OPEN_SHAPES + 4):
        network({name: np.ones((1, length), np.int64) for name in ("input_ids", "attention_mask")})
        assert len(network._open) <= MAX_OPEN_SHAPES


def test_a_shape_that_the_file_does_not_allow_is_refused(tmp_path: Path) -> None:
    network = open_network(accelerated(tmp_path, Component("model.onnx", "", "openvino", static=True)))
    with pytest.raises(InvalidRequest, match="input 'attention_mask' has shape"):
        network({"input_ids": np.ones((1, 8), np.int64), "attention_mask": np.ones((1, 9), np.int64)})
    with pytest.raises(InvalidRequest, match="there is no array for input attention_mask"):
        network({"input_ids": np.ones((1, 8), np.int64)})
