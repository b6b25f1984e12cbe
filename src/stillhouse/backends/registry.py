"""The backends by name: open a network on one, or ask what each can do on this machine."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from stillhouse.backends import openvino, ort, tensorrt, torch
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import INSTALL_COMMANDS, BackendStatus, first_error_line
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.check import check_choice
from stillhouse.errors import InvalidRequest, RuntimeMissing

Opener: TypeAlias = Callable[[Path, Signature, RunnerOptions], Runner]

_OPENERS: Mapping[str, Opener] = {
    "onnxruntime": ort.open_graph,
    "openvino": openvino.open_graph,
    "torch": torch.open_graph,
    "tensorrt": tensorrt.open_graph,
    "tensorrt-rtx": partial(tensorrt.open_graph, name="tensorrt-rtx"),
}
_STATUS: Mapping[str, Callable[[], BackendStatus]] = {
    "onnxruntime": ort.status,
    "openvino": openvino.status,
    "torch": torch.status,
    "tensorrt": tensorrt.status,
    "tensorrt-rtx": partial(tensorrt.status, "tensorrt-rtx"),
}
_ARRAYS: Mapping[str, Callable[[Mapping[str, str]], Any]] = {
    "torch": torch.torch_device_arrays,
    "tensorrt": tensorrt.tensorrt_device_arrays,
    "tensorrt-rtx": partial(tensorrt.tensorrt_device_arrays, name="tensorrt-rtx"),
}
PLUGINS = "stillhouse.backends"
"""The entry points by which an installed package adds an engine: by its name, an object with the functions
`open_graph(graph, signature, options)`, which gives a Runner, and `status()`, which gives a BackendStatus."""
_DEFAULTS = RunnerOptions()


def open_runner(graph: Path, backend: str = "onnxruntime", options: RunnerOptions = _DEFAULTS) -> Runner:
    """Open an ONNX file, with its weights inside or in files beside it; on torch, the network that it is made from.

    >>> unet = open_runner(Path("shapes/unet/model.onnx"), "openvino", RunnerOptions(threads=2))  # doctest: +SKIP
    >>> unet({"sample": latents, "timestep": timesteps, "encoder_hidden_states": text})["out_sample"]  # doctest: +SKIP

    Raises:
        InvalidRequest: an unknown backend, threads below 1, or a static shape that does not fit the graph.
        PipelineError: the file or its weights are missing or cut short.
        RuntimeMissing, UnsupportedPrecision, BackendFailed: see the backend.
    """
    openers = _OPENERS if backend in _OPENERS else {**_OPENERS, **_plugins("open_graph")}
    check_choice("backend", backend, openers)
    if options.streams < 1 or (options.streams > 1 and backend in _OPENERS and backend != "openvino"):
        raise InvalidRequest(f"streams is {options.streams} on {backend}", allowed="1, and more on openvino")
    if options.threads is not None and options.threads < 1:
        raise InvalidRequest(f"threads is {options.threads}", allowed="a whole number from 1")
    runner: Runner = openers[backend](graph, read_signature(graph), options)
    return runner


def reopen_scope(backend: str, settings: Mapping[str, str]) -> Literal["shapes", "sizes", "nothing"]:
    """What a static network is to be opened anew for: each shape, or each size of picture with all batches of it, or
    nothing, where the backend compiles for each shape by itself.

    >>> [reopened_for(*one) for one in (("openvino", {}), ("tensorrt", {"batches": "together"}), ("torch", {}))]
    ['shapes', 'sizes', 'nothing']
    """
    if backend == "torch":
        return "nothing"
    return "sizes" if settings.get("batches") == "together" else "shapes"


def device_arrays(backend: str, settings: Mapping[str, str]) -> Any | None:
    """The arrays that networks of a backend take and leave where they run, see `diffusion.arrays`; None: NumPy's only.

    Raises:
        RuntimeMissing, InvalidRequest: the backend or its device is not here.
    """
    return _ARRAYS[backend](settings) if backend in _ARRAYS else None


def backends() -> tuple[BackendStatus, ...]:
    """Every backend that this program knows, whether it is installed or not. torch is not imported."""
    return tuple(_status_or_reason(name, status) for name, status in {**_STATUS, **_plugins("status")}.items())


def _plugins(function: str) -> dict[str, Callable[..., Any]]:
    """That function of every engine that another package brings; a name of ours is not given away."""
    return {
        point.name: partial(_call_plugin, point, function)
        for point in entry_points(group=PLUGINS)
        if point.name not in _OPENERS
    }


def _call_plugin(point: EntryPoint, function: str, *arguments: Any) -> Any:
    return getattr(point.load(), function)(*arguments)


def _status_or_reason(name: str, status: Callable[[], BackendStatus]) -> BackendStatus:
    try:
        return status()
    except RuntimeMissing as error:
        reason = error.given
    except Exception as error:  # a broken installation fails in its own way, and its row says so
        reason = f"it is installed but broken: {first_error_line(str(error))}"
    return BackendStatus(name, _version(name), (), (), reason, INSTALL_COMMANDS.get(name, f"reinstall {name}"))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
