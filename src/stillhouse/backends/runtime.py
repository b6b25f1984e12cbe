"""Optional packages, above all inference runtimes: import, install command, status, translation of exceptions."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from stillhouse.errors import BackendFailed, RuntimeMissing, StillhouseError
from stillhouse.interrupt import hold_interrupt

_EXTRAS = {
    "onnx": "accelerate",
    "nncf": "accelerate",
    "torch": "train",
    "diffusers": "train",
    "transformers": "train",
    "accelerate": "train",
    "safetensors": "train",
    "triton": "gpu",
    "torchao": "gpu",
}
"""Name of the extra of Stillhouse that installs an optional package, by name of the package."""
OUT_OF_MEMORY_FIX = (
    "use smaller pictures, smaller batches, a tiled decoder, or offload the weights to the processor's memory"
)
"""Advice for the user where a GPU has too little memory."""
# An error of OpenVINO begins with lines such as these, which name OpenVINO's own source files. These lines are skipped,
# so that users see the line with the cause.
_PREAMBLE = re.compile(
    r"Exception from |Check '.*' failed at |-- .* with a message:$|While validating ONNX node .*: Check |"
    r"Loading input model|FrontEnd API failed|Model wasn't fully|Summary:|$"
)
_ORT_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What a backend can do on this machine: a row of `stillhouse doctor`.

    Args:
        name: name of the backend, as given to `open_runner`.
        version: version of the installed package; None where it is not installed.
        devices: devices of this machine on which the backend can compute, by the backend's names.
        precisions: precisions that the backend accepts on this machine.
        reason: why the backend cannot run a network here; None where it is ready.
        install: command that installs the backend.
    """

    name: str
    version: str | None
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    reason: str | None
    install: str


def install_command(package: str) -> str:
    """Return the command that installs an optional package.

    >>> install_command("nncf")
    "pip install 'stillhouse[accelerate]'"
    """
    extra = _EXTRAS.get(package)
    return f"pip install 'stillhouse[{extra}]'" if extra else f"pip install {package.replace('_', '-')}"


def require(name: str) -> Any:
    """Import a module of an optional package, and return the module.

    Raises:
        RuntimeMissing: the module cannot be imported; the message has the command that installs the package.
    """
    try:
        with hold_interrupt():
            return import_module(name)
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"{name} cannot be used here: {error}", fix=install_command(name.partition(".")[0])
        ) from error


@contextmanager
def translate_errors(backend: str, graph: Path, action: str) -> Iterator[None]:
    """Turn an exception of a runtime in the block into BackendFailed; see `raise_translated` for the arguments."""
    try:
        yield
    except Exception as error:
        raise_translated(error, backend, graph, action)


def raise_translated(error: Exception, backend: str, graph: Path, action: str) -> NoReturn:
    """Raise BackendFailed for an exception of a runtime, with the first useful line of its message.

    Errors of Stillhouse, subclasses of StillhouseError, are raised unchanged.

    Args:
        error: the exception, which is being handled.
        backend: name of the backend, for the message.
        graph: path of the graph, for the message.
        action: verb for the message, such as "open" or "run".
    """
    if isinstance(error, StillhouseError):
        raise error
    message = first_error_line(str(error))
    fix = OUT_OF_MEMORY_FIX if "out of memory" in message.lower() else None
    raise BackendFailed(f"{backend} could not {action} {graph}: {message}", fix=fix) from error


def first_error_line(message: str) -> str:
    """Return the first line of a runtime's message that says what failed.

    >>> first_error_line("Exception from src/core.cpp:132:\\nCheck 'false' failed at a.cpp:4:\\nNo such port")
    'No such port'
    """
    lines = [_ORT_CODE.sub("", line).strip() for line in message.splitlines()]
    return next((line for line in lines if not _PREAMBLE.match(line)), message.strip())
