"""A graph is taken apart and put together again, and computes the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from stillhouse.backends import open_runner
from stillhouse.backends.onnx_edit import Constant, check_node_names, load_with_constants, save_with_constants
from stillhouse.errors import InvalidRequest, PipelineError
from tests.backends.networks import (
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_stored_weights_become_the_graphs_own(dtype: type[np.floating], tmp_path: Path) -> None:
    """Halves that are cast to float32, as an import writes them, are float32 constants."""
    weights = {name: array.astype(dtype).astype(np.float32) for name, array in unet_weights().items()}
    stnp.save_file({name: array.astype(dtype) for name, array in weights.items()}, tmp_path / "w.safetensors")
    write_linked(unet(weights), tmp_path / "model.onnx", tmp_path / "w.safetensors")
    model, constants = load_with_constants(tmp_path / "model.onnx")
    assert not any(one.op_type == "Cast" for one in model.graph.node)
    for name, array in weights.items():
        np.testing.assert_array_equal(constants[name].read(), array)
        assert (constants[name].dtype.name, constants[name].shape) == ("float32", array.shape)
    (tmp_path / "own").mkdir()
    save_with_constants(model, constants, tmp_path / "own" / "model.onnx")
    feeds = unet_feeds(2)
    result = open_runner(tmp_path / "own" / "model.onnx")(feeds)["out_sample"]
    assert relative_error(result, unet_float64(feeds, weights)) < 1e-5


def test_constant_nodes_and_weights_behind_a_transpose_are_constants(tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(2, np.float32))),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
        node("Mul", ["y", "c"], ["z"]),
        node("Transpose", ["w"], ["result"], perm=[1, 0]),
    ]
    path = tmp_path / "model.onnx"
    write_model(make_model(nodes, [("x", ["n", 3])], [("z", ["n", 2]), ("result", [3, 2])], {"w": weights}), path)
    model, constants = load_with_constants(path)
    assert [one.op_type for one in model.graph.node] == ["MatMul", "Mul", "Transpose"]
    np.testing.assert_array_equal(constants["t"].read(), weights.T)
    assert constants["t"].shape == (3, 2)
    assert constants["c"].read().shape == ()
    save_with_constants(model, constants, path)  # in place
    results = open_runner(path)({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(results["z"], [[6, 24]])
    np.testing.assert_array_equal(results["result"], weights.T)


def test_what_no_node_takes_is_left_out_and_what_an_inner_graph_takes_is_not(tmp_path: Path) -> None:
    then = onnx.helper.make_graph(
        [node("Mul", ["x", "inner"], ["a"])], "then", [], [onnx.helper.make_tensor_value_info("a", 1, [1])]
    )
    otherwise = onnx.helper.make_graph(
        [node("Identity", ["x"], ["b"])], "otherwise", [], [onnx.helper.make_tensor_value_info("b", 1, [1])]
    )
    model = make_model(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)],
        [("x", [1]), ("c", [], TensorProto.BOOL)],
        [("y", [1])],
        {"inner": np.array([3], np.float32), "idle": np.ones(9, np.float32)},
    )
    plain, constants = load_with_constants(write_model(model, tmp_path / "model.onnx"))
    save_with_constants(plain, constants, tmp_path / "model.onnx")
    assert [tensor.name for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer] == ["inner"]
    runner = open_runner(tmp_path / "model.onnx")
    assert runner({"x": np.ones(1, np.float32), "c": np.array(True)})["y"] == 3


def test_large_weights_lie_beside_the_graph_and_small_ones_leave_no_file(tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    large = np.random.default_rng(0).standard_normal((3000, 1500)).astype(np.float32)  # 18 MB
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
    write_model(make_model(nodes, [("x", ["n", 3000])], [("y", ["n", 1500])], {"w": large, "b": large[0]}), path)
    model, constants = load_with_constants(path)
    save_with_constants(model, constants, path)
    assert path.stat().st_size < 10_000
    assert data.stat().st_size >= large.nbytes
    assert sorted(tmp_path.iterdir()) == [path, data]
    x = np.eye(1, 3000, dtype=np.float32)
    np.testing.assert_array_equal(open_runner(path)({"x": x})["y"], large[:1] * 2)
    save_with_constants(model, {**constants, "w": constants["w"].cast(np.dtype(np.float16))}, path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_constant_beyond_a_narrower_type_is_infinite_and_read_when_it_is_needed() -> None:
    reads = []

    def read() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        reads.append(1)
        return np.array([[1, 7e4], [-1e30, 6e-8]], np.float32)

    half = Constant(np.dtype(np.float32), (2, 2), read).cast(np.dtype(np.float16)).transpose((1, 0))
    assert not reads
    np.testing.assert_array_equal(half.read(), np.array([[1, -np.inf], [np.inf, 6e-8]], np.float16))


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_model(unet(), tmp_path / "model.onnx")
    before = path.read_bytes()
    model, constants = load_with_constants(path)

    def fail() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        raise PipelineError("the disk is gone")

    broken = Constant(np.dtype(np.float32), (3000, 3000), fail)
    with pytest.raises(PipelineError, match="the disk is gone"):
        save_with_constants(model, {**constants, "conv.weight": broken}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_node_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    model, _ = load_with_constants(write_model(unet(), tmp_path / "model.onnx"))
    assert check_node_names(["a", "mixed"], model) == {"a", "mixed"}
    with pytest.raises(InvalidRequest, match=r"no node 'embeded'; .* did you mean 'embedded'"):
        check_node_names(["embeded"], model)
