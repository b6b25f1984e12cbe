"""Where torch runs: on the processor, or on one of the machine's GPUs."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any

from stillhouse.backends.runtime import require
from stillhouse.errors import InvalidRequest, RuntimeMissing
from stillhouse.gpu import device_error, find_gpus

CPU, CUDA = "cpu", "cuda"
GPU_LOCK = RLock()
"""Held by whoever runs, records, tunes or builds a network on a GPU, where a finisher decodes while another thread
draws. To record, tune or build waits for all of the GPU, which spoils what another thread records meanwhile; torch
records one thing at a time; and Triton's tuners and torch's switches, like that of TF32, know no threads. What was
launched runs on when the lock is free again."""
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_CUDA_VERSION = re.compile(r"^cuda(?:: [^=]+)? = '([^']+)'", re.MULTILINE)
_INSTALL_CUDA_BUILD = "install the build of torch for your GPU's driver, as its website says"


def import_torch() -> Any:
    """torch. RuntimeMissing where it cannot be imported.

    Its OpenMP threads spin at every barrier, and where another process or runtime wants the cores they spin away the
    time of the very thread that they wait for: 2 threads on 2 busy cores took 60 times as long as with this. It is read
    when torch is first imported; what the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return require("torch")


def device_kind(device: str) -> str:
    """CPU or CUDA.

    Raises:
        InvalidRequest: no device's name.

    >>> kind_of("cuda:1")
    'cuda'
    """
    if not _DEVICE.fullmatch(device):
        raise InvalidRequest(f"device is {device!r}", allowed="cpu, cuda, cuda:1")
    return device.partition(":")[0]


def cuda_build_version() -> str | None:
    """The version of CUDA that torch was built for, "13.0"; None where it was built without. It is not imported."""
    package = find_spec("torch")
    if package is None or package.origin is None:
        return None
    try:
        told = Path(package.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    built = _CUDA_VERSION.search(told)
    return built[1] if built else None


def peak_gpu_memory() -> int | None:
    """Bytes of a GPU's memory that torch held in this process when it held most; None where it held none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return max(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count()))


def resolve_device(torch: Any, requested: str) -> str:
    """The device of that name, which is there: cpu, cuda:0.

    Raises:
        RuntimeMissing: torch was built without CUDA, or does not find it.
        InvalidRequest: a GPU that is not there.
    """
    if requested == CPU:
        return requested
    if cuda_build_version() is None:
        raise RuntimeMissing(f"torch {torch.__version__} was built without CUDA", fix=_INSTALL_CUDA_BUILD)
    if wrong := device_error(requested, find_gpus()):
        raise InvalidRequest(wrong)
    if not torch.cuda.is_available():
        raise RuntimeMissing(
            f"torch {torch.__version__} for CUDA {cuda_build_version()} finds no GPU here", fix=_INSTALL_CUDA_BUILD
        )
    return requested if ":" in requested else f"{requested}:0"


def place_module(module: Any, device: str, offload: str) -> None:
    """Put a network there; with offload cpu its weights stay in the processor's memory, and come part by part."""
    if offload == "none":
        module.to(device)
        return
    require("accelerate").cpu_offload(module, execution_device=device)
