"""Devices of torch: names, checks, memory, and the lock of a GPU."""

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
"""Lock for running, capturing, tuning or building a network on a GPU. The lock is needed, since one thread decodes
while another runs the denoiser. Capturing, tuning and building fail or mismeasure while another thread uses the GPU.
torch can capture only one graph at a time; Triton's tuners and torch's global switches, such as that of TF32, are not
thread-safe. Launched kernels may still run when the lock is released.
"""
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_CUDA_VERSION = re.compile(r"^cuda(?:: [^=]+)? = '([^']+)'", re.MULTILINE)
_INSTALL_CUDA_BUILD = "install the build of torch for your GPU's driver, as its website says"


def gpu_device(requested: str) -> str:
    """Return the name of the GPU that a requested device means: the first GPU, unless another GPU is named.

    >>> gpu_device("auto"), gpu_device("cuda:1")
    ('cuda', 'cuda:1')
    """
    return CUDA if requested in ("auto", CPU) else requested


def import_torch() -> Any:
    """Import torch, and return the module.

    The environment variable OMP_WAIT_POLICY is set to PASSIVE first, unless it is set already. By default, torch's
    OpenMP threads spin at every barrier. Where other processes use the cores, a spinning thread keeps a core from the
    thread for which it waits: 2 threads on 2 busy cores took 60 times as long.

    Raises:
        RuntimeMissing: torch cannot be imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return require("torch")


def device_kind(device: str) -> str:
    """Return "cpu" or "cuda" for a device name.

    Raises:
        InvalidRequest: the text is no device name.

    >>> device_kind("cuda:1")
    'cuda'
    """
    if not _DEVICE.fullmatch(device):
        raise InvalidRequest(f"device is {device!r}", allowed="cpu, cuda, cuda:1 (the GPU with index 1) and so on")
    return device.partition(":")[0]


def cuda_build_version() -> str | None:
    """Return the CUDA version that the installed torch is built for, such as "13.0"; None without CUDA or torch.

    torch is not imported. The version is read from torch's files.
    """
    package = find_spec("torch")
    if package is None or package.origin is None:
        return None
    try:
        source = Path(package.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = _CUDA_VERSION.search(source)
    return match[1] if match else None


def peak_gpu_memory() -> int | None:
    """Return the most bytes that torch in this process has reserved on any one GPU so far; None if torch uses no GPU.

    torch is not imported.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return max(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count()))


def resolve_device(torch: Any, requested: str) -> str:
    """Return the name of a requested device with its index: "cuda" becomes "cuda:0", and "cpu" stays "cpu".

    Raises:
        RuntimeMissing: torch is built without CUDA, or finds no GPU.
        InvalidRequest: a GPU that this machine does not have.
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
    """Move a torch module to a device, in place.

    Args:
        module: the module.
        device: name of the device.
        offload: "none"; or "cpu": weights stay in the processor's memory and are copied to the device layer by layer.
    """
    if offload == "none":
        module.to(device)
        return
    require("accelerate").cpu_offload(module, execution_device=device)
