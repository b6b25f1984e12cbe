"""Attentions over many tokens are found in an OpenVINO model and replaced; all others stay."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, save_model

from stillhouse.backends.int8_attention import INT8_ATTENTION, multiplies_bf16
from stillhouse.backends.openvino_attention import MIN_TOKENS
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.cpu import processor_flags
from stillhouse.errors import InvalidRequest
from stillhouse.measure.fidelity import compare_tensors

REASON = INT8_ATTENTION.missing_reason(processor_flags())
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "it runs")
HEADS, DIM = 2, 8
WIDTH = HEADS * DIM
MANY = MIN_TOKENS + 44


def write_attention(path: Path, scale: float = DIM**-0.25) -> Path:
    """Attention of `x` over `context`, [rows, tokens, 16] both, in the form that torch's exporter writes."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4 for name in ("q", "k", "v", "o")}
    constants = {
        **weights,
        "split": np.array([0, 0, HEADS, DIM]),
        "join": np.array([0, 0, WIDTH]),
        "scale": np.array([scale], np.float32),
    }

    def heads(name: str, source: str, perm: list[int]) -> list[NodeProto]:
        return [
            helper.make_node("MatMul", [source, name], [f"{name}_flat"]),
            helper.make_node("Reshape", [f"{name}_flat", "split"], [f"{name}_split"]),
            helper.make_node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=perm),
        ]

    nodes = [
        *heads("q", "x", [0, 2, 1, 3]),
        *heads("k", "context", [0, 2, 3, 1]),
        *heads("v", "context", [0, 2, 1, 3]),
        helper.make_node("Mul", ["q_heads", "scale"], ["q_scaled"]),
        helper.make_node("Mul", ["k_heads", "scale"], ["k_scaled"]),
        helper.make_node("MatMul", ["q_scaled", "k_scaled"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v_heads"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["tokens"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["tokens", "join"], ["joined"]),
        helper.make_node("MatMul", ["joined", "o"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", length, WIDTH])
        for name, length in (("x", "tokens"), ("context", "texts"))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "tokens", WIDTH])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "attention", inputs, [output], initializers)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def feeds(rows: int, tokens: int, texts: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(1)
    return {
        "x": random.standard_normal((rows, tokens, WIDTH), np.float32),
        "context": random.standard_normal((rows, texts, WIDTH), np.float32),
    }


def run(
    path: Path, arrays: dict[str, NDArray[np.float32]], attention: str, streams: int = 1, precision: str = "f32"
) -> NDArray[np.float32]:
    shapes = {name: array.shape if streams == 1 else (1, *array.shape[1:]) for name, array in arrays.items()}
    options = RunnerOptions(
        precision, shapes=shapes, streams=streams, static=streams == 1, settings={"attention": attention}
    )
    return np.asarray(open_runner(path, "openvino", options)(arrays)["y"])


@pytest.mark.parametrize("streams", [1, 2])
def test_attention_over_many_tokens_is_replaced(tmp_path: Path, streams: int) -> None:
    path, arrays = write_attention(tmp_path / "attention.onnx"), feeds(3, MANY, MANY)
    plain, replaced = (run(path, arrays, attention, streams) for attention in ("plain", "int8"))
    assert not np.array_equal(plain, replaced)
    assert compare_tensors(plain, replaced).sqnr > 30.0


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
@pytest.mark.parametrize("streams", [1, 2])
def test_in_bf16_attention_reads_and_writes_bf16(tmp_path: Path, streams: int) -> None:
    path, arrays = write_attention(tmp_path / "attention.onnx"), feeds(3, MANY, MANY)
    exact, plain = run(path, arrays, "plain"), run(path, arrays, "plain", precision="bf16")
    replaced = run(path, arrays, "int8", streams, "bf16")
    assert not np.array_equal(plain, replaced)
    assert compare_tensors(exact, replaced).sqnr > 28.0


def test_any_scale_is_read_from_the_graph(tmp_path: Path) -> None:
    path, arrays = write_attention(tmp_path / "attention.onnx", scale=0.3), feeds(1, MANY, MANY)
    assert compare_tensors(run(path, arrays, "plain"), run(path, arrays, "int8")).sqnr > 30.0


@pytest.mark.parametrize(("tokens", "texts"), [(MANY, 77), (77, MANY), (16, 16)])
def test_short_attention_stays(tmp_path: Path, tokens: int, texts: int) -> None:
    path, arrays = write_attention(tmp_path / "attention.onnx"), feeds(2, tokens, texts)
    assert np.array_equal(run(path, arrays, "plain"), run(path, arrays, "int8"))


def test_a_row_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    path, arrays = write_attention(tmp_path / "attention.onnx"), feeds(3, MANY, MANY)
    alone = [run(path, {name: array[[row]] for name, array in arrays.items()}, "int8", 2) for row in range(3)]
    assert np.array_equal(run(path, arrays, "int8", 2), np.concatenate(alone))


def test_open_axes_are_refused(tmp_path: Path) -> None:
    path = write_attention(tmp_path / "attention.onnx")
    with pytest.raises(InvalidRequest, match="attention: int8 was requested for open axes"):
        open_runner(path, "openvino", RunnerOptions(settings={"attention": "int8"}))


def test_the_network_is_not_cached_but_others_are(tmp_path: Path) -> None:
    """OpenVINO could not read the nodes back."""
    path, arrays = write_attention(tmp_path / "attention.onnx"), feeds(1, MANY, MANY)
    shapes = {name: array.shape for name, array in arrays.items()}
    for attention, is_cached in (("int8", False), ("plain", True)):
        cache = tmp_path / attention
        cache.mkdir()
        options = RunnerOptions(shapes=shapes, static=True, cache=cache, settings={"attention": attention})
        open_runner(path, "openvino", options)
        assert any(cache.iterdir()) == is_cached
