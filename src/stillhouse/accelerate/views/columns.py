"""The columns of the spreadsheet, each with its definition. The first, `task`, is named in `xlsx`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from stillhouse.accelerate.views.rows import Row

Value: TypeAlias = str | int | float | None

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the spreadsheet.

    Args:
        heading: its first row.
        layout: the number format of what stands below.
        meaning: its definition, for the sheet that explains.
        value: what stands there; None leaves the cell empty.
    """

    heading: str
    layout: str
    meaning: str
    value: Callable[[Row], Value]


def _mae(row: Row) -> Value:
    found = row.trial.fidelity.values()
    if row.baseline:
        return 0
    return sum(one.mae for one in found) / len(found) if found and not _nonfinite(row) else None


def _largest(row: Row) -> Value:
    return None if _nonfinite(row) else max((one.largest for one in row.trial.fidelity.values()), default=None)


def _nonfinite(row: Row) -> int | None:
    return sum(one.nonfinite for one in row.trial.fidelity.values()) if row.trial.fidelity else None


def _throughput(row: Row) -> Value:
    return None if row.trial.seconds is None else row.trial.rows / row.trial.seconds.median


def _of(part: str, name: str, factor: float = 1) -> Callable[[Row], Value]:
    """A figure of a part of the trial that may be missing."""

    def value(row: Row) -> Value:
        holder = getattr(row.trial, part)
        found = None if holder is None else getattr(holder, name)
        return found if found is None or factor == 1 else found * factor

    return value


COLUMNS = (
    Column(
        "file size(MB)",
        "0.00",
        "of all files that are needed to run it, in MiB (2^20 bytes)",
        lambda row: None if row.trial.file_bytes is None else row.trial.file_bytes / _MIB,
    ),
    Column(
        "throughput(samples/second)",
        "0.00",
        "batch x passes a second, from the median latency; pictures a second where the component is pipeline",
        _throughput,
    ),
    Column(
        "mae",
        "General",
        "mean absolute error against the baseline's outputs, the mean over probes; 0 for the baseline; empty where an "
        "output is not finite, or was not compared",
        _mae,
    ),
    Column(
        "status",
        "@",
        "accepted: within every bound; rejected: it ran, and missed one; failed: it did not run to the end; excluded: "
        "it makes no sense here; skipped: the time budget ended first",
        lambda row: row.trial.status,
    ),
    Column("reason", "@", "why it was not accepted, and what to do", lambda row: row.reason or None),
    Column("component", "@", "the network, or pipeline: whole pictures", lambda row: row.trial.candidate.component),
    Column(
        "executed precision",
        "@",
        "what the heavy layers computed in, as read back from the runtime",
        lambda row: row.trial.executed,
    ),
    Column("backend", "@", "the runtime", lambda row: row.trial.candidate.backend),
    Column("latency p50 (ms)", "0.000", "median of one call", _of("seconds", "median", 1000)),
    Column("latency p95 (ms)", "0.000", "95th percentile of one call", _of("seconds", "p95", 1000)),
    Column(
        "speed-up",
        "0.00",
        "times faster than the baseline: the median of ratios of runs that were taken in the same rounds",
        _of("ratio", "value"),
    ),
    Column("speed-up low", "0.00", "lower end of its 95 % bootstrap interval", _of("ratio", "low")),
    Column("speed-up high", "0.00", "upper end of its 95 % bootstrap interval", _of("ratio", "high")),
    Column("batch", "0", "samples in the timed call", lambda row: row.trial.rows if row.trial.seconds else None),
    Column(
        "SQNR (dB)",
        "0.0",
        "signal to quantisation noise, 10 log10(sum ref^2 / sum error^2), of the worst probe; 999: equal; -999: not "
        "finite",
        lambda row: row.sqnr,
    ),
    Column("cosine", "0.000000", "between output and reference, of the worst probe", _of("worst", "cosine")),
    Column("max abs error", "General", "the largest of all probes; empty where not finite", _largest),
    Column("non-finite", "0", "output elements that are NaN or infinite, all probes", _nonfinite),
    Column("PSNR (dB)", "0.0", "mean over pictures of the same prompts and seeds; 99: equal", lambda row: row.psnr),
    Column("SSIM", "0.000", "mean structural similarity of the same pictures, up to 1", _of("pictures", "ssim")),
    Column("score", "0.000", "share of pictures that show all that was asked", _of("pictures", "score")),
    Column(
        "peak memory (MB)",
        "0",
        "of the process that ran it, in MiB",
        lambda row: None if row.trial.peak_bytes is None else row.trial.peak_bytes / _MIB,
    ),
    Column(
        "peak GPU memory (MB)",
        "0",
        "that its process held after the first call, in MiB; empty where it ran on the processor",
        lambda row: None if row.trial.gpu_bytes is None else row.trial.gpu_bytes / _MIB,
    ),
    Column("build (s)", "0.00", "to make the artefact", lambda row: row.trial.build_seconds),
    Column("open (s)", "0.00", "to load and compile it", lambda row: row.trial.open_seconds),
    Column("artefact", "@", "its directory, relative to the report", lambda row: row.trial.artefact),
    Column("candidate", "@", "its full name", lambda row: row.trial.candidate.name),
    Column("chosen", "@", "yes for the choice of its component", lambda row: "yes" if row.chosen else None),
)
"""Of a trial. Those after `mae` have no counterpart in Auto-Acceleration."""
