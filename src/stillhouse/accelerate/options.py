"""Options of a sweep (one run of `stillhouse accelerate`), their defaults, and a checksum of the options.

Measurements of an earlier sweep are reused only where the checksum is unchanged.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from stillhouse.accelerate.calibration.prompts import has_oracle
from stillhouse.accelerate.evaluation.latency import FINAL_BUDGET, TimingBudget
from stillhouse.accelerate.records.candidate import DISTILLED, Candidate
from stillhouse.accelerate.records.report import Bounds, Goal
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.workspace import Workspace, original_manifest
from stillhouse.backends.signature import Axes
from stillhouse.core import ImageRequest
from stillhouse.measure.machine import Machine
from stillhouse.pipelines.manifest import file_sha256

_MEMORY_SHARE = 0.85
"""Default limit on the memory of the measured process and the baseline's process together, as a share of the machine's
memory.
"""
_KILL_SHARE = 0.97
"""Share of the memory limit at which processes are killed. The share is below 1 because memory is read at intervals,
and a process that loads weights may allocate much memory between two readings.
"""


@dataclass(frozen=True, slots=True)
class AccelerateOptions:
    """Options of one sweep (run of `stillhouse accelerate`).

    A candidate is one combination of backend, precision and options to measure. A component is a network of the
    pipeline, such as the denoiser. The source is a pipeline or a single ONNX file.

    Args:
        goal: objective by which the best candidate is chosen.
        bounds: limits on accuracy and memory that the chosen candidate satisfies.
        budget: seconds that the sweep may take; None: no limit.
        memory_limit: bytes that a candidate's process and the baseline's process may use together; None:
            `_MEMORY_SHARE` of the machine's memory.
        timeout: seconds after which a candidate's process that does not reply is killed.
        threads: maximum number of threads of each component; None: the backend's default.
        components: names of the components to measure; empty: all components.
        backends: names of the backends to try; empty: all backends.
        recipes: names of quantization recipes or precisions to try; empty: all. The f32 baseline is always tried.
        timing_budget: number of rounds and seconds of each latency comparison; None: a default for each component.
        final_timing_budget: number of rounds and seconds of the timing that decides between the fastest candidates; a
            changed copy of FINAL_BUDGET keeps its number of openings.
        requests: images to generate for calibration and comparison; empty: captions or general prompts.
        students: names of distilled students to try in place of the pipeline, as `students.add_students` returns them.
        inputs: for a single ONNX file, an .npz file of inputs or a folder of pictures; None: inputs are generated.
        pixels: range of pixels for a folder of pictures, see `user_inputs.read_picture_inputs`; empty: not given.
        all_ones: for a single ONNX file, whether inputs are filled with ones, as in Auto-Acceleration.
        shapes: for a single ONNX file, shapes by input name; they replace dynamic axes.
        shape_ranges: for a single ONNX file, (minimum, maximum) shape by input name.
        rows: batch sizes for which a denoiser with static shapes is opened; empty: `batch_sizes.DEFAULT_SIZES`.
        price: price of one hour of this machine, in `currency`; None: unknown.
        currency: name of the currency, for example USD.
        device: "auto"; "cpu" for CPU candidates only; or the GPU to use: "cuda", "cuda:1".
    """

    goal: Goal = "latency"
    bounds: Bounds = field(default_factory=Bounds)
    budget: float | None = None
    memory_limit: int | None = None
    timeout: float = 900.0
    threads: int | None = None
    components: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    timing_budget: TimingBudget | None = None
    final_timing_budget: TimingBudget = FINAL_BUDGET
    requests: tuple[ImageRequest, ...] = ()
    students: tuple[str, ...] = ()
    inputs: Path | None = None
    pixels: str = ""
    all_ones: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shape_ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    price: float | None = None
    currency: str = "USD"
    device: str = "auto"


def resolve_memory_limit(requested: int | None, machine: Machine) -> int | None:
    """Return the bytes of memory at which measured processes are killed: `_KILL_SHARE` times the limit; None: no limit.

    Args:
        requested: the user's limit in bytes; None: `_MEMORY_SHARE` of the machine's memory.
        machine: this machine. If its memory size is unknown and the user gives no limit, there is no limit.
    """
    limit = requested or (int(_MEMORY_SHARE * machine.memory) if machine.memory else None)
    return None if limit is None else int(_KILL_SHARE * limit)


def is_selected(planned: Trial | Candidate, options: AccelerateOptions) -> bool:
    """Return whether the user's selection of recipes and precisions, `options.recipes`, includes a candidate.

    The f32 baseline and distilled students, which the user requests by name, are always included.

    Args:
        planned: a candidate to measure, or the trial of a candidate that was excluded without measurement.
        options: options of the sweep; empty `recipes` include every candidate.
    """
    candidate = planned.candidate if isinstance(planned, Trial) else planned
    names = (candidate.recipe, candidate.precision)
    is_unchanged = candidate.recipe in ("f32", DISTILLED) and candidate.precision == "f32"
    return not options.recipes or is_unchanged or any(name in options.recipes for name in names if name != "f32")


def checksum_options(options: AccelerateOptions) -> str:
    """Return a SHA-256 (hex) of options that influence measurements. Only sweeps of equal SHA-256 share results."""
    facts = {
        "threads": options.threads,
        "timing_budget": options.timing_budget,
        "requests": options.requests,
        "inputs": options.inputs and _inputs_sha256(options.inputs),
        "all_ones": options.all_ones,
        "shapes": sorted(options.shapes.items()),
        **(
            {"shape_ranges": sorted(options.shape_ranges.items())}
            if any(axis_range[0] != axis_range[1] for axis_range in options.shape_ranges.values())
            else {}
        ),
        **({"final_timing_budget": options.final_timing_budget} if options.final_timing_budget != FINAL_BUDGET else {}),
        **({"rows": options.rows} if options.rows else {}),
        **({} if options.device == "auto" else {"device": options.device}),
        **({"pixels": options.pixels} if options.pixels else {}),
    }
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _inputs_sha256(inputs: Path) -> str | list[tuple[str, str]]:
    """Return the SHA-256 (hex) of a file of inputs, or the name and SHA-256 of each file in a folder of pictures."""
    if not inputs.is_dir():
        return file_sha256(inputs)
    return [(path.name, file_sha256(path)) for path in sorted(inputs.iterdir()) if path.is_file()]


def format_axis_ranges(
    shape_ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], axes: Mapping[str, Axes]
) -> str:
    """Return the ranges of a graph's named axes as text for the `axes` setting of the TensorRT backend.

    Where several inputs share an axis, its range is the intersection of their ranges. An axis is left out if it has no
    name or only one allowed length. The result is empty where no axis varies. By input name, `shape_ranges` holds the
    (minimum, maximum) shape, and `axes` the name or fixed length of each axis.

    >>> format_axis_ranges({"x": ((1, 3, 32), (8, 3, 64))}, {"x": ("rows", 3, "width")})
    'rows=1-8,width=32-64'
    """
    ranges: dict[str, tuple[int, int]] = {}
    for name, (minimum, maximum) in shape_ranges.items():
        for axis, low, high in zip(axes[name], minimum, maximum, strict=True):
            if isinstance(axis, str):
                previous = ranges.get(axis, (low, high))
                ranges[axis] = max(previous[0], low), min(previous[1], high)
    return ",".join(f"{axis}={low}-{high}" for axis, (low, high) in ranges.items() if low < high)


def fill_default_bounds(bounds: Bounds, workspace: Workspace) -> Bounds:
    """Return the accuracy bounds that the user gave, with a default in place of each None.

    Default for a workspace with a single ONNX file: 20 dB SQNR (signal to quantization noise ratio) of every output.
    Defaults for a pipeline, whose pictures are compared too: 10 dB SQNR at every noise level, and 25 dB PSNR and 0.9
    SSIM of pictures of equal seeds, which is no visible difference. If a program (oracle) scores the pictures, the
    score may also drop by at most one percentage point.
    """
    if not workspace.is_pipeline:
        return replace(bounds, min_sqnr=20.0 if bounds.min_sqnr is None else bounds.min_sqnr)
    filled = replace(
        bounds,
        min_sqnr=10.0 if bounds.min_sqnr is None else bounds.min_sqnr,
        min_psnr=25.0 if bounds.min_psnr is None else bounds.min_psnr,
        min_ssim=0.9 if bounds.min_ssim is None else bounds.min_ssim,
    )
    if has_oracle(original_manifest(workspace.directory)) and bounds.max_score_drop is None:
        filled = replace(filled, max_score_drop=1.0)
    return filled
