"""The onnxruntime backend, on the CPU or, by another execution provider, on a GPU.

Only this module imports onnxruntime.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.backend import Backend, CandidateContext, CandidateSpec
from stillhouse.backends.layer_precisions import read_layer_precisions
from stillhouse.backends.recipes import FLOAT16, dynamic_recipe, static_recipe
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors, bind_axes, check_settings, fix_axes
from stillhouse.backends.runtime import BackendStatus, install_command, require, translate_errors
from stillhouse.backends.signature import OPENVINO_SUFFIX, Signature, is_large
from stillhouse.backends.torch_device import CUDA, GPU_LOCK
from stillhouse.core import TensorSpec
from stillhouse.cpu import limited_cores
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "spinning": ("0", "1"),
    "count_layers": ("0", "1"),
    "provider": ("cpu", "cuda", "tensorrt"),
}
"""Allowed values of each setting; the first value is the default."""

_NAME = "onnxruntime"
_PRECISIONS = ("f32",)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CUDA_OPTIONS = {"use_tf32": "0"}
"""Options of the CUDA provider. By default, the provider would compute float32 in TF32."""
_INSTALL_GPU_BUILD = "pip install onnxruntime-gpu, in place of onnxruntime"
_DTYPES = {"float": "float32", "double": "float64", "string": "object"}
_MIN_EXTERNAL_BYTES = "256"
_GPU_RANK, _CPU_RANK = 30, 60
_LOG_FATAL = 4  # only fatal errors are logged, since onnxruntime raises all other errors as exceptions


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> GraphRunner:
    """Open an ONNX file. The network computes in the types of the graph: float32, float16 or small integers.

    Args:
        graph: path of the ONNX file.
        signature: inputs, outputs and weights files of the graph.
        options: precision, threads, static shapes and settings of the backend.

    Settings:
        spinning: 1 lets waiting threads spin. This is faster, but slows other processes and runtimes down.
        count_layers: 1 counts convolutions, matrix products and attentions by precision. Counting makes the opening of
            a small network a fifth longer, and takes a second per gigabyte of weights. Whatever the setting, layers are
            counted in graphs with half precision or integers, since nothing else says in which precision these graphs
            compute. In graphs that TensorRT compiles, layers are never counted.
        provider: cpu; or cuda or tensorrt, in a build of onnxruntime that has the provider. Operations that tensorrt
            cannot run go to cuda, and from there to cpu; a session that does not use the requested provider is refused.
            The tensorrt provider computes float32 in TF32, which onnxruntime cannot switch off.

    Raises:
        InvalidRequest: an unknown setting, or an OpenVINO graph.
        RuntimeMissing: onnxruntime is not installed, or its build lacks the provider.
        UnsupportedPrecision: the precision is not f32.
        BackendFailed: onnxruntime refuses the graph.
    """
    if graph.suffix == OPENVINO_SUFFIX:
        raise InvalidRequest(f"{graph} is an OpenVINO graph", allowed="an ONNX file", fix="open it on openvino")
    if options.precision not in _PRECISIONS:
        raise UnsupportedPrecision(
            f"{_NAME} cannot open a graph in precision {options.precision!r}", allowed=", ".join(_PRECISIONS)
        )
    check_settings(_NAME, options.settings, SETTINGS)
    axes = fix_axes(options.shapes, signature.inputs)
    runtime = require(_NAME)
    providers = _providers(runtime, options.settings.get("provider", "cpu"))
    # Layers are counted in the optimised graph that onnxruntime saves. With TensorRT nothing is counted, because
    # onnxruntime cannot save a graph that TensorRT has compiled.
    count_layers = _PROVIDERS["tensorrt"] not in providers and (
        signature.arithmetic != "f32" or options.settings.get("count_layers") == "1"
    )
    with translate_errors(_NAME, graph, "open"):
        settings = _settings(runtime, options, bind_axes(options.shapes, signature.inputs))
        # Memory planned ahead takes 2.2 GiB beside the first call's at Stable Diffusion 1.5's size, and makes the
        # second call 3 s longer; all others are 1 % faster.
        settings.enable_mem_pattern = not is_large(graph, signature)
        options_of = [(name, _CUDA_OPTIONS) if name == _PROVIDERS["cuda"] else name for name in providers]
        session, layers = _open_session(runtime, str(graph), settings, options_of, count_layers)
        _check_provider(session, providers)
        session.disable_fallback()  # otherwise onnxruntime would silently replace a provider that fails
    # The shapes of the specs come from `axes`, not from onnxruntime, which fixes the lengths of named axes only.
    # GraphRunner checks the lengths of axes without a name.
    inputs = tuple(_spec(node, axes[node.name]) for node in session.get_inputs())
    outputs = tuple(_spec(node, node.shape) for node in session.get_outputs() if node.name in signature.outputs)
    names = [spec.name for spec in outputs]

    def run(feeds: Tensors) -> list[NDArray[Any]]:
        results: list[NDArray[Any]] = session.run(names, feeds)
        return results

    def run_on_gpu(feeds: Tensors) -> list[NDArray[Any]]:
        with GPU_LOCK:
            return run(feeds)

    chosen_run = run if providers == [_PROVIDERS["cpu"]] else run_on_gpu
    # A graph without convolutions, matrix products and attentions has no layer precisions (`layers` is empty). The
    # arithmetic of the graph's signature is then reported.
    executed = set(layers) or {signature.arithmetic}
    precision = executed.pop() if len(executed) == 1 else "mixed"
    return GraphRunner(graph, _NAME, precision, inputs, outputs, axes, chosen_run, layer_precisions=layers)


def make_evaluator(model: bytes, directory: Path) -> Callable[[Tensors], dict[str, NDArray[Any]]]:
    """Return a function that runs a serialized ModelProto on the CPU, from inputs by name to outputs by name.

    The graph's weights files lie in `directory`.

    Raises:
        BackendFailed: onnxruntime refuses the graph.
    """
    runtime = require(_NAME)
    settings = _settings(runtime, RunnerOptions(), {})
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    with translate_errors(_NAME, directory, "open a graph of"):
        session = runtime.InferenceSession(model, settings, providers=[_PROVIDERS["cpu"]])
    names = [node.name for node in session.get_outputs()]

    def evaluate(feeds: Tensors) -> dict[str, NDArray[Any]]:
        with translate_errors(_NAME, directory, "run a graph of"):
            return dict(zip(names, session.run(names, feeds), strict=True))

    return evaluate


def status() -> BackendStatus:
    """Return the version, devices and precisions of onnxruntime on this machine.

    Raises:
        RuntimeMissing: onnxruntime is not installed.
    """
    devices = map(_short_name, require(_NAME).get_available_providers())
    usable = tuple(device for device in devices if device != "Azure")  # Azure would call a remote service
    return BackendStatus(_NAME, require(_NAME).__version__, usable, _PRECISIONS, None, install_command(_NAME))


def _providers(runtime: Any, requested: str) -> list[str]:
    """Return onnxruntime's names of the requested provider and of those that run what the requested one cannot run.

    `runtime` is the module onnxruntime.

    Raises:
        RuntimeMissing: this build of onnxruntime does not have the requested provider.
    """
    names = {"tensorrt": ("tensorrt", "cuda", "cpu")}.get(requested, (requested, "cpu"))
    providers = [_PROVIDERS[name] for name in names]
    if providers[0] not in runtime.get_available_providers():
        raise RuntimeMissing(f"this build of {_NAME} has no provider {requested}", fix=_INSTALL_GPU_BUILD)
    if requested != "cpu" and hasattr(runtime, "preload_dlls"):
        with redirect_stdout(StringIO()):  # preload_dlls prints messages that users need not see
            runtime.preload_dlls()  # pip installs CUDA's libraries where the system's loader does not look
    return list(dict.fromkeys(providers))


def _check_provider(session: Any, expected: Sequence[str]) -> None:
    """Raise BackendFailed where the first provider of a session is not the first of `expected`.

    onnxruntime falls back to another provider where it cannot use the requested one, and only logs this.
    """
    actual = session.get_providers()
    if actual[0] != expected[0]:
        raise BackendFailed(
            f"{_NAME} opened the graph on {actual[0]} in place of {expected[0]}",
            fix="check that the driver and CUDA's libraries fit the build of onnxruntime",
        )


def _settings(runtime: Any, options: RunnerOptions, lengths: Mapping[str, int]) -> Any:
    settings = runtime.SessionOptions()
    settings.log_severity_level = _LOG_FATAL
    settings.intra_op_num_threads = options.threads or limited_cores() or 0  # 0: all cores
    settings.inter_op_num_threads = 1
    # By default ("0") idle threads sleep, although waking them costs microseconds per layer. A pipeline holds several
    # sessions, and idle threads of one session that spin would keep the cores from the next session (onnxruntime issues
    # 13808 and 17011).
    settings.add_session_config_entry("session.intra_op.allow_spinning", options.settings.get("spinning", "0"))
    for axis, length in lengths.items():
        settings.add_free_dimension_override_by_name(axis, length)
    return settings


def _open_session(
    runtime: Any, graph: str, settings: Any, providers: Sequence[Any], count_layers: bool
) -> tuple[Any, dict[str, int]]:
    """Open a session; return it with the number of layers by precision, which is empty without `count_layers`.

    Layers are counted in the optimised graph. The runtime writes this graph to a temporary file, and the weights to the
    null device. Counting takes a second per gigabyte of weights.

    Args:
        runtime: the module onnxruntime.
        graph: path of the ONNX file.
        settings: onnxruntime's SessionOptions; changed where layers are counted.
        providers: providers in the order of preference, each a name, or a name and its options.
        count_layers: whether layers are counted.
    """
    if not count_layers:
        return runtime.InferenceSession(graph, settings, providers=providers), {}
    with TemporaryDirectory(prefix="stillhouse-") as directory:
        optimised, nowhere = Path(directory) / "optimised.onnx", Path(directory) / "weights"
        nowhere.symlink_to(os.devnull)
        settings.optimized_model_filepath = str(optimised)
        entry = "session.optimized_model_external_initializers"
        settings.add_session_config_entry(f"{entry}_file_name", nowhere.name)
        settings.add_session_config_entry(f"{entry}_min_size_in_bytes", _MIN_EXTERNAL_BYTES)
        session = runtime.InferenceSession(graph, settings, providers=providers)
        return session, read_layer_precisions(optimised)


def _spec(node: Any, axes: Sequence[int | str | None]) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(node.name, _DTYPES.get(kind, kind), tuple(a if isinstance(a, int) else None for a in axes))


def candidates(context: CandidateContext) -> Iterator[CandidateSpec]:
    """Yield the configurations of onnxruntime that `stillhouse accelerate` measures, on a GPU and on the processor."""
    if context.cost == "low":
        return
    for recipe, provider in (("f16", "tensorrt"), ("f16", "cuda"), ("f32", "cuda")):
        yield CandidateSpec(recipe, options={"provider": provider}, rank=_GPU_RANK)
    yield CandidateSpec("f16", rank=_CPU_RANK)
    if context.cost == "high":
        yield CandidateSpec(options={"spinning": "1"}, rank=_CPU_RANK)
        for recipe in ("int8-static", "uint8-dynamic", "int8-dynamic"):
            yield CandidateSpec(recipe, rank=_CPU_RANK)
        yield CandidateSpec(options={"shapes": "static"}, rank=_CPU_RANK)
        if context.threads > 1:
            yield CandidateSpec(options={"threads": "1"}, rank=_CPU_RANK)


def exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    """Return why the provider of a candidate (a configuration to measure) cannot run here; "" where it can."""
    provider = spec.options.get("provider", "cpu")
    if provider == "cpu":
        return ""
    if context.device not in ("auto", CUDA, f"{CUDA}:0"):
        return f"{_NAME} candidates use the first GPU only"
    if _short_name(_PROVIDERS[provider]) not in context.status.devices:
        return f"this build of {_NAME} has no provider {provider}: pip install onnxruntime-gpu instead"
    return ""


def _short_name(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


BACKEND = Backend(
    _NAME,
    open_graph,
    status,
    install_command(_NAME),
    settings=SETTINGS,
    count_settings={"count_layers": "1"},
    packages=(_NAME,),
    recipes={
        "f16": FLOAT16,
        "int8-static": static_recipe("uint8"),
        "int8-dynamic": dynamic_recipe("int8"),
        "uint8-dynamic": dynamic_recipe("uint8"),
    },
    candidates=candidates,
    exclusion=exclusion,
)
