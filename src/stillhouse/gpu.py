"""The GPUs of this machine, read from NVIDIA's driver library without importing a runtime."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_DRIVER = "libcuda.so.1"
_NAME_LENGTH = 256
_MAJOR, _MINOR = 75, 76  # cuda.h calls these CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


FP8_CAPABILITY = (8, 9)
"""Lowest compute capability whose matrix units multiply fp8 numbers."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Args:
        name: name that the driver reports.
        memory: total memory in bytes.
        capability: compute capability, such as "9.0".
    """

    name: str
    memory: int
    capability: str

    @property
    def has_fp8(self) -> bool:
        """Whether the GPU's matrix units multiply fp8 numbers, as those of Ada Lovelace and later do."""
        major, minor = map(int, self.capability.split("."))
        return (major, minor) >= FP8_CAPABILITY


@lru_cache(maxsize=1)
def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lets this process use, in the driver's order; () without a driver.

    >>> isinstance(find_gpus(), tuple)
    True
    """
    driver = _load_driver()
    return () if driver is None else _query_gpus(driver)


def no_gpu_reason() -> str | None:
    """Return why there is no GPU; None where there is one."""
    if find_gpus():
        return None
    return "no driver of NVIDIA's is installed" if _load_driver() is None else "the driver finds no GPU"


def device_index(device: str) -> int:
    """Return the index of the GPU that a device name means.

    >>> device_index("cuda"), device_index("cuda:1")
    (0, 1)
    """
    return int(device.partition(":")[2] or 0)


def device_error(device: str, available: Sequence[Gpu]) -> str | None:
    """Return why a device name such as "cuda" or "cuda:1" names none of the `available` GPUs; None where it names one.

    >>> device_error("cuda:1", [Gpu("One", 1 << 30, "9.0")])
    'there is no GPU cuda:1 among cuda:0 (One)'
    """
    index = device_index(device)
    if index < len(available):
        return None
    names = ", ".join(f"cuda:{number} ({gpu.name})" for number, gpu in enumerate(available))
    return f"there is no GPU {device} among {names}" if names else f"there is no GPU {device}: {no_gpu_reason()}"


def used_memory(index: int = 0) -> int | None:
    """Return the bytes of a GPU's memory that all processes use; None where there is no such GPU.

    The query opens the GPU's primary CUDA context, which all runtimes of this process share. The context itself takes
    some memory, which is counted.
    """
    driver = _load_driver()
    if driver is None or index >= len(find_gpus()):
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    driver.cuDeviceGet(ctypes.byref(device), index)
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        return _used_in_context(driver, context)
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _used_in_context(driver: ctypes.CDLL, context: ctypes.c_void_p) -> int | None:
    if driver.cuCtxPushCurrent_v2(context):
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    return None if failed else total.value - free.value


def _load_driver() -> Any:
    with suppress(OSError):
        return ctypes.CDLL(_DRIVER)
    return None


def _query_gpus(driver: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_query_gpu(driver, index) for index in range(count.value))


def _query_gpu(driver: Any, index: int) -> Gpu:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_LENGTH, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), memory.value, ".".join(numbers))
