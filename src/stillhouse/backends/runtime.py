"""Runtimes that may not be installed: opening one, saying what is there, and turning its failures into ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stillhouse.errors import BackendFailed, RuntimeMissing, StillhouseError

INSTALL_COMMANDS = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install openvino",
    "onnx": "pip install 'stillhouse[accelerate]'",
    "nncf": "pip install 'stillhouse[accelerate]'",
    "torch": "pip install 'stillhouse[train]'",
    "triton": "pip install 'stillhouse[gpu]'",
    "torchao": "pip install 'stillhouse[gpu]'",
    "tensorrt": "pip install tensorrt",
    "tensorrt-rtx": "pip install tensorrt-rtx",
    "tensorrt_rtx": "pip install tensorrt-rtx",
    "accelerate": "pip install 'stillhouse[train]'",
}
OUT_OF_MEMORY_FIX = (
    "smaller pictures, fewer together, a decoder in tiles, or weights in the processor's memory take less"
)
"""What helps where a GPU's memory is too small."""
# OpenVINO puts the sources and checks that an exception passed through above what went wrong.
_PREAMBLE = re.compile(
    r"Exception from |Check '.*' failed at |Loading input model|FrontEnd API failed|Model wasn't fully|Summary:|$"
)
_ORT_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A row of `stillhouse doctor`.

    Args:
        name: as in `open_runner(graph, name)`.
        version: of the installed package; None where there is none.
        devices: what it can compute on here, as it calls them.
        precisions: what can be asked of it on this machine.
        reason: why no network can be run with it here; None where it is ready.
        install: the line that installs it.
    """

    name: str
    version: str | None
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    reason: str | None
    install: str


def require(name: str) -> Any:
    """The module of that name. RuntimeMissing, with the line that installs it, where it cannot be imported."""
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        raise RuntimeMissing(
            f"{name} cannot be used here: {error}", fix=INSTALL_COMMANDS[name.partition(".")[0]]
        ) from error


@contextmanager
def translate_errors(backend: str, graph: Path, action: str) -> Iterator[None]:
    """Turn whatever the runtime raises inside into BackendFailed with the first useful line of its message."""
    try:
        yield
    except StillhouseError:
        raise
    except Exception as error:
        told = first_error_line(str(error))
        fix = OUT_OF_MEMORY_FIX if "out of memory" in told.lower() else None
        raise BackendFailed(f"{backend} could not {action} {graph}: {told}", fix=fix) from error


def first_error_line(message: str) -> str:
    """The first line that says what went wrong.

    >>> useful_line("Exception from src/core.cpp:132:\\nCheck 'false' failed at a.cpp:4:\\nNo such port")
    'No such port'
    """
    lines = [_ORT_CODE.sub("", line).strip() for line in message.splitlines()]
    return next((line for line in lines if not _PREAMBLE.match(line)), message.strip())
