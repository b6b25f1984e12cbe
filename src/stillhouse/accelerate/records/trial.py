"""A trial: a candidate (configuration of a network or pipeline) with its measurements and verdict.

Every candidate gets a trial, even if it fails or is not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.measure.clock import Ratio, Timing, paired_ratio, summarise
from stillhouse.measure.fidelity import Fidelity

Status = Literal["accepted", "rejected", "failed", "excluded", "skipped"]
"""Verdict on a candidate. accepted: it satisfies every bound. rejected: it ran and violates a bound. failed: an error
ended its evaluation. excluded: it does not suit this machine or model. skipped: it was not evaluated, or only in part.
"""
BUDGET_ENDED = "the time budget ended first; run the sweep again to continue"
"""Text that the report gives as the reason of each candidate that was skipped for lack of time."""
BUDGET_CUT = "the time budget ended while it was measured; run the sweep again to continue"
"""Reason of a candidate whose measurement was begun and not finished for lack of time."""


@dataclass(frozen=True, slots=True)
class PictureFidelity:
    """Difference between a candidate's pictures and the f32 baseline's pictures of the same prompts and seeds.

    The oracle is a program that checks whether a picture shows every property that its prompt asks for.

    Args:
        count: number of pictures compared.
        psnr: mean PSNR over the pictures in dB; a picture identical to the baseline's counts as 99.
        worst_psnr: lowest PSNR of a picture in dB.
        ssim: mean structural similarity, up to 1.
        drift: relative RMS error of the final latents, mean over pictures; None: unknown.
        score: share of the candidate's pictures that the oracle finds correct, 0 to 1; None: there is no oracle.
        baseline_score: share of the baseline's pictures that the oracle finds correct; None: there is no oracle.
        score_gain: mean difference of the scores, candidate minus baseline, with its 95 % interval: (mean, low, high).
        files: paths of sample pictures relative to the report's directory, one for each prompt.
        strict_gain: as `score_gain`, for a stricter score that also demands sharp edges and flat colours.
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
    strict_gain: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate (configuration of a network or pipeline) with its measurements. None and empty: not measured.

    Paths are relative to the report's directory. The baseline is the unmodified f32 candidate.

    Args:
        candidate: the configuration that was measured.
        status, reason: verdict, and one sentence with its cause; the reason of an accepted candidate is empty.
        executed: compute precision, as the backend reports it after opening the network.
        census: number of convolutions, matrix products and attentions by compute precision.
        weight_types: number of weights that are stored as integers and expanded before use, by type: int4, int8.
        fidelity: error of the outputs relative to the baseline, by label of the recorded input ("noise 0.9", ...).
        pictures: difference between the candidate's pictures and the baseline's.
        seconds: duration of one call; of one picture for a candidate of the whole pipeline.
        ratio: speed-up over the baseline.
        batch: seconds per row by batch size ("1", "2", ...).
        build_seconds, open_seconds, first_seconds: duration of building the graph, opening it, and the first call.
        peak_bytes: peak memory of the process.
        gpu_bytes: GPU memory after all recorded inputs ran, see `CandidateWorker.gpu_memory`; None on the CPU.
        file_bytes: size of all files needed to run the candidate.
        artifact: directory of the graph that was built; None: the component's own graph is used.
        graph: path of the graph that is opened.
        log, reproduce: paths of the process's log, and of a script that measures the candidate again.
        rows: batch size of the timed call.
        unproven: names of outputs whose error cannot be judged, because no probe excites them.
        mismatch: a sentence that outputs have another form than the baseline's, or that rows depend on each other;
            empty where this was not found.
        baseline_seconds: duration of the baseline's call in the same rounds.
    """

    candidate: Candidate
    status: Status
    reason: str = ""
    executed: str | None = None
    census: Mapping[str, int] = field(default_factory=dict)
    weight_types: Mapping[str, int] = field(default_factory=dict)
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
    unproven: tuple[str, ...] = ()
    mismatch: str = ""
    baseline_seconds: Timing | None = None

    @property
    def is_waiting(self) -> bool:
        """Return whether the candidate was not measured for lack of time, so that another run would measure it."""
        return self.reason in (BUDGET_ENDED, BUDGET_CUT)

    @property
    def worst_fidelity(self) -> Fidelity | None:
        """Return the lowest fidelity, by SQNR, of the outputs for any probe; None where none was compared.

        Outputs without signal count only where no output has signal.
        """
        values = list(self.fidelity.values())
        with_signal = [fidelity for fidelity in values if fidelity.has_signal]
        return min(with_signal or values, key=lambda fidelity: fidelity.sqnr, default=None)

    def with_timings(self, seconds: Sequence[float], baseline_seconds: Sequence[float]) -> "Trial":
        """Return a copy of the trial with a new duration and a new speed-up.

        Args:
            seconds: duration of the candidate's call in each round.
            baseline_seconds: duration of the baseline's call in each of these rounds.
        """
        return replace(
            self,
            seconds=summarise(seconds),
            baseline_seconds=summarise(baseline_seconds),
            ratio=paired_ratio(baseline_seconds, seconds),
        )
