"""Times on a GPU, by its own clock; on a processor, where this only shows that the benchmark runs, by the usual one."""

import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter
from typing import Any

import torch

from stillhouse.backends.kernels.cast import cast
from stillhouse.measure.clock import run_interleaved

_WARM_UP, _RUNS = 3, 5
ROUNDS = 15
_CACHE_BYTES, _MAX_REPEATS, _REPLAY_REPEATS = 256 * 2**20, 512, 4
"""Bytes that no cache holds; how often something is recorded at most to move as many, and how often all of that."""
_WARM_UP_SECONDS, _INTERVAL = 0.05, 0.002
"""Seconds of work after which clocks are up; and that are timed at a time, beside which a launch is nothing."""
LARGE = 2**31
"""Bytes of a copy that shows what memory can do."""


def graph_timer(calls: Sequence[Callable[[], Any]], device: str) -> Callable[[], float]:
    """A clock of something that takes microseconds: each call tells the seconds of one of them anew.

    They are recorded into one CUDA graph that is replayed several times in a row, so that neither Python nor a launch
    is timed.

    Args:
        works: the same on tensors of its own each, enough of them that what one leaves in the cache is gone when its
            turn comes again.
        device: cuda, or cpu, where the first one is called.
    """
    if device == "cpu":
        return partial(median_seconds, calls[0], device)
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Kept, or all would write to the same place, which then never leaves the cache.
    kept: list[Any] = [None] * len(calls)
    several = len(calls)
    again = 1 if len(calls) >= _MAX_REPEATS else _REPLAY_REPEATS
    with torch.cuda.graph(graph):
        for _ in range(again):
            for place, work in enumerate(calls):
                kept[place] = None
                kept[place] = work()
    once = _replay_seconds(graph, 1)
    _replay_seconds(graph, int(_WARM_UP_SECONDS / once) + 1)
    count = int(_INTERVAL / _replay_seconds(graph, 1)) + 1

    def told(_alive: Any = (calls, kept)) -> float:  # what the graph reads and writes
        return _replay_seconds(graph, count) / (again * several)

    return told


def _replay_seconds(graph: Any, count: int) -> float:
    """Seconds of a replay, of so many in a row."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record()
    for _ in range(count):
        graph.replay()
    ended.record()
    ended.synchronize()
    taken: float = begun.elapsed_time(ended) / 1000 / count
    return taken


def repeats_beyond_cache(byte_count: int, device: str) -> int:
    """How many of something that moves so many bytes go beyond the cache."""
    return 1 if device == "cpu" else min(_MAX_REPEATS, max(2, -(-_CACHE_BYTES // byte_count)))


def median_seconds(call: Callable[[], Any], device: str, runs: int = _RUNS, warm_up: int = _WARM_UP) -> float:
    """Seconds of something that takes milliseconds or more: the median of some."""
    return median(run_seconds(call, device, runs, warm_up))


def run_seconds(call: Callable[[], Any], device: str, runs: int, warm_up: int = _WARM_UP) -> list[float]:
    """Seconds of each of so many runs; on a processor of one."""
    for _ in range(warm_up if device != "cpu" else 1):
        call()
    seconds = []
    for _ in range(runs if device != "cpu" else 1):
        synchronize(device)
        began = perf_counter()
        call()
        synchronize(device)
        seconds.append(perf_counter() - began)
    return seconds


def synchronize(device: str) -> None:
    """Wait until the GPU has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def copy_timers(count: int, device: str) -> dict[str, Callable[[], float]]:
    """Clocks of a copy that moves so many bytes in all, read and written: by the driver, and by a kernel that does
    nothing else."""
    size = max(1, count // 4)
    sources = [torch.randn(size, device=device).half() for _ in range(repeats_beyond_cache(count, device))]
    targets = [torch.empty_like(source) for source in sources]
    pairs = zip(targets, sources, strict=True)
    return {
        "driver": graph_timer([partial(torch.Tensor.copy_, target, source) for target, source in pairs], device),
        "kernel": graph_timer([partial(cast, source, torch.float16) for source in sources], device),
    }


def copy_bandwidth(count: int, device: str) -> float:
    """Bytes a second of a copy that moves so many in all, by whichever way is faster."""
    seconds = run_interleaved(copy_timers(count, device), ROUNDS if device != "cpu" else 1)
    return count / min(map(median, seconds.values()))


def package_version(name: str) -> str:
    """The version of a package; none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def gpu_info(device: str) -> dict[str, Any]:
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
        "torch": torch.__version__,
        "triton": version("triton"),
        "driver": "unknown",
        **{name: package_version(name) for name in ("diffusers", "torchao", "onnxruntime", "tensorrt", "tensorrt-rtx")},
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    return {**told, **gpu_clocks()}


def gpu_clocks() -> dict[str, Any]:
    """The driver, and the clocks as they are now, in MHz; what the driver's own program does not tell is left out."""
    names = {"driver": "driver_version", "sm_clock": "clocks.sm", "memory_clock": "clocks.mem"}
    command = ["nvidia-smi", f"--query-gpu={','.join(names.values())}", "--format=csv,noheader,nounits"]
    with suppress(AttributeError, RuntimeError, AssertionError):  # which of several is the first that this process sees
        command.append(f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split(",")
    except (OSError, subprocess.SubprocessError):
        return {}
    told = dict(zip(names, (one.strip() for one in said), strict=False))
    return {
        name: int(one) if name != "driver" else one for name, one in told.items() if name == "driver" or one.isdigit()
    }
