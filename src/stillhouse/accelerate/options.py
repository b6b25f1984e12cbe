"""What a user asks of a sweep, and what is usual where nothing was asked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from stillhouse.accelerate.calibration.prompts import has_oracle
from stillhouse.accelerate.evaluation.latency import TimingBudget
from stillhouse.accelerate.records.candidate import DISTILLED, Candidate
from stillhouse.accelerate.records.report import Bounds, Goal
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.workspace import Workspace, original_manifest
from stillhouse.backends.signature import Axes
from stillhouse.core import ImageRequest
from stillhouse.measure.machine import Machine
from stillhouse.pipelines.manifest import file_sha256

_MEMORY_SHARE = 0.85
"""Of the machine's memory, what a candidate and its baseline may take."""
_KILL_SHARE = 0.97
"""Of what they may take, where they are ended: what loads weights takes more between two looks at it."""


@dataclass(frozen=True, slots=True)
class AccelerateOptions:
    """What the user wants of a sweep.

    Args:
        goal, bounds: what the choice is about.
        budget: seconds that the sweep may take; None: as long as it takes.
        memory: bytes that a candidate and its baseline may take; None: most of what the machine has.
        limit: seconds after which a candidate that does not answer is ended.
        threads: at most so many for each network.
        components: only these; empty: all.
        engines: only these backends; empty: all.
        recipes: only these; empty: all. The baseline is always there.
        effort: of the races of heavy networks; None: the usual.
        requests: what is drawn to probe and to compare; empty: what the model has, or general prompts.
        inputs: of a bare ONNX file, an .npz; None: plausible ones.
        students: names of the students that are candidates, as `students.settle_students` laid them out.
        ones: feed a bare ONNX file nothing but ones, as Auto-Acceleration did.
        shapes: of a bare ONNX file's inputs where they are dynamic.
        limits: of such an input the least and the most of each axis.
        rows: sizes of batches that a static U-Net is opened for; empty: `models.buckets.ROWS`.
        price: of an hour of this machine.
        device: auto; cpu, for candidates of the processor only; or the GPU that is meant: cuda, cuda:1.
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
    requests: tuple[ImageRequest, ...] = ()
    students: tuple[str, ...] = ()
    inputs: Path | None = None
    all_ones: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shape_ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    price: float | None = None
    currency: str = "USD"
    device: str = "auto"


def resolve_memory_limit(requested: int | None, machine: Machine) -> int | None:
    """Bytes at which a candidate and its baseline are ended: what was asked for, or most of what the machine has."""
    most = requested or (int(_MEMORY_SHARE * machine.memory) if machine.memory else None)
    return None if most is None else int(_KILL_SHARE * most)


def is_selected(planned: Trial | Candidate, options: AccelerateOptions) -> bool:
    """Whether the recipes that were asked for name it. A plain f32 always is, for others are compared with it, and
    so is what is a student's, which was asked for by name."""
    candidate = planned.candidate if isinstance(planned, Trial) else planned
    told = (candidate.recipe, candidate.precision)
    plain = candidate.recipe in ("f32", DISTILLED) and candidate.precision == "f32"
    return not options.recipes or plain or any(name in options.recipes for name in told if name != "f32")


def checksum_options(options: AccelerateOptions) -> str:
    """A checksum of what the trials of a sweep depend on: two sweeps that differ in it cannot share them."""
    told = {
        "threads": options.threads,
        "effort": options.timing_budget,
        "requests": options.requests,
        "inputs": options.inputs and file_sha256(options.inputs),
        "ones": options.all_ones,
        "shapes": sorted(options.shapes.items()),
        **(
            {"limits": sorted(options.shape_ranges.items())}
            if any(one[0] != one[1] for one in options.shape_ranges.values())
            else {}
        ),
        **({"rows": options.rows} if options.rows else {}),
        **({} if options.device == "auto" else {"device": options.device}),
    }
    return hashlib.sha256(repr(told).encode()).hexdigest()


def format_axis_ranges(
    shape_ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], axes: Mapping[str, Axes]
) -> str:
    """Which of a graph's named axes may have which lengths, as TensorRT's engines are told it; empty: each has one.

    Where inputs share an axis it may have what all of them allow. An axis without a name has one length.

    >>> format_axis_ranges({"x": ((1, 3, 32), (8, 3, 64))}, {"x": ("rows", 3, "width")})
    'rows=1-8,width=32-64'
    """
    found: dict[str, tuple[int, int]] = {}
    for name, (least, most) in shape_ranges.items():
        for axis, low, high in zip(axes[name], least, most, strict=True):
            if isinstance(axis, str):
                before = found.get(axis, (low, high))
                found[axis] = max(before[0], low), min(before[1], high)
    return ",".join(f"{axis}={low}-{high}" for axis, (low, high) in found.items() if low < high)


def fill_default_bounds(bounds: Bounds, workspace: Workspace) -> Bounds:
    """The bounds with what is usual where nothing was asked.

    A network may err by 20 dB in a bare file; in a pipeline, where whole pictures are compared too, by 10 dB at any
    noise level. Same-seed pictures must be the same to the eye: 25 dB and 0.9; where an oracle reads them, its score
    may fall by one point.
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
