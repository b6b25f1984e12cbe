"""Times on a GPU, by its own clock; on a processor, where this only shows that the benchmark runs, by the usual one."""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch

_WARM_UP, _RUNS = 3, 5


def short(work: Callable[[], Any], device: str) -> float:
    """Seconds of something that takes microseconds, its inputs out of the cache: the median of many."""
    if device == "cpu":
        return long(work, device)
    from triton.testing import do_bench

    return float(do_bench(work, warmup=10, rep=50, return_mode="median")) / 1000


def long(work: Callable[[], Any], device: str, runs: int = _RUNS) -> float:
    """Seconds of something that takes milliseconds or more: the median of some."""
    for _ in range(_WARM_UP if device != "cpu" else 1):
        work()
    taken = []
    for _ in range(runs if device != "cpu" else 1):
        settled(device)
        began = perf_counter()
        work()
        settled(device)
        taken.append(perf_counter() - began)
    return median(taken)


def settled(device: str) -> None:
    """Wait until the GPU has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def copied(count: int, device: str) -> float:
    """Bytes a second, read and written, of a copy that moves so many in all."""
    source = torch.empty(max(1, count // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / short(lambda: target.copy_(source), device)


def facts(device: str) -> dict[str, Any]:
    """The GPU, its driver, clocks and memory, as they are now."""
    if device == "cpu":
        return {"name": "no GPU: only shown to run", "driver": "none", "cuda": "none"}
    found = torch.cuda.get_device_properties(0)
    told: dict[str, Any] = {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "memory": found.total_memory,
        "cuda": torch.version.cuda,
    }
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        told |= {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "sm_clock": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_clock": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        }
    except Exception as error:
        told["driver"] = f"unknown: {type(error).__name__}"
    return told
