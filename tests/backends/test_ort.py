"""What only onnxruntime does."""

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from stillhouse.backends import RunnerOptions, open_runner, ort
from stillhouse.errors import BackendFailed, UnsupportedPrecision
from tests.backends.networks import network, node, unet, write


@pytest.mark.parametrize("precision", ["bf16", "f16", "auto", "int8"])
def test_float32_is_all_it_offers(precision: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecision, match=f"'{precision}' on onnxruntime; allowed: f32"):
        open_runner(write(unet(), tmp_path / "model.onnx"), options=RunnerOptions(precision))


def test_a_graph_that_computes_in_halves_is_not_called_float32(tmp_path: Path) -> None:
    model = network(
        [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["y"])],
        [("x", ["n", 2])],
        [("y", ["n", 2], TensorProto.FLOAT16)],
        {"w": np.eye(2, dtype=np.float16)},
    )
    runner = open_runner(write(model, tmp_path / "half.onnx"))
    assert (runner.precision, runner.outputs[0].dtype) == ("mixed", "float16")
    np.testing.assert_array_equal(runner({"x": np.ones((1, 2), np.float32)})["y"], [[1, 1]])


def test_what_it_refuses_to_run_is_said_in_one_line(tmp_path: Path) -> None:
    model = network(
        [node("Reshape", ["x", "to"], ["y"])],
        [("x", ["n"]), ("to", [2], TensorProto.INT64)],
        [("y", ["a", "b"])],
    )
    runner = open_runner(write(model, tmp_path / "reshape.onnx"))
    with pytest.raises(BackendFailed, match=r"could not run .*reshape.onnx: .*Reshape.*requested shape:\{4,2\}$"):
        runner({"x": np.ones(6, np.float32), "to": np.array([4, 2])})


@pytest.mark.parametrize(("allowed", "machine", "threads"), [({0, 1}, 2, 0), ({1}, 2, 1), ({4, 5, 6}, 64, 3)])
def test_threads_follow_the_cores_that_this_process_may_use(
    allowed: set[int], machine: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    assert ort._default_threads() == threads


def test_threads_are_left_to_the_runtime_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert ort._default_threads() == 0
