"""The tables of docs/gpu.md."""

from collections.abc import Mapping
from typing import Any

from benchmarks.grid import markdown_table

_COMPARED_WITH = ("SDPA", "plain torch.compile")
"""Variants that every other one is compared with."""
_BOUND = 25.0
"""Lowest PSNR in dB of same-seed pictures of an accepted candidate, by default."""


def kernels_table(results: Mapping[str, Any]) -> str:
    """Return the kernels' shares of a copy's bandwidth."""
    rows = []
    for row in results.get("kernels", ()):
        labels = [row["kernel"], row["where"], row["dtype"]]
        if "reason" in row:
            rows.append([*labels, row["reason"], *[""] * 5])
            continue
        fused, others = row["fused"], (f"{100 * row[way]['share']:.0f} %" for way in ("eager", "compiled"))
        low, high = (100 * end for end in fused["interval"])
        share, ahead = f"{100 * fused['share']:.0f} % ({low:.0f} to {high:.0f})", row["ahead"]
        against = f"{ahead[0]:.2f}x ({ahead[1]:.2f} to {ahead[2]:.2f})"
        rows.append([*labels, f"{fused['microseconds']:.1f}", share, *others, against, f"{row['error']:.0e}"])
    head = ["kernel", "shape", "dtype", "microseconds", "of a copy (95 %)", "eager", "torch.compile"]
    head += ["against torch.compile", "error"]
    return f"{markdown_table(head, rows)}\n{_gpu(results)}"


def variants_table(results: Mapping[str, Any]) -> str:
    """Return the seconds of pictures of every variant, and the speed relative to SDPA."""
    rows = []
    ladders = [row for part in ("sd15", "sdxl", "fp8", "engines") for row in results.get(part, ())]
    others = [{_group(row): row.get("seconds") for row in ladders if row["rung"] == name} for name in _COMPARED_WITH]
    for row in sorted(ladders, key=lambda row: (*_group(row), row["place"])):
        labels = [row["model"], row["dtype"], str(row["images"]), row["rung"]]
        if "reason" in row:
            rows.append([*labels, row["reason"], *[""] * 5])
            continue
        ratios = [f"{seconds / row['seconds']:.2f}x" if (seconds := other.get(_group(row))) else "" for other in others]
        step, memory = _step(row.get("step", {})), f"{row['gpu_bytes'] / 2**30:.1f} GiB" if "gpu_bytes" in row else ""
        fidelity = f"{row['sqnr']:.0f} dB" if "sqnr" in row else ""
        rows.append([*labels, _seconds(row), *ratios, step, memory, fidelity])
    head = [
        "model",
        "dtype",
        "pictures",
        "way",
        "seconds, text to pixels in 50 guided steps",
        *(f"against {name}" for name in _COMPARED_WITH),
    ]
    head += ["a step, median (least to 95 %)", "GPU memory of torch's", "SQNR against float32"]
    return f"{markdown_table(head, rows)}\n{_gpu(results)}"


def _seconds(row: Mapping[str, Any]) -> str:
    picture, seconds = row.get("picture"), f"{row['seconds']:.2f}"
    if picture is None:
        return f"about {seconds}"
    return f"{seconds} ({picture['least']:.2f} to {picture['p95']:.2f})" if picture["runs"] > 1 else seconds


def _step(step: Mapping[str, float]) -> str:
    if not step:
        return ""
    median, least, high = (f"{1000 * step[name]:.1f}" for name in ("median", "least", "p95"))
    return f"{median} ms ({least} to {high})"


def _group(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["dtype"], row["images"]


def pictures_table(results: Mapping[str, Any]) -> str:
    """Return the pictures of the embedded model, compared with onnxruntime's in float32."""
    rows = [
        [row["way"], *([row["reason"], "", ""] if "reason" in row else _picture(row))]
        for row in results.get("pictures", ())
    ]
    head = ["way", "worst picture, PSNR", f"within {_BOUND:.0f} dB", "seconds, 35 guided steps"]
    return f"{markdown_table(head, rows)}\n{_gpu(results)}"


def _picture(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['psnr']:.1f} dB", "yes" if row["psnr"] >= _BOUND else "no", f"{row['seconds']:.2f}"]


def components_table(results: Mapping[str, Any]) -> str:
    """Return the time of each component of a picture."""
    rows = [
        [
            row["model"],
            row["component"],
            *(f"{1000 * row[way]:.2f}" if way in row else "" for way in ("plain", "fused, graphs")),
            f"{row['gpu_bytes'] / 2**30:.1f} GiB" if row.get("gpu_bytes") else "",
        ]
        for row in results.get("components", ())
    ]
    head = ["model", "component", "milliseconds", "with kernels and graphs", "GPU memory, plain"]
    return f"{markdown_table(head, rows)}\n{_gpu(results)}"


def batching_table(results: Mapping[str, Any]) -> str:
    """Return the batch curve, and what batching is worth to a server."""
    curve = [
        [rows, f"{1000 * seconds:.1f}", f"{1000 * seconds / int(rows):.2f}"]
        for rows, seconds in results.get("curve", {}).items()
    ]
    served = [
        [
            f"{100 * row['load']:.0f} %",
            row["batched"],
            *(f"{row[name]:.2f}" for name in ("free_p50", "free_p99", "pro_p50", "pro_p99")),
            f"{100 * row['in_time']:.0f} %",
        ]
        for row in results.get("batching", ())
    ]
    head = ["load", "batched", "free: median, s", "99 %", "pro: median, s", "99 %", "in time"]
    first = markdown_table(["rows", "milliseconds of an evaluation", "of a row"], curve)
    return f"{first}\nSimulated on that curve, 2,000 pictures each:\n\n{markdown_table(head, served)}\n{_gpu(results)}"


def _gpu(results: Mapping[str, Any]) -> str:
    gpu = {"name": "unknown GPU", "driver": "unknown", "cuda": "unknown", **results.get("gpu", {})}
    clock = results.get("clocks", {}).get("sm_clock") or gpu.get("sm_clock")
    clocks = f", {clock} MHz" if clock else ""
    line = f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}{clocks}; {results['seconds']:.0f} s in all.\n"
    failed = "".join(f"\nOf {part} the rest is missing: {why}\n" for part, why in results.get("failed", {}).items())
    return line + failed
