"""Columns of the spreadsheet `summary.xlsx` with their definitions, except the first column, which `xlsx` defines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from stillhouse.accelerate.views.formatting import format_weight_types
from stillhouse.accelerate.views.rows import ReportRow

CellValue: TypeAlias = str | int | float | None

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SpreadsheetColumn:
    """A column of the spreadsheet, which has a row for each measured candidate.

    Args:
        heading: text of the first row.
        number_format: number format of the cells, in the syntax of spreadsheets, for example "0.00".
        meaning: definition of the column, which the sheet `environment` shows.
        value: function from a row of the report to the value of its cell; None leaves the cell empty.
    """

    heading: str
    number_format: str
    meaning: str
    value: Callable[[ReportRow], CellValue]


def _mae(row: ReportRow) -> CellValue:
    fidelities = row.trial.fidelity.values()
    if row.baseline:
        return 0
    return (
        sum(fidelity.mae for fidelity in fidelities) / len(fidelities) if fidelities and not _nonfinite(row) else None
    )


def _max_error(row: ReportRow) -> CellValue:
    return (
        None if _nonfinite(row) else max((fidelity.largest for fidelity in row.trial.fidelity.values()), default=None)
    )


def _nonfinite(row: ReportRow) -> int | None:
    return sum(fidelity.nonfinite for fidelity in row.trial.fidelity.values()) if row.trial.fidelity else None


def _throughput(row: ReportRow) -> CellValue:
    return None if row.trial.seconds is None else row.trial.rows / row.trial.seconds.median


def _nested_value(field: str, name: str, factor: float = 1) -> Callable[[ReportRow], CellValue]:
    """Return a function that reads a nested number of a row: `row.trial.<field>.<name>`, times `factor`.

    The function returns None where the field is None, that is, was not measured.
    """

    def value(row: ReportRow) -> CellValue:
        record = getattr(row.trial, field)
        number = None if record is None else getattr(record, name)
        return number if number is None or factor == 1 else number * factor

    return value


def _interval_value(name: str) -> Callable[[ReportRow], CellValue]:
    """Return a function that reads `row.interval.<name>`; None where the row has no interval."""
    return lambda row: None if row.interval is None else getattr(row.interval, name)


SPREADSHEET_COLUMNS = (
    SpreadsheetColumn(
        "file size(MB)",
        "0.00",
        "size of all files needed to run it, in MiB (2^20 bytes)",
        lambda row: None if row.trial.file_bytes is None else row.trial.file_bytes / _MIB,
    ),
    SpreadsheetColumn(
        "throughput(samples/second)",
        "0.00",
        "batch size times calls per second, from the median latency; pictures per second for the component pipeline",
        _throughput,
    ),
    SpreadsheetColumn(
        "mae",
        "General",
        "mean absolute error relative to the baseline's outputs, mean over probes; 0 for the baseline; empty where an "
        "output is not finite or was not compared",
        _mae,
    ),
    SpreadsheetColumn(
        "status",
        "@",
        "accepted: within every bound; rejected: it ran and violated a bound; failed: an error ended it; excluded: not "
        "applicable on this machine; skipped: not evaluated, or not completely",
        lambda row: row.trial.status,
    ),
    SpreadsheetColumn("reason", "@", "cause of the status, and what to do", lambda row: row.reason or None),
    SpreadsheetColumn(
        "component", "@", "name of the component; pipeline: whole pictures", lambda row: row.trial.candidate.component
    ),
    SpreadsheetColumn(
        "executed precision",
        "@",
        "precision of the heavy layers, as read back from the backend",
        lambda row: row.trial.executed,
    ),
    SpreadsheetColumn(
        "integer weights",
        "@",
        "number of weights that are stored as integers and expanded before use, by type",
        lambda row: format_weight_types(row.trial.weight_types).removeprefix("weights: ") or None,
    ),
    SpreadsheetColumn("backend", "@", "name of the backend", lambda row: row.trial.candidate.backend),
    SpreadsheetColumn("latency p50 (ms)", "0.000", "median of one call", _nested_value("seconds", "median", 1000)),
    SpreadsheetColumn(
        "latency p95 (ms)", "0.000", "95th percentile of one call", _nested_value("seconds", "p95", 1000)
    ),
    SpreadsheetColumn(
        "speed-up",
        "0.00",
        "speed relative to the baseline: mean ratio of calls timed in the same rounds, without the extremes",
        _interval_value("value"),
    ),
    SpreadsheetColumn("speed-up low", "0.00", "lower end of its 95 % bootstrap interval", _interval_value("low")),
    SpreadsheetColumn("speed-up high", "0.00", "upper end of its 95 % bootstrap interval", _interval_value("high")),
    SpreadsheetColumn(
        "batch", "0", "samples in the timed call", lambda row: row.trial.rows if row.trial.seconds else None
    ),
    SpreadsheetColumn(
        "SQNR (dB)",
        "0.0",
        "signal to quantization noise ratio, 10 log10(sum ref^2 / sum error^2), of the worst probe; 999: equal; -999: "
        "not finite",
        lambda row: row.sqnr,
    ),
    SpreadsheetColumn(
        "cosine",
        "0.000000",
        "between output and reference, of the worst probe",
        _nested_value("worst_fidelity", "cosine"),
    ),
    SpreadsheetColumn("max abs error", "General", "maximum over all probes; empty where not finite", _max_error),
    SpreadsheetColumn(
        "non-finite", "0", "number of output elements that are NaN or infinite, over all probes", _nonfinite
    ),
    SpreadsheetColumn(
        "PSNR (dB)", "0.0", "mean over pictures of the same prompts and seeds; 99: equal", lambda row: row.psnr
    ),
    SpreadsheetColumn(
        "SSIM", "0.000", "mean structural similarity of the same pictures, up to 1", _nested_value("pictures", "ssim")
    ),
    SpreadsheetColumn(
        "score",
        "0.000",
        "share of pictures for which the oracle finds every requested property correct",
        _nested_value("pictures", "score"),
    ),
    SpreadsheetColumn(
        "peak memory (MB)",
        "0",
        "peak memory of the process, in MiB",
        lambda row: None if row.trial.peak_bytes is None else row.trial.peak_bytes / _MIB,
    ),
    SpreadsheetColumn(
        "peak GPU memory (MB)",
        "0",
        "GPU memory of the process after the probes ran, in MiB; empty on the CPU",
        lambda row: None if row.trial.gpu_bytes is None else row.trial.gpu_bytes / _MIB,
    ),
    SpreadsheetColumn("build (s)", "0.00", "to build the graph", lambda row: row.trial.build_seconds),
    SpreadsheetColumn("open (s)", "0.00", "to load and compile the graph", lambda row: row.trial.open_seconds),
    SpreadsheetColumn(
        "artifact",
        "@",
        "directory of the built graph, or the original graph, relative to the report",
        lambda row: row.trial.artifact or row.trial.graph,
    ),
    SpreadsheetColumn("candidate", "@", "full name of the candidate", lambda row: row.trial.candidate.name),
    SpreadsheetColumn(
        "chosen", "@", "yes for the chosen candidate of its component", lambda row: "yes" if row.chosen else None
    ),
)
"""Columns of the spreadsheet, in order, after the first one. Columns after `mae` do not exist in the spreadsheet of
Auto-Acceleration.
"""
