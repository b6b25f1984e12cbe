"""A trial: a candidate with its measurements and verdict. Every candidate gets one, whatever happens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise
from stillhouse.measure.fidelity import Fidelity

Status = Literal["accepted", "rejected", "failed", "excluded", "skipped"]
"""accepted: within every bound. rejected: it ran and violated a bound. failed: an error ended it. excluded: not
applicable on this machine. skipped: not evaluated, or not completely.
"""
BUDGET_ENDED = "the time budget ended first; run the sweep again to continue"
"""Reason of candidates that were skipped for lack of time."""


@dataclass(frozen=True, slots=True)
class PictureFidelity:
    """Difference between a candidate's pictures and the baseline's, of the same prompts and seeds.

    Args:
        count: number of pictures compared.
        psnr: dB, mean over pictures; identical pictures count as 99.
        worst_psnr: dB, of the worst picture.
        ssim: mean structural similarity, up to 1.
        drift: relative RMS error of the final latents, mean over pictures; None: unknown.
        score: share of pictures for which the oracle finds every requested property correct, 0 to 1; None: no oracle.
        baseline_score: score of the baseline's pictures.
        score_gain: mean of the paired score difference with its 95 % interval: (mean, low, high).
        files: sample pictures, one file for each prompt, relative to the report.
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
    """A candidate with its measurements. None and empty values were not measured.

    Args:
        status, reason: verdict, and one sentence with its cause; empty where accepted.
        executed: precision of the heavy layers, as read back from the backend.
        census: number of heavy operations by precision.
        fidelity: by probe ("noise 0.9", "output boxes", ...), error of the outputs relative to the baseline.
        pictures: difference of the pictures from the baseline's.
        seconds, ratio: duration of one call (one picture for a pipeline candidate), and speed-up over the component's
            baseline.
        batch: seconds per row by batch size ("1", "2", ...).
        build_seconds, open_seconds, first_seconds: duration of building the graph, opening it, and the first call.
        peak_bytes: peak memory of the process.
        gpu_bytes: GPU memory after the probes ran, see `CandidateWorker.gpu_memory`; None on the CPU.
        file_bytes: size of all files needed to run the candidate.
        artifact: directory of the recipe's graph, relative to the report; None: the component's own graph.
        graph: the graph that is opened, relative to the report.
        log, reproduce: files relative to the report.
        rows: batch size of the timed call.
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
        """Return the fidelity of the probe with the lowest SQNR; None where nothing was compared."""
        return min(self.fidelity.values(), key=lambda fidelity: fidelity.sqnr, default=None)

    def with_timings(self, seconds: Sequence[float], baseline_seconds: Sequence[float]) -> "Trial":
        """Return the trial with new timings: seconds of its calls, and of baseline calls in the same rounds."""
        return replace(self, seconds=summarise(seconds), ratio=paired_ratio(baseline_seconds, seconds))
