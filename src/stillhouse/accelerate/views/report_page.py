"""The report of `stillhouse accelerate` as an HTML page without scripts, which needs no other file and no network."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views import axes
from stillhouse.accelerate.views.formatting import (
    describe_bounds,
    format_bytes,
    format_duration,
    format_interval,
    format_percent,
    format_psnr,
    format_significant,
    format_speedup,
    format_sqnr,
    printable,
)
from stillhouse.accelerate.views.image_strips import DIFFERENCE_GAIN, ImageStrip, build_strips
from stillhouse.accelerate.views.rows import ReportRow, baseline_and_chosen, report_components, report_rows
from stillhouse.accelerate.views.summary import headline, price_per_thousand, summary_component, summary_sentences
from stillhouse.accelerate.views.tradeoff_plot import TradeoffPlot, build_tradeoff_plot
from stillhouse.accelerate.views.whisker import Whisker, build_whiskers
from stillhouse.html.environment import jinja_environment
from stillhouse.images.files import write_file

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SummaryTile:
    """A highlighted number at the top of the page.

    Args:
        label: name of the number.
        value: the number with its unit, as text.
        note: text below the number, such as the baseline's value; may be empty.
    """

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of the table of candidates.

    Args:
        heading: text above the column.
        meaning: definition of the column.
        cell: function from a row of the report to the text of its cell.
        is_text: whether cells are words, aligned left, not numbers.
    """

    heading: str
    meaning: str
    cell: Callable[[ReportRow], str]
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class ReportSection:
    """The section of the page about one network or about the whole pipeline.

    A row is a candidate (backend, precision, options) with its measurements.

    Args:
        component, title: name of the network, and heading of the section.
        baseline, chosen: rows of the baseline and of the chosen candidate; None where there is none.
        probe_note: description of the inputs on which candidates were measured.
        measured, columns: rows and columns of the main table.
        whiskers: for each row of the main table, a drawing of the speed-up; None where the row was not timed.
        not_accepted: rows of candidates that were not accepted.
        plot: speed-up against accuracy; None where too few candidates have both.
        strips: sample pictures of the candidates.
        probes: labels of the recorded inputs, the columns of the table of SQNR; empty: no such table.
        batch_sizes: batch sizes, the columns of the table of times; empty: no such table.
    """

    component: str
    title: str
    baseline: ReportRow | None
    chosen: ReportRow | None
    probe_note: str
    measured: tuple[ReportRow, ...]
    columns: tuple[TableColumn, ...]
    whiskers: tuple[Whisker | None, ...]
    not_accepted: tuple[ReportRow, ...]
    plot: TradeoffPlot | None
    strips: tuple[ImageStrip, ...]
    probes: tuple[str, ...]
    batch_sizes: tuple[str, ...]


def write_report_page(report: Report, path: Path) -> None:
    """Write a report as an HTML page.

    Args:
        report: the report to show.
        path: file to write, in the report's directory; paths of pictures are relative to this directory.

    Raises:
        InvalidRequest: the file cannot be written.
        RuntimeMissing: jinja2 is not installed.
    """
    write_file(path, render_report(report, path.parent).encode())


def render_report(report: Report, directory: Path) -> str:
    """Return a report as the text of an HTML page.

    Args:
        report: the report to show.
        directory: the report's directory; paths of pictures are relative to it.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    names = sorted(report_components(report), key=lambda name: name != PIPELINE)
    text: str = (
        _jinja_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headline=headline(report),
            summary=summary_sentences(report),
            tiles=_summary_tiles(report),
            bounds=describe_bounds(report.bounds),
            sections=[_build_section(report, name, directory) for name in names],
            statuses=_count_statuses(report),
            gain=DIFFERENCE_GAIN,
            frame=axes,
        )
    )
    return text


def _jinja_environment() -> Any:
    environment = jinja_environment(TEMPLATES)
    environment.filters |= {
        "duration": format_duration,
        "keep_units": _keep_units_together,
        "printable": printable,
        "bytes": format_bytes,
        "sqnr": format_sqnr,
        "ms": lambda seconds: format_significant(1000 * seconds),
    }
    return environment


def _build_section(report: Report, component: str, directory: Path) -> ReportSection:
    rows = report_rows(report, component)
    measured = tuple(
        row for row in rows if row.accepted or row.trial.seconds or row.trial.fidelity or row.trial.pictures
    )
    baseline, chosen = baseline_and_chosen(report, component)
    probes = dict.fromkeys(probe for row in measured for probe in row.trial.fidelity)
    batch_sizes = {count for row in measured for count in row.trial.batch}
    return ReportSection(
        component=printable(component),
        title="Whole pictures, end to end" if component == PIPELINE else printable(component),
        baseline=baseline,
        chosen=chosen,
        probe_note=printable(report.probes.get(component, "")),
        measured=measured,
        columns=tuple(column for column in _table_columns(report) if any(column.cell(row) for row in measured)),
        whiskers=build_whiskers(measured),
        not_accepted=tuple(row for row in rows if not row.accepted),
        plot=build_tradeoff_plot(rows, report.bounds),
        strips=build_strips(rows, directory),
        probes=tuple(probes) if len(probes) > 1 else (),
        batch_sizes=tuple(sorted(batch_sizes, key=lambda count: (len(count), count))) if len(batch_sizes) > 1 else (),
    )


def _table_columns(report: Report) -> tuple[TableColumn, ...]:
    format_price = partial(_format_price, report)
    return (
        TableColumn(
            "Runs in", "precision of the heavy layers, as read back from the backend", _format_executed, is_text=True
        ),
        TableColumn("p50, ms", "median time of one call", lambda row: _format_milliseconds(row.trial, "median")),
        TableColumn(
            "p95, ms", "95th percentile of the time of one call", lambda row: _format_milliseconds(row.trial, "p95")
        ),
        TableColumn(
            "SQNR, dB",
            "signal to quantization noise ratio of the outputs, worst probe",
            lambda row: "" if row.sqnr is None else format_sqnr(row.sqnr),
        ),
        TableColumn("PSNR, dB", "of pictures, mean", lambda row: "" if row.psnr is None else format_psnr(row.psnr)),
        TableColumn(
            "SSIM", "of pictures, mean", lambda row: f"{row.trial.pictures.ssim:.3f}" if row.trial.pictures else ""
        ),
        TableColumn("Score", "pictures with every requested property correct", _format_score),
        TableColumn("Peak memory", "peak memory of the process", lambda row: _format_size(row.trial.peak_bytes)),
        TableColumn("On disk", "size of all files needed to run it", lambda row: _format_size(row.trial.file_bytes)),
        TableColumn("Build", "time to build the graph", lambda row: _format_seconds(row.trial.build_seconds)),
        TableColumn("Open", "time to load and compile the graph", lambda row: _format_seconds(row.trial.open_seconds)),
        TableColumn(
            f"{printable(report.currency)} per 1,000", "price of 1,000 runs at the given price of an hour", format_price
        ),
    )


def _summary_tiles(report: Report) -> tuple[SummaryTile, ...]:
    component = summary_component(report)
    baseline, chosen = baseline_and_chosen(report, component) if component else (None, None)
    if chosen is None:
        return ()
    reference, actual = baseline.trial if baseline else None, chosen.trial
    pictures, worst = actual.pictures, actual.worst_fidelity
    interval = f"95 % interval {format_interval(actual.ratio)}" if actual.ratio else ""
    unit = "One picture" if component == PIPELINE else "One call"

    def instead(value: str | None) -> str:
        return f"instead of {value}" if value else ""

    tiles = (
        SummaryTile("Speed-up", format_speedup(chosen.speed) if chosen.speed else "", interval),
        SummaryTile(
            unit,
            format_duration(actual.seconds.median) if actual.seconds else "",
            instead(format_duration(reference.seconds.median) if reference and reference.seconds else None),
        ),
        SummaryTile(
            f"Price of 1,000, {printable(report.currency)}",
            _format_price(report, chosen),
            instead(_format_price(report, baseline) if baseline else None),
        ),
        SummaryTile(
            "Score",
            format_percent(pictures.score) if pictures and pictures.score is not None else "",
            f"baseline {format_percent(pictures.baseline_score)}"
            if pictures and pictures.baseline_score is not None
            else "",
        ),
        SummaryTile("PSNR", _format_decibels(format_psnr(pictures.psnr)) if pictures else "", "of same-seed pictures"),
        SummaryTile(
            "SQNR",
            _format_decibels(format_sqnr(worst.sqnr)) if worst and not pictures else "",
            "of outputs, worst probe",
        ),
        SummaryTile(
            "Peak memory",
            _format_size(actual.peak_bytes),
            instead(_format_size(reference.peak_bytes) if reference else None),
        ),
    )
    return tuple(tile for tile in tiles if tile.value)


def _count_statuses(report: Report) -> dict[str, int]:
    statuses = [trial.status for trial in report.trials]
    return {status: statuses.count(status) for status in ("accepted", "rejected", "failed", "excluded", "skipped")}


def _keep_units_together(text: str) -> str:
    """Return a text with a no-break space between each number and its unit, so that no line ends there."""
    return re.sub(r"(?<=\d) (?=(%|ms|s|dB|[KMG]iB)(\W|$))", "\N{NO-BREAK SPACE}", text)


def _format_executed(row: ReportRow) -> str:
    census = row.trial.census
    counts = ", ".join(f"{count} {precision}" for precision, count in census.items()) if len(census) > 1 else ""
    return "\n".join(printable(part) for part in (row.trial.executed or "", counts) if part)


def _format_score(row: ReportRow) -> str:
    pictures = row.trial.pictures
    return "" if pictures is None or pictures.score is None else f"{format_percent(pictures.score)} of {pictures.count}"


def _format_price(report: Report, row: ReportRow) -> str:
    price = price_per_thousand(report, row.trial.seconds.median) if row.trial.seconds else None
    return "" if price is None else format_significant(price)


def _format_milliseconds(trial: Trial, statistic: str) -> str:
    return "" if trial.seconds is None else format_significant(1000 * getattr(trial.seconds, statistic))


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds)


def _format_size(count: int | None) -> str:
    return format_bytes(count) if count else ""


def _format_decibels(text: str) -> str:
    return text if text in ("equal", "none") else f"{text} dB"
