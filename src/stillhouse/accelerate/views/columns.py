"""The columns of the spreadsheet, each with its definition. The first, `task`, is named in `xlsx`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from stillhouse.accelerate.views.rows import ReportRow

CellValue: TypeAlias = str | int | float | None

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SpreadsheetColumn:
    """A column of the spreadsheet.

    Args:
        heading: its first row.
        layout: the number format of what stands below.
        meaning: its definition, for the sheet that explains.
        value: what stands there; None leaves the cell empty.
    """

    heading: str
    number_format: str
    meaning: str
    value: Callable[[ReportRow], CellValue]


def _mae(row: ReportRow) -> CellValue:
    found = row.trial.fidelity.values()
    if row.baseline:
        return 0
    return sum(one.mae for one in found) / len(found) if found and not _nonfinite(row) else None


def _max_error(row: ReportRow) -> CellValue:
    return None if _nonfinite(row) else max((one.largest for one in row.trial.fidelity.values()), default=None)


def _nonfinite(row: ReportRow) -> int | None:
    return sum(one.nonfinite for one in row.trial.fidelity.values()) if row.trial.fidelity else None


def _throughput(row: ReportRow) -> CellValue:
    return None if row.trial.seconds is None else row.trial.rows / row.trial.seconds.median


def _nested_value(field: str, name: str, factor: float = 1) -> Callable[[ReportRow], CellValue]:
    """A figure of a part of the trial that may be missing."""

    def value(row: ReportRow) -> CellValue:
        holder = getattr(row.trial, field)
        found = None if holder is None else getattr(holder, name)
        return found if found is None or factor == 1 else found * factor

    return value


SPREADSHEET_COLUMNS = (
    SpreadsheetColumn(
        "file size(MB)",
        "0.00",
        "of all files that are needed to run it, in MiB (2^20 bytes)",
        lambda row: None if row.trial.file_bytes is None else row.trial.file_bytes / _MIB,
    ),
    SpreadsheetColumn(
        "throughput(samples/second)",
        "0.00",
        "batch x passes a second, from the median latency; pictures a second where the component is pipeline",
        _throughput,
    ),
    SpreadsheetColumn(
        "mae",
        "General",
        "mean absolute error against the baseline's outputs, the mean over probes; 0 for the baseline; empty where an "
        "output is not finite, or was not compared",
        _mae,
    ),
    SpreadsheetColumn(
        "status",
        "@",
        "accepted: within every bound; rejected: it ran, and missed one; failed: it did not run to the end; excluded: "
        "it makes no sense here; skipped: the time budget ended first",
        lambda row: row.trial.status,
    ),
    SpreadsheetColumn("reason", "@", "why it was not accepted, and what to do", lambda row: row.reason or None),
    SpreadsheetColumn(
        "component", "@", "the network, or pipeline: whole pictures", lambda row: row.trial.candidate.component
    ),
    SpreadsheetColumn(
        "executed precision",
        "@",
        "what the heavy layers computed in, as read back from the runtime",
        lambda row: row.trial.executed,
    ),
    SpreadsheetColumn("backend", "@", "the runtime", lambda row: row.trial.candidate.backend),
    SpreadsheetColumn("latency p50 (ms)", "0.000", "median of one call", _nested_value("seconds", "median", 1000)),
    SpreadsheetColumn(
        "latency p95 (ms)", "0.000", "95th percentile of one call", _nested_value("seconds", "p95", 1000)
    ),
    SpreadsheetColumn(
        "speed-up",
        "0.00",
        "times faster than the baseline: the median of ratios of runs that were taken in the same rounds",
        _nested_value("ratio", "value"),
    ),
    SpreadsheetColumn(
        "speed-up low", "0.00", "lower end of its 95 % bootstrap interval", _nested_value("ratio", "low")
    ),
    SpreadsheetColumn(
        "speed-up high", "0.00", "upper end of its 95 % bootstrap interval", _nested_value("ratio", "high")
    ),
    SpreadsheetColumn(
        "batch", "0", "samples in the timed call", lambda row: row.trial.rows if row.trial.seconds else None
    ),
    SpreadsheetColumn(
        "SQNR (dB)",
        "0.0",
        "signal to quantisation noise, 10 log10(sum ref^2 / sum error^2), of the worst probe; 999: equal; -999: not "
        "finite",
        lambda row: row.sqnr,
    ),
    SpreadsheetColumn(
        "cosine",
        "0.000000",
        "between output and reference, of the worst probe",
        _nested_value("worst_fidelity", "cosine"),
    ),
    SpreadsheetColumn("max abs error", "General", "the largest of all probes; empty where not finite", _max_error),
    SpreadsheetColumn("non-finite", "0", "output elements that are NaN or infinite, all probes", _nonfinite),
    SpreadsheetColumn(
        "PSNR (dB)", "0.0", "mean over pictures of the same prompts and seeds; 99: equal", lambda row: row.psnr
    ),
    SpreadsheetColumn(
        "SSIM", "0.000", "mean structural similarity of the same pictures, up to 1", _nested_value("pictures", "ssim")
    ),
    SpreadsheetColumn(
        "score", "0.000", "share of pictures that show all that was asked", _nested_value("pictures", "score")
    ),
    SpreadsheetColumn(
        "peak memory (MB)",
        "0",
        "of the process that ran it, in MiB",
        lambda row: None if row.trial.peak_bytes is None else row.trial.peak_bytes / _MIB,
    ),
    SpreadsheetColumn(
        "peak GPU memory (MB)",
        "0",
        "that its process held after the first call, in MiB; empty where it ran on the processor",
        lambda row: None if row.trial.gpu_bytes is None else row.trial.gpu_bytes / _MIB,
    ),
    SpreadsheetColumn("build (s)", "0.00", "to make the artefact", lambda row: row.trial.build_seconds),
    SpreadsheetColumn("open (s)", "0.00", "to load and compile it", lambda row: row.trial.open_seconds),
    SpreadsheetColumn("artefact", "@", "its directory, relative to the report", lambda row: row.trial.artifact),
    SpreadsheetColumn("candidate", "@", "its full name", lambda row: row.trial.candidate.name),
    SpreadsheetColumn("chosen", "@", "yes for the choice of its component", lambda row: "yes" if row.chosen else None),
)
"""Of a trial. Those after `mae` have no counterpart in Auto-Acceleration."""
