"""The GPUs of this machine, as NVIDIA's driver tells; no runtime is imported for that."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_DRIVER = "libcuda.so.1"
_NAME_LENGTH = 256
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


FP8_CAPABILITY = (8, 9)
"""The least compute capability with products in fp8."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Args:
        name: as the driver calls it.
        memory: bytes.
        capability: of its kind, "9.0".
    """

    name: str
    memory: int
    capability: str

    @property
    def has_fp8(self) -> bool:
        """Whether its matrix units multiply numbers of eight bits with a point: from Ada Lovelace on."""
        major, minor = map(int, self.capability.split("."))
        return (major, minor) >= FP8_CAPABILITY


@lru_cache(maxsize=1)
def find_gpus() -> tuple[Gpu, ...]:
    """All that CUDA_VISIBLE_DEVICES lets this process see; none where there is no driver.

    >>> isinstance(gpus(), tuple)
    True
    """
    driver = _load_driver()
    return () if driver is None else _query_gpus(driver)


def no_gpu_reason() -> str | None:
    """Why there is none; None where there is one."""
    if find_gpus():
        return None
    return "no driver of NVIDIA's is installed" if _load_driver() is None else "the driver finds no GPU"


def device_index(device: str) -> int:
    """Which GPU a device's name means.

    >>> index_of("cuda"), index_of("cuda:1")
    (0, 1)
    """
    return int(device.partition(":")[2] or 0)


def device_error(device: str, available: Sequence[Gpu]) -> str | None:
    """What is wrong with a device's name, "cuda" or "cuda:1"; None where it is one of these.

    >>> check_index("cuda:1", [Gpu("One", 1 << 30, "9.0")])
    'there is no GPU cuda:1 among cuda:0 (One)'
    """
    index = device_index(device)
    if index < len(available):
        return None
    told = ", ".join(f"cuda:{number} ({one.name})" for number, one in enumerate(available))
    return f"there is no GPU {device} among {told}" if told else f"there is no GPU {device}: {no_gpu_reason()}"


def used_memory(index: int = 0) -> int | None:
    """Bytes of a GPU's memory that are in use, by whatever process; None where there is no such GPU.

    The driver is asked in this process's own context of the GPU, the one that every runtime shares, and which takes
    some of that memory itself.
    """
    driver = _load_driver()
    if driver is None or index >= len(find_gpus()):
        return None
    device, context, free, whole = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(whole))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return None if failed else whole.value - free.value


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
