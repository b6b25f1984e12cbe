"""A trial: a candidate and everything that was found out about it. Every candidate ends as one, whatever happened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise
from stillhouse.measure.fidelity import Fidelity

Status = Literal["accepted", "rejected", "failed", "excluded", "skipped"]
"""accepted: within every bound. rejected: it ran, and missed a bound. failed: it did not run to the end. excluded: it
makes no sense here. skipped: the time budget ended first."""
BUDGET_ENDED = "the time budget ended first; run again to go on"
"""Why what was not reached is skipped."""


@dataclass(frozen=True, slots=True)
class PictureFidelity:
    """How far the pictures of a candidate lie from the baseline's, same prompts and seeds.

    Args:
        count: pictures compared.
        psnr: dB, the mean over pictures; equal pictures count as 99.
        worst_psnr: dB, of the worst picture.
        ssim: mean structural similarity, up to 1.
        drift: relative error of the final latents, root mean square, the mean over pictures; None where unknown.
        score: share of pictures that the oracle calls all correct; None where there is no oracle.
        baseline_score: the same of the baseline's pictures.
        score_gain: mean of the paired difference with its 95 % interval, as (mean, low, high).
        files: the strip: for each shown prompt, the picture's file relative to the report.
    """

    count: int
    psnr: float
    worst_psnr: float
    ssim: float
    drift: float | None = None
    score: float | None = None
    baseline_score: float | None = None
    score_gain: tuple[float, float, float] | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate with what was measured. None and empty mean: it did not come to that.

    Args:
        status, reason: the verdict, and one sentence that a person can act on; no reason only where accepted.
        executed: the precision that the heavy layers computed in, as read back from the runtime.
        census: how many heavy operations ran in each precision.
        fidelity: by probe ("noise 0.9", "output boxes", ...): tensors against the baseline's.
        pictures: pictures against the baseline's.
        seconds, ratio: of one call (of one picture, for a pipeline candidate), and how many times faster than the
            baseline of its component.
        batch: seconds a row, by batch size ("1", "2", ...).
        build_seconds, open_seconds, first_seconds: to make the artefact, to open it, and of the first call.
        peak_bytes: of the process that ran it, at its highest.
        gpu_bytes: of GPU memory, after the probes were run, see `child.Child.held`; None where it ran on the processor.
        file_bytes: of everything that must be on disk to run it.
        artefact: directory relative to the report; None where the component's own graph is used.
        graph: the graph that is opened, relative to the report.
        log, reproduce: files relative to the report.
        rows: samples in the timed call, along its batch axis.
    """

    candidate: Candidate
    status: Status
    reason: str = ""
    executed: str | None = None
    census: Mapping[str, int] = field(default_factory=dict)
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)
    pictures: PictureFidelity | None = None
    seconds: Timing | None = None
    ratio: Ratio | None = None
    batch: Mapping[str, float] = field(default_factory=dict)
    build_seconds: float | None = None
    open_seconds: float | None = None
    first_seconds: float | None = None
    peak_bytes: int | None = None
    gpu_bytes: int | None = None
    file_bytes: int | None = None
    artifact: str | None = None
    graph: str | None = None
    log: str | None = None
    reproduce: str | None = None
    rows: int = 1

    @property
    def worst_fidelity(self) -> Fidelity | None:
        """The fidelity of the probe with the least SQNR."""
        return min(self.fidelity.values(), key=lambda one: one.sqnr, default=None)

    def with_timings(self, seconds: Sequence[float], baseline_seconds: Sequence[float]) -> "Trial":
        """The trial with the seconds of its calls, and their ratio to the baseline's of the same rounds."""
        return replace(self, seconds=summarise(seconds), ratio=paired_ratio(baseline_seconds, seconds))
