"""What only onnxruntime does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from stillhouse.backends import RunnerOptions, open_runner, openvino, ort
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision
from tests.backends.networks import BACKENDS, make_model, node, unet, unet_feeds, write_model


@pytest.mark.parametrize("precision", ["bf16", "f16", "auto", "int8"])
def test_float32_is_all_it_offers(precision: str, tmp_path: Path) -> None:
    message = f"onnxruntime cannot open a graph in precision '{precision}'; allowed: f32"
    with pytest.raises(UnsupportedPrecision, match=message):
        open_runner(write_model(unet(), tmp_path / "model.onnx"), options=RunnerOptions(precision))


def test_a_graph_of_halves_is_called_by_what_it_is_computed_in(tmp_path: Path) -> None:
    """On x86 the runtime has no product of halves: it casts to float32 and back, and that is what is told."""
    model = make_model(
        [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["y"])],
        [("x", ["n", 2])],
        [("y", ["n", 2], TensorProto.FLOAT16)],
        {"w": np.eye(2, dtype=np.float16)},
    )
    runner = open_runner(write_model(model, tmp_path / "half.onnx"))
    assert (runner.precision, runner.layer_precisions, runner.outputs[0].dtype) == ("f32", {"f32": 1}, "float16")
    np.testing.assert_array_equal(runner({"x": np.ones((1, 2), np.float32)})["y"], [[1, 1]])


def test_halves_without_a_heavy_operation_are_mixed(tmp_path: Path) -> None:
    model = make_model(
        [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("Neg", ["h"], ["y"])],
        [("x", ["n"])],
        [("y", ["n"], TensorProto.FLOAT16)],
    )
    runner = open_runner(write_model(model, tmp_path / "half.onnx"))
    assert (runner.precision, runner.layer_precisions) == ("mixed", {})


def test_a_float32_graph_is_counted_when_it_is_asked_for(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    assert open_runner(graph).layer_precisions == {}
    assert open_runner(graph, options=RunnerOptions(settings={"count_layers": "1"})).layer_precisions == {"f32": 7}
    assert list(tmp_path.iterdir()) == [graph]


@pytest.mark.parametrize("spinning", ["0", "1"])
def test_spinning_does_not_change_the_result(spinning: str, tmp_path: Path) -> None:
    graph, feeds = write_model(unet(), tmp_path / "model.onnx"), unet_feeds(2)
    runner = open_runner(graph, options=RunnerOptions(threads=2, settings={"spinning": spinning}))
    np.testing.assert_array_equal(runner(feeds)["out_sample"], open_runner(graph)(feeds)["out_sample"])


def test_unknown_settings_are_refused(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    match = "no setting of onnxruntime 'spining'; allowed: spinning, count_layers, provider; did you mean 'spinning'"
    with pytest.raises(InvalidRequest, match=match):
        open_runner(graph, options=RunnerOptions(settings={"spining": "1"}))
    with pytest.raises(InvalidRequest, match="no spinning 'yes'; allowed: 0, 1"):
        open_runner(graph, options=RunnerOptions(settings={"spinning": "yes"}))


class FakeRuntime:
    """onnxruntime with providers of which some do not start: the session then says so in no way but this."""

    def __init__(self, available: tuple[str, ...], started: tuple[str, ...]) -> None:
        self.available, self.started = available, started
        self.asked: dict[str, dict[str, str]] = {}
        self.session: Any = None

    def get_available_providers(self) -> tuple[str, ...]:
        return self.available

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def InferenceSession(self, graph: Any, settings: Any, providers: list[Any]) -> Any:  # noqa: N802
        self.asked = dict(one if isinstance(one, tuple) else (one, {}) for one in providers)
        if "TensorrtExecutionProvider" in self.asked and settings.optimized_model_filepath:
            raise RuntimeError("Unable to serialize model as it contains compiled nodes")
        session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: [one for one in self.asked if one in self.started]
        self.session = session
        return session


def test_a_provider_that_is_not_in_this_build_is_told_with_the_one_that_has_it(tmp_path: Path) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(RuntimeMissing, match=f"no provider {provider}; pip install onnxruntime-gpu"):
            open_runner(graph, options=RunnerOptions(settings={"provider": provider}))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_start_is_an_error_and_not_another_one(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = write_model(unet(), tmp_path / "model.onnx")
    every = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    options = RunnerOptions(settings={"provider": provider})
    works = FakeRuntime(every, every)
    monkeypatch.setattr(ort, "require", lambda name: works)
    assert open_runner(graph, options=options)(unet_feeds(1))["out_sample"].shape[0] == 1
    assert works.asked["CUDAExecutionProvider"] == {"use_tf32": "0"}, "float32 is float32 to this one"
    assert not works.session._enable_fallback, "nor is it another one later"
    monkeypatch.setattr(ort, "require", lambda name: FakeRuntime(every, ("CPUExecutionProvider",)))
    with pytest.raises(BackendFailed, match="opened the graph on CPUExecutionProvider in place of"):
        open_runner(graph, options=options)


def test_halves_are_not_counted_where_tensorrt_compiles_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot write them down, and refused to be opened at all."""
    model = make_model(
        [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["y"])],
        [("x", ["n", 2])],
        [("y", ["n", 2], TensorProto.FLOAT16)],
        {"w": np.eye(2, dtype=np.float16)},
    )
    every = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(ort, "require", lambda name: FakeRuntime(every, every))
    graph = write_model(model, tmp_path / "half.onnx")
    assert open_runner(graph, options=RunnerOptions(settings={"provider": "tensorrt"})).layer_precisions == {}
    assert open_runner(graph, options=RunnerOptions(settings={"provider": "cuda"})).layer_precisions == {"f32": 1}


def test_a_graph_that_is_no_file_reads_weights_from_a_directory(tmp_path: Path) -> None:
    model, feeds = unet(), unet_feeds(2)
    graph = write_model(model, tmp_path / "model.onnx")
    (tmp_path / "apart").mkdir()
    onnx.save(model, tmp_path / "apart" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=512)
    (tmp_path / "apart" / "m.onnx").rename(tmp_path / "m.onnx")
    evaluate = ort.make_evaluator((tmp_path / "m.onnx").read_bytes(), tmp_path / "apart")
    np.testing.assert_array_equal(evaluate(dict(feeds))["out_sample"], open_runner(graph)(feeds)["out_sample"])
    with pytest.raises(BackendFailed, match=f"could not open a graph of {tmp_path}"):
        ort.make_evaluator((tmp_path / "m.onnx").read_bytes(), tmp_path)


def test_what_it_refuses_to_run_is_said_in_one_line(tmp_path: Path) -> None:
    model = make_model(
        [node("Reshape", ["x", "to"], ["y"])],
        [("x", ["n"]), ("to", [2], TensorProto.INT64)],
        [("y", ["a", "b"])],
    )
    runner = open_runner(write_model(model, tmp_path / "reshape.onnx"))
    with pytest.raises(BackendFailed, match=r"could not run .*reshape.onnx: .*Reshape.*requested shape:\{4,2\}$"):
        runner({"x": np.ones(6, np.float32), "to": np.array([4, 2])})


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_follow_the_cores_that_this_process_may_use(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `cpu.limited_cores` counts them, unless the user names a number; None leaves the number to the runtime."""
    graph = write_model(unet(), tmp_path / "model.onnx")
    for limit, requested, threads in ((None, None, None), (3, None, 3), (3, 2, 2), (None, 2, 2)):
        monkeypatch.setattr(ort, "limited_cores", lambda limit=limit: limit)
        monkeypatch.setattr(openvino, "limited_cores", lambda limit=limit: limit)
        options = RunnerOptions(threads=requested)
        if backend == "openvino":
            assert openvino.compile_properties(options).get("INFERENCE_NUM_THREADS") == threads
        else:
            assert ort._settings(onnxruntime, options, {}).intra_op_num_threads == (threads or 0)
    assert open_runner(graph, backend)(unet_feeds(1))["out_sample"].shape[0] == 1
