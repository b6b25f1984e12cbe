"""Timing on a GPU by its own clock; on the CPU, where the benchmark is only shown to run, by the usual one."""

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
"""Bytes that exceed every cache; how often a call is captured at most to move that many; and repeats of all of that."""
_WARM_UP_SECONDS, _INTERVAL = 0.05, 0.002
"""Seconds of work until the clocks are up; and seconds of one measurement, so long that a launch does not count."""
LARGE = 2**31
"""Bytes of the copy that measures the memory's bandwidth."""


def graph_timer(calls: Sequence[Callable[[], Any]], device: str) -> Callable[[], float]:
    """Return a timer of a call that takes microseconds: each of its calls returns the seconds of one.

    The calls are captured into one CUDA graph that is replayed several times in a row, so that neither Python nor
    launches are timed.

    Args:
        calls: the same call on different tensors, so many that the cache does not hold those of the call before.
        device: cuda, or cpu, where only the first is called.
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
    # Outputs are held: otherwise all would be written to the same memory, which never leaves the cache.
    outputs: list[Any] = [None] * len(calls)
    repeats = 1 if len(calls) >= _MAX_REPEATS else _REPLAY_REPEATS
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for place, call in enumerate(calls):
                outputs[place] = None
                outputs[place] = call()
    once = _replay_seconds(graph, 1)
    _replay_seconds(graph, int(_WARM_UP_SECONDS / once) + 1)
    count = int(_INTERVAL / _replay_seconds(graph, 1)) + 1

    def seconds(_alive: Any = (calls, outputs)) -> float:  # the graph reads and writes them
        return _replay_seconds(graph, count) / (repeats * len(calls))

    return seconds


def _replay_seconds(graph: Any, count: int) -> float:
    """Return the seconds of a replay, averaged over `count` in a row."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record()
    for _ in range(count):
        graph.replay()
    ended.record()
    ended.synchronize()
    seconds: float = begun.elapsed_time(ended) / 1000 / count
    return seconds


def repeats_beyond_cache(byte_count: int, device: str) -> int:
    """Return how many calls that move so many bytes exceed the cache."""
    return 1 if device == "cpu" else min(_MAX_REPEATS, max(2, -(-_CACHE_BYTES // byte_count)))


def median_seconds(call: Callable[[], Any], device: str, runs: int = _RUNS, warm_up: int = _WARM_UP) -> float:
    """Return the median seconds of a call that takes milliseconds or more."""
    return median(run_seconds(call, device, runs, warm_up))


def run_seconds(call: Callable[[], Any], device: str, runs: int, warm_up: int = _WARM_UP) -> list[float]:
    """Return the seconds of each run of a call; of one run on the CPU."""
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
    """Wait until the GPU has finished all launched work."""
    if device != "cpu":
        torch.cuda.synchronize()


def copy_timers(count: int, device: str) -> dict[str, Callable[[], float]]:
    """Return timers of a copy that reads and writes `count` bytes in all: by the driver, and by the cast kernel."""
    size = max(1, count // 4)
    sources = [torch.randn(size, device=device).half() for _ in range(repeats_beyond_cache(count, device))]
    targets = [torch.empty_like(source) for source in sources]
    pairs = zip(targets, sources, strict=True)
    return {
        "driver": graph_timer([partial(torch.Tensor.copy_, target, source) for target, source in pairs], device),
        "kernel": graph_timer([partial(cast, source, torch.float16) for source in sources], device),
    }


def copy_bandwidth(count: int, device: str) -> float:
    """Return bytes per second of a copy that reads and writes `count` bytes in all, by the faster timer."""
    seconds = run_interleaved(copy_timers(count, device), ROUNDS if device != "cpu" else 1)
    return count / min(map(median, seconds.values()))


def package_version(name: str) -> str:
    """Return the version of a package, or "none"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def gpu_info(device: str) -> dict[str, Any]:
    """Describe the GPU, its driver, clocks and memory."""
    if device == "cpu":
        return {"name": "no GPU: only shown to run", "driver": "none", "cuda": "none"}
    properties = torch.cuda.get_device_properties(0)
    info: dict[str, Any] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": version("triton"),
        "driver": "unknown",
        **{name: package_version(name) for name in ("diffusers", "torchao", "onnxruntime", "tensorrt", "tensorrt-rtx")},
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    return {**info, **gpu_clocks()}


def gpu_clocks() -> dict[str, Any]:
    """Return driver and present clocks in MHz, as far as nvidia-smi gives them."""
    names = {"driver": "driver_version", "sm_clock": "clocks.sm", "memory_clock": "clocks.mem"}
    command = ["nvidia-smi", f"--query-gpu={','.join(names.values())}", "--format=csv,noheader,nounits"]
    with suppress(AttributeError, RuntimeError, AssertionError):  # the first GPU that this process uses
        command.append(f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}")
    try:
        fields = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split(",")
    except (OSError, subprocess.SubprocessError):
        return {}
    values = dict(zip(names, (field.strip() for field in fields), strict=False))
    return {
        name: int(value) if name != "driver" else value
        for name, value in values.items()
        if name == "driver" or value.isdigit()
    }
