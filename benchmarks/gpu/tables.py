"""The tables of docs/gpu.md."""

from collections.abc import Mapping
from typing import Any

from benchmarks.grid import grid


def kernels(results: Mapping[str, Any]) -> str:
    """Shares of a copy's bandwidth."""
    rows = [
        [
            row["kernel"],
            row["where"],
            row["dtype"],
            f"{row['fused']['microseconds']:.1f}",
            *(f"{100 * row[way]['share']:.0f} %" for way in ("fused", "eager", "compiled")),
            f"{row['error']:.0e}",
        ]
        for row in results["kernels"]
    ]
    head = ["kernel", "shape", "dtype", "microseconds", "of a copy", "eager", "torch.compile", "error"]
    return f"{grid(head, rows)}\n{_gpu(results)}"


def ladder(results: Mapping[str, Any]) -> str:
    """Pictures by every rung, and how many times as fast as SDPA."""
    rows = []
    for part in ("sd15", "sdxl"):
        plain = {(row["dtype"], row["images"]): row.get("seconds") for row in results[part] if row["rung"] == "SDPA"}
        for row in results[part]:
            told = [row["model"], row["dtype"], str(row["images"]), row["rung"]]
            if "reason" in row:
                rows.append([*told, row["reason"], "", "", ""])
                continue
            beside = plain.get((row["dtype"], row["images"]))
            ratio = f"{beside / row['seconds']:.2f}x" if beside else ""
            step, memory = f"{1000 * row['step_seconds']:.1f} ms", f"{row['gpu_bytes'] / 2**30:.1f} GiB"
            rows.append([*told, f"{row['seconds']:.2f}", ratio, step, memory])
    head = ["model", "dtype", "pictures", "way", "seconds, 50 guided steps", "against SDPA", "a step", "GPU memory"]
    return f"{grid(head, rows)}\n{_gpu(results)}"


def components(results: Mapping[str, Any]) -> str:
    """Where the rest of a picture's time goes."""
    rows = [
        [
            row["model"],
            row["component"],
            *(f"{1000 * row[way]:.2f}" if way in row else "" for way in ("plain", "fused, graphs")),
        ]
        for row in results["components"]
    ]
    return f"{grid(['model', 'component', 'milliseconds', 'with kernels and graphs'], rows)}\n{_gpu(results)}"


def batching(results: Mapping[str, Any]) -> str:
    """The batch curve, and what it is worth to a server."""
    curve = [
        [rows, f"{1000 * seconds:.1f}", f"{1000 * seconds / int(rows):.2f}"]
        for rows, seconds in results["curve"].items()
    ]
    served = [
        [
            f"{100 * row['load']:.0f} %",
            row["batched"],
            *(f"{row[name]:.2f}" for name in ("free_p50", "free_p99", "pro_p50", "pro_p99")),
            f"{100 * row['in_time']:.0f} %",
        ]
        for row in results["batching"]
    ]
    head = ["load", "batched", "free: median, s", "99 %", "pro: median, s", "99 %", "in time"]
    first = grid(["rows", "milliseconds of an evaluation", "of a row"], curve)
    return f"{first}\nSimulated on that curve, 2,000 pictures each:\n\n{grid(head, served)}\n{_gpu(results)}"


def _gpu(results: Mapping[str, Any]) -> str:
    gpu = results["gpu"]
    clocks = f", {gpu['sm_clock']} MHz" if "sm_clock" in gpu else ""
    return f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}{clocks}; {results['seconds']:.0f} s in all.\n"
