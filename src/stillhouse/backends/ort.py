"""The onnxruntime backend: what a graph names, float32 or small integers, by one of its providers. The only file that
names it."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.input_checks import bind_axes, fix_axes
from stillhouse.backends.layer_precisions import read_layer_precisions
from stillhouse.backends.runner import GraphRunner, RunnerOptions, Tensors
from stillhouse.backends.runtime import INSTALL_COMMANDS, BackendStatus, require, translate_errors
from stillhouse.backends.signature import OPENVINO_SUFFIX, Signature
from stillhouse.backends.torch_device import GPU_LOCK
from stillhouse.check import check_choice
from stillhouse.core import TensorSpec
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing, UnsupportedPrecision

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "spinning": ("0", "1"),
    "census": ("0", "1"),
    "provider": ("cpu", "cuda", "tensorrt"),
}
"""Allowed values by name; the first is the default."""

_NAME = "onnxruntime"
_PRECISIONS = ("f32",)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CUDA_OPTIONS = {"use_tf32": "0"}
"""Of the CUDA provider, which would compute in ten bits what a graph names float32."""
_INSTALL_GPU_BUILD = "pip install onnxruntime-gpu, in place of onnxruntime"
_DTYPES = {"float": "float32", "double": "float64", "string": "object"}
_MIN_EXTERNAL_BYTES = "256"
_LOG_FATAL = 4  # severity "fatal": everything milder also arrives as an exception


def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> GraphRunner:
    """Open an ONNX file.

    Settings:
        spinning: 1 lets threads burn time while they wait for work: sooner there, and in everybody else's way.
        census: 1 counts the heavy operations, which costs a fifth of the time to open a small network, and a second
            for a gigabyte of weights. With halves or integers in the graph they are always counted, since nothing
            else tells what those are computed in; what the provider tensorrt compiles is not counted.
        provider: cpu; or cuda or tensorrt, in a build of onnxruntime that has it. What the provider cannot run falls
            to the next one, cuda and then cpu; a session that got none of the provider's is refused. TensorRT's
            computes float32 in TF32, against which onnxruntime has no option.

    Raises:
        InvalidRequest: an unknown setting, or a graph of OpenVINO's.
        RuntimeMissing: onnxruntime is not installed, or is a build without the provider.
        UnsupportedPrecision: anything but f32 was asked for.
        BackendFailed: onnxruntime refuses the graph.
    """
    if graph.suffix == OPENVINO_SUFFIX:
        raise InvalidRequest(f"{graph} is a graph of OpenVINO's", allowed="an ONNX file", fix="open it on openvino")
    if options.precision not in _PRECISIONS:
        raise UnsupportedPrecision(f"precision {options.precision!r} on {_NAME}", allowed=", ".join(_PRECISIONS))
    for name, value in options.settings.items():
        check_choice(f"setting of {_NAME}", name, SETTINGS)
        check_choice(name, value, SETTINGS[name])
    axes = fix_axes(options.shapes, signature.inputs)
    runtime = require(_NAME)
    providers = _providers(runtime, options.settings.get("provider", "cpu"))
    # What TensorRT has compiled cannot be written down as a graph.
    is_legible = _PROVIDERS["tensorrt"] not in providers
    counted = is_legible and (signature.arithmetic != "f32" or options.settings.get("census") == "1")
    with translate_errors(_NAME, graph, "open"):
        settings = _settings(runtime, options, bind_axes(options.shapes, signature.inputs))
        given = [(name, _CUDA_OPTIONS) if name == _PROVIDERS["cuda"] else name for name in providers]
        session, census = _open_session(runtime, str(graph), settings, given, counted)
        _check_provider(session, providers)
        session.disable_fallback()  # or a provider that fails later is another one from then on, and only prints that
    # An axis without a name stays dynamic in the runtime; it is held to its length by the check of the feeds.
    inputs = tuple(_spec(node, axes[node.name]) for node in session.get_inputs())
    outputs = tuple(_spec(node, node.shape) for node in session.get_outputs())
    names = [spec.name for spec in outputs]
    alone = nullcontext() if providers == [_PROVIDERS["cpu"]] else GPU_LOCK

    def run(feeds: Tensors) -> list[NDArray[Any]]:
        with alone:
            answers: list[NDArray[Any]] = session.run(names, feeds)
        return answers

    # A network without heavy operations computes in the types that its graph names.
    executed = set(census) or {signature.arithmetic}
    precision = executed.pop() if len(executed) == 1 else "mixed"
    return GraphRunner(graph, _NAME, precision, inputs, outputs, axes, run, layer_precisions=census)


def make_evaluator(model: bytes, directory: Path) -> Callable[[Tensors], dict[str, NDArray[Any]]]:
    """A function that runs a graph which is no file, and whose weights lie in files of `directory`.

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
    """What onnxruntime can do on this machine."""
    devices = [name.removesuffix("ExecutionProvider") for name in require(_NAME).get_available_providers()]
    usable = tuple(device for device in devices if device != "Azure")  # a client of a remote service
    return BackendStatus(_NAME, require(_NAME).__version__, usable, _PRECISIONS, None, INSTALL_COMMANDS[_NAME])


def _providers(runtime: Any, requested: str) -> list[str]:
    """The one that is asked for, and those that what it cannot run falls to."""
    wanted = [_PROVIDERS[name] for name in {"tensorrt": ("tensorrt", "cuda", "cpu")}.get(requested, (requested, "cpu"))]
    if wanted[0] not in runtime.get_available_providers():
        raise RuntimeMissing(f"this build of {_NAME} has no provider {requested}", fix=_INSTALL_GPU_BUILD)
    if requested != "cpu" and hasattr(runtime, "preload_dlls"):
        with redirect_stdout(StringIO()):  # it prints what it does
            runtime.preload_dlls()  # CUDA's libraries as pip installs them lie where no loader looks
    return list(dict.fromkeys(wanted))


def _check_provider(session: Any, expected: Sequence[str]) -> None:
    """onnxruntime opens a session on the CPU where the provider cannot start, and says so in its log only."""
    got = session.get_providers()
    if got[0] != expected[0]:
        raise BackendFailed(
            f"{_NAME} opened the graph on {got[0]} in place of {expected[0]}",
            fix="see that the driver and the libraries of CUDA fit the build of onnxruntime",
        )


def _settings(runtime: Any, options: RunnerOptions, lengths: Mapping[str, int]) -> Any:
    settings = runtime.SessionOptions()
    settings.log_severity_level = _LOG_FATAL
    settings.intra_op_num_threads = options.threads or _default_threads()
    settings.inter_op_num_threads = 1
    # A pipeline holds several sessions, and often a second runtime. Threads that spin after their work is done take
    # the cores from whichever runs next (onnxruntime issues 13808 and 17011); to sleep costs microseconds per layer.
    settings.add_session_config_entry("session.intra_op.allow_spinning", options.settings.get("spinning", "0"))
    for axis, length in lengths.items():
        settings.add_free_dimension_override_by_name(axis, length)
    return settings


def _open_session(
    runtime: Any, graph: str, settings: Any, providers: Sequence[Any], count_layers: bool
) -> tuple[Any, dict[str, int]]:
    """A session and, where it is asked for, the census of the graph that the runtime made of this one.

    The runtime writes that graph, and its weights to nowhere; that costs a second for a gigabyte of them.
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


def _default_threads() -> int:
    """0, the runtime's own default, counts the whole machine's cores, also where this process may use only some."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed


def _spec(node: Any, axes: Sequence[int | str | None]) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(node.name, _DTYPES.get(kind, kind), tuple(a if isinstance(a, int) else None for a in axes))
