"""`python -m benchmarks.gpu` writes results/gpu.json; `--device cpu` only shows that it runs, and writes nothing."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import monotonic
from typing import Any, TypeAlias

import torch

from benchmarks.gpu import kernels, ladder, pictures
from benchmarks.gpu.apart import merge_piece, run_part
from benchmarks.gpu.compile import PLANS, compile_all, keep_compiled, variants_of
from benchmarks.gpu.timing import LARGE, copy_bandwidth, gpu_clocks, gpu_info
from benchmarks.record import RESULTS, write_results
from stillhouse.serve.engine.arrivals import ArrivalClass, poisson_arrivals
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan, Tier
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.engine.simulate import SimulatedJob, simulate
from stillhouse.workers.lifetime import die_with_parent

_SHARES = {"kernels": 0.3, "sd15": 0.35, "curve": 0.05, "sdxl": 0.18, "pictures": 0.06, "fp8": 0.04, "engines": 0.02}
"""Shares of the time. What a part does not use goes to the later ones."""
_CURVE = (1, 2, 4, 8, 16)
_BUILD = Path("build") / "inductor"
_LEAST = 10.0
"""Seconds below which a part is not started: it loads torch and builds its networks first."""
_GRACE = 60.0
"""Seconds beyond its share in which a part may start, and finish the row that it has begun."""
_BUILDING = 300.0
"""The same where engines are built, which takes minutes. Without an engine that part takes no time."""

Part: TypeAlias = Callable[[str, bool, Callable[[], bool]], Iterator[dict[str, Any]]]
"""A part of the benchmark: takes a device, whether sizes are small, and whether there is time left; gives pieces of the
document, whose lists are joined.
"""


def main() -> None:
    """Measure part by part, and write the document after each row and each part.

    On a GPU every part has its own process: an illegal memory access of one kernel fails all later work of its process.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=300.0, help="for measuring; default: 300")
    parser.add_argument("--compile", type=float, default=150.0, help="seconds for compiling first; default: 150")
    parser.add_argument("--only-compile", action="store_true", help="measure nothing")
    parser.add_argument(
        "--part", action="append", choices=tuple(_SHARES), help="only this, in this process; repeatable"
    )
    parser.add_argument("--results", default="gpu", help="name of the file in benchmarks/results; default: gpu")
    arguments = parser.parse_args()
    device, is_small = arguments.device, arguments.device == "cpu"
    keep_compiled(_BUILD.absolute())
    if not is_small and arguments.compile:
        compile_all(arguments.compile)
    if arguments.only_compile:
        return
    if arguments.part:
        die_with_parent()
    began = monotonic()
    parts = arguments.part or list(_SHARES)
    is_apart = not is_small and not arguments.part
    document: dict[str, Any] = {} if is_apart else {"gpu": gpu_info(device)}
    for number, part in enumerate(parts):
        left = began + arguments.seconds - monotonic()
        seconds = max(0.0, left) * _SHARES[part] / sum(_SHARES[later] for later in parts[number:])
        if is_apart and left < _LEAST:
            pieces: Iterable[dict[str, Any]] = [{"failed": {part: "the time was up"}}]
        else:
            pieces = _apart(part, seconds) if is_apart else _measured(part, device, is_small, seconds)
        for piece in pieces:
            merge_piece(document, piece)
            document["seconds"] = monotonic() - began
            if not is_small:
                write_results(arguments.results, document)
    if is_small:
        print(json.dumps(document))


def _measured(part: str, device: str, is_small: bool, seconds: float) -> Iterator[dict[str, Any]]:
    try:
        yield from _PARTS[part](device, is_small, partial(_is_before, monotonic() + seconds))
    except Exception as error:  # the other parts are still measured
        yield {"failed": {part: f"{type(error).__name__}: {error}".splitlines()[0]}}


def _apart(part: str, seconds: float) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--part", part, "--compile", "0"]
    results = RESULTS / "gpu-parts" / f"{part}.json"  # they remain where this process ends before it has read them
    results.unlink(missing_ok=True)
    command = [*command, "--seconds", f"{seconds:.0f}", "--results", str(results.with_suffix(""))]
    yield run_part(part, command, results, seconds + (_BUILDING if part == "engines" else _GRACE))
    results.unlink(missing_ok=True)


def _is_before(end: float) -> bool:
    return monotonic() < end


def _kernels(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    for dtype in (torch.float32,) if is_small else (torch.float16, torch.bfloat16):
        for row in kernels.measure_kernels(device, dtype, is_small, is_in_time):
            yield {"kernels": [row]}
    yield {"copy_bytes_per_second": copy_bandwidth(1 << 20 if is_small else LARGE, device)}


def _sd15(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    model, steps = ("small", 2) if is_small else ("SD 1.5", ladder.STEPS)
    for plan in ((torch.float32, 1),) if is_small else PLANS:
        variants = ladder.UNET_VARIANTS if is_small else variants_of(plan)
        for row in ladder.measure_variants(model, device, *plan, is_in_time, steps, variants):
            yield {"sd15": [row]}
    yield {"clocks": gpu_clocks()}  # under load
    for row in ladder.measure_components(model, device, torch.float32 if is_small else torch.float16, is_in_time):
        yield {"components": [row]}


def _sdxl(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    if not is_small:
        variants = (*ladder.SDXL_VARIANTS, ladder.COMPILED)
        for row in ladder.measure_variants("SDXL", device, torch.float16, 1, is_in_time, variants=variants):
            yield {"sdxl": [row]}
        for row in ladder.measure_components("SDXL", device, torch.float16, is_in_time):
            yield {"components": [row]}


def _fp8(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    if not is_small:
        for row in ladder.measure_variants("SD 1.5", device, torch.bfloat16, 1, is_in_time, variants=(ladder.FP8,)):
            yield {"fp8": [row]}


def _engines(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    from benchmarks.gpu import engines  # it needs onnx, which the other parts do not

    arguments = (
        ("small", device, torch.float32, is_in_time, 2) if is_small else ("SD 1.5", device, torch.float16, is_in_time)
    )
    for row in engines.measure_engines(*arguments):
        yield {"engines": [row]}


def _pictures(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    for row in pictures.measure_pictures(device):
        yield {"pictures": [row]}
        if not is_in_time():
            return


def _curve(device: str, is_small: bool, is_in_time: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Measure the batch curve, and simulate a server on it that batches by step and by request."""
    model, dtype = ("small", torch.float32) if is_small else ("SD 1.5", torch.float16)
    curve: dict[str, float] = {}
    try:
        for rows, seconds in ladder.measure_batch_curve(
            model, device, dtype, _CURVE[:2] if is_small else _CURVE, is_in_time
        ):
            curve[rows] = seconds
            yield {"curve": dict(curve)}
    finally:  # also where the largest batch did not fit
        if curve:
            yield {"batching": _batching({int(rows): seconds for rows, seconds in curve.items()})}


class _RequestBatching:
    """Batching by the request, first come, first served: requests that start together end together."""

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """Return the started jobs, or all where none has started: a running batch admits no job."""
        begun = [job for job in jobs if job.index]
        return begun or list(jobs)


def _batching(seconds: Mapping[int, float]) -> list[dict[str, Any]]:
    group = BatchKey("model", 512, 512)
    cost = CostModel({group: LatencyCurve(seconds)})
    kinds = (
        ArrivalClass(0.8, Tier("free"), group, StepPlan((1,) * 3)),
        ArrivalClass(0.2, Tier("pro"), group, StepPlan((2,) * 35)),
    )
    rows = []
    for load in (0.55, 0.78, 0.95):
        trace = poisson_arrivals(kinds, load, 2000, cost, seed=0)
        for name, policy in (("by the request", _RequestBatching()), ("by the step", POLICIES["slack"])):
            served = simulate(trace, policy, cost)
            rows.append({"load": load, "batched": name, **_latency_percentiles(served)})
    return rows


def _latency_percentiles(served: Sequence[SimulatedJob]) -> dict[str, float]:
    row = {"in_time": sum(job.is_in_time for job in served) / len(served)}
    for tier in ("free", "pro"):
        times = quantiles([job.seconds for job in served if job.job.tier.name == tier], n=100)
        row |= {f"{tier}_p50": times[49], f"{tier}_p99": times[98]}
    return row


_PARTS: Mapping[str, Part] = {
    "kernels": _kernels,
    "sd15": _sd15,
    "curve": _curve,
    "sdxl": _sdxl,
    "pictures": _pictures,
    "fp8": _fp8,
    "engines": _engines,
}

if __name__ == "__main__":
    main()
