"""The backends by name: open a network on a backend, or ask what each backend can do on this machine."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from stillhouse.backends import openvino, ort, tensorrt, torch
from stillhouse.backends.backend import Backend, CompileScope
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus, first_error_line
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.check import check_choice
from stillhouse.errors import BackendFailed, InvalidRequest, RuntimeMissing

ENTRY_POINT_GROUP = "stillhouse.backends"
"""Group of the entry points by which installed packages add backends. An entry point has the name of a backend, and
refers to its `Backend` value."""
_BUILTIN: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (ort.BACKEND, openvino.BACKEND, torch.BACKEND, tensorrt.BACKEND, tensorrt.RTX_BACKEND)
}
_DEFAULTS = RunnerOptions()


def open_runner(graph: Path, backend: str = "onnxruntime", options: RunnerOptions = _DEFAULTS) -> Runner:
    """Open an ONNX file, with weights inside or beside it, on a backend; on openvino also an OpenVINO graph (.xml).

    torch runs the network from which the file was exported. Options are precision, threads, static shapes and more.

    >>> run = open_runner(Path("model.onnx"), "openvino", RunnerOptions(threads=2))  # doctest: +SKIP
    >>> run({"sample": latents, "timestep": timesteps, "encoder_hidden_states": text})["out_sample"]  # doctest: +SKIP

    Raises:
        InvalidRequest: an unknown backend, threads or streams below 1, unsupported streams, or an unfit static shape.
        PipelineError: the file or its weights are missing or cut short.
        RuntimeMissing, UnsupportedPrecision, BackendFailed: see `open_graph` of the backend.
    """
    opener = find_backend(backend)
    if options.streams < 1 or (options.streams > 1 and not opener.supports_streams):
        names = ", ".join(one.name for one in _BUILTIN.values() if one.supports_streams)
        raise InvalidRequest(f"streams is {options.streams} on {backend}", allowed=f"1; more than 1 only on {names}")
    if options.threads is not None and options.threads < 1:
        raise InvalidRequest(f"threads is {options.threads}", allowed="a whole number from 1")
    return opener.open_graph(graph, read_signature(graph), options)


def find_backend(name: str) -> Backend:
    """Return the backend with this name.

    A backend of another package is imported. Where the import fails, the returned backend opens nothing, and its status
    has the reason.

    Raises:
        InvalidRequest: no backend has this name.
    """
    if name in _BUILTIN:
        return _BUILTIN[name]
    points = _entry_points()
    check_choice("backend", name, (*_BUILTIN, *points))
    return _load(points[name])


def builtin_backends() -> tuple[Backend, ...]:
    """Return the backends of this package, without those that other installed packages add."""
    return tuple(_BUILTIN.values())


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends. Backends of other packages come last."""
    return (*_BUILTIN, *_entry_points())


def backends() -> tuple[BackendStatus, ...]:
    """Return the status of every backend on this machine, whether it is installed or not, without importing torch."""
    return tuple(_status_or_reason(backend) for backend in (*_BUILTIN.values(), *map(_load, _entry_points().values())))


def compiles_per(backend: str, settings: Mapping[str, str]) -> CompileScope:
    """Return when a network with static shapes on a backend must be opened again, see `backend.CompileScope`.

    >>> [compiles_per(*one) for one in (("openvino", {}), ("tensorrt", {"batches": "together"}), ("torch", {}))]
    ['shape', 'batch', 'never']
    """
    return find_backend(backend).compiles_per(settings)


def device_arrays(backend: str, settings: Mapping[str, str]) -> Any | None:
    """Return the operations on arrays on the device on which a backend with these settings runs networks.

    Returns:
        A `diffusion.arrays.Arrays`; None where the backend takes NumPy arrays only.

    Raises:
        RuntimeMissing, InvalidRequest: the backend is not installed, or the machine lacks the device.
    """
    make = find_backend(backend).device_arrays
    return make(settings) if make else None


def _entry_points() -> dict[str, EntryPoint]:
    """Return the entry points of other packages by name, without names that a backend of this package has already."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name not in _BUILTIN}


def _load(point: EntryPoint) -> Backend:
    try:
        backend = point.load()
        if isinstance(backend, Backend) and backend.name == point.name:
            return backend
        reason = f"its entry point {point.value} is not a Backend of that name"
    except Exception as error:  # a broken package may raise any exception
        reason = f"it is installed but broken: {first_error_line(str(error))}"
    return _broken_backend(point.name, reason)


def _broken_backend(name: str, reason: str) -> Backend:
    reinstall = f"reinstall {name}"

    def open_graph(graph: Path, signature: Signature, options: RunnerOptions) -> Runner:
        raise BackendFailed(f"{name} cannot open {graph}: {reason}", fix=reinstall)

    return Backend(name, open_graph, lambda: BackendStatus(name, _version(name), (), (), reason, reinstall), reinstall)


def _status_or_reason(backend: Backend) -> BackendStatus:
    try:
        return backend.status()
    except RuntimeMissing as error:
        reason = error.problem
    except Exception as error:  # a broken installation may raise any exception
        reason = f"it is installed but broken: {first_error_line(str(error))}"
    return BackendStatus(backend.name, _version(backend.name), (), (), reason, backend.install)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
