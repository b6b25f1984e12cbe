"""The backends by name: open a network on one, or ask what each can do on this machine."""

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from stillhouse.backends import openvino, ort
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import INSTALL, BackendStatus, useful_line
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.check import check_choice
from stillhouse.errors import InvalidRequest, RuntimeMissing

Opener: TypeAlias = Callable[[Path, Signature, RunnerOptions], Runner]

_OPENERS: Mapping[str, Opener] = {"onnxruntime": ort.open_graph, "openvino": openvino.open_graph}
_STATUS: Mapping[str, Callable[[], BackendStatus]] = {"onnxruntime": ort.status, "openvino": openvino.status}
_OTHERS = {"torch": "it imports and trains; no network is run with it", "tensorrt": "no network is run with it yet"}
_DEFAULTS = RunnerOptions()


def open_runner(graph: Path, backend: str = "onnxruntime", options: RunnerOptions = _DEFAULTS) -> Runner:
    """Open an ONNX file, with its weights inside or in files beside it.

    >>> unet = open_runner(Path("shapes/unet/model.onnx"), "openvino", RunnerOptions(threads=2))  # doctest: +SKIP
    >>> unet({"sample": latents, "timestep": timesteps, "encoder_hidden_states": text})["out_sample"]  # doctest: +SKIP

    Raises:
        InvalidRequest: an unknown backend, threads below 1, or a static shape that does not fit the graph.
        PipelineError: the file or its weights are missing or cut short.
        RuntimeMissing, UnsupportedPrecision, BackendFailed: see the backend.
    """
    check_choice("backend", backend, _OPENERS)
    if options.streams < 1 or (options.streams > 1 and backend != "openvino"):
        raise InvalidRequest(f"streams is {options.streams} on {backend}", allowed="1, and more on openvino")
    if options.threads is not None and options.threads < 1:
        raise InvalidRequest(f"threads is {options.threads}", allowed="a whole number from 1")
    return _OPENERS[backend](graph, read_signature(graph), options)


def backends() -> tuple[BackendStatus, ...]:
    """Every backend that this program knows, whether it is installed or not. torch and tensorrt are not imported."""
    return (*map(_ready, _STATUS), *map(_other, _OTHERS))


def _ready(name: str) -> BackendStatus:
    try:
        return _STATUS[name]()
    except RuntimeMissing as error:
        reason = error.given
    except Exception as error:  # a broken installation fails in its own way, and its row says so
        reason = f"it is installed but broken: {useful_line(str(error))}"
    return BackendStatus(name, _version(name), (), (), reason, INSTALL[name])


def _other(name: str) -> BackendStatus:
    reason = _OTHERS[name] if find_spec(name) else "not installed"
    return BackendStatus(name, _version(name), (), (), reason, INSTALL[name])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
