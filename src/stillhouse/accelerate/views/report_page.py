"""The report of `stillhouse accelerate` as an HTML page without scripts, which needs no other file and no network."""

import re
from collections.abc import Callable, Mapping, Sequence
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
    format_weight_types,
    printable,
)
from stillhouse.accelerate.views.image_strips import DIFFERENCE_GAIN, ImageStrip, build_strips
from stillhouse.accelerate.views.rows import ReportRow, baseline_and_chosen, report_components, report_rows
from stillhouse.accelerate.views.summary import price_per_thousand, summarise_report
from stillhouse.accelerate.views.tradeoff_plot import TradeoffPlot, build_tradeoff_plot
from stillhouse.accelerate.views.use_it import use_it
from stillhouse.accelerate.views.whisker import WIDTH, WhiskerColumn, build_whiskers
from stillhouse.html.environment import jinja_environment
from stillhouse.images.files import write_file

TEMPLATES = Path(__file__).parent
_FEW_STRIPS = 4
"""Maximum number of candidates whose pictures are all shown unfolded."""


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """Candidates that were not accepted for the same reason, apart from its numbers.

    Args:
        reason: the reason of the first of them.
        rows: rows of the candidates.
    """

    reason: str
    rows: tuple[ReportRow, ...]

    @property
    def size(self) -> int:
        """Return the number of candidates."""
        return len(self.rows)


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
        accepted, columns: rows and columns of the table of accepted candidates.
        whiskers: drawings of the speed-ups of this table.
        measured: rows of all candidates that ran.
        not_accepted: by verdict, the other candidates, grouped by reason.
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
    accepted: tuple[ReportRow, ...]
    columns: tuple[TableColumn, ...]
    whiskers: WhiskerColumn
    measured: tuple[ReportRow, ...]
    not_accepted: Mapping[str, tuple[ReasonGroup, ...]]
    plot: TradeoffPlot | None
    strips: tuple[ImageStrip, ...]
    probes: tuple[str, ...]
    batch_sizes: tuple[str, ...]

    @property
    def main_strips(self) -> tuple[ImageStrip, ...]:
        """Return the pictures of the baseline and of the choice; of all candidates where there are few."""
        main = tuple(strip for strip in self.strips if strip.row.baseline or strip.row.chosen)
        return self.strips if len(self.strips) <= _FEW_STRIPS or not main else main

    @property
    def other_strips(self) -> tuple[ImageStrip, ...]:
        """Return the other pictures, which the page folds."""
        return tuple(strip for strip in self.strips if strip not in self.main_strips)


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
    sections = [_build_section(report, name, directory) for name in names]
    text: str = (
        _jinja_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            summary=summarise_report(report),
            entries=use_it(report, directory),
            example=_find_example(sections),
            bounds=describe_bounds(report.bounds),
            sections=sections,
            gain=DIFFERENCE_GAIN,
            frame=axes,
            whisker_width=WIDTH,
        )
    )
    return text


def group_reasons(rows: Sequence[ReportRow]) -> Mapping[str, tuple[ReasonGroup, ...]]:
    """Return the rows that were not accepted by verdict, grouped by their reasons; the largest groups come first.

    Reasons that differ only in numbers belong to one group.
    """
    groups: dict[str, dict[str, list[ReportRow]]] = {}
    for row in rows:
        if not row.accepted:
            kind = re.sub(r"-?\d+(\.\d+)?", "#", row.reason)
            groups.setdefault(row.trial.status, {}).setdefault(kind, []).append(row)
    return {
        status: tuple(
            ReasonGroup(members[0].reason, tuple(members))
            for members in sorted(groups[status].values(), key=len, reverse=True)
        )
        for status in ("rejected", "failed", "skipped", "excluded")
        if status in groups
    }


def _find_example(sections: Sequence[ReportSection]) -> tuple[ImageStrip, ImageStrip] | None:
    """Return the sample pictures of the baseline and of the chosen pipeline; None where one of them has none.

    The result is None, too, where the baseline itself is the choice.
    """
    strips = sections[0].strips if sections else ()
    before = next((strip for strip in strips if strip.row.baseline), None)
    after = next((strip for strip in strips if strip.row.chosen and not strip.row.baseline), None)
    has_pictures = before and after and before.cells[0].picture and after.cells[0].picture
    return (before, after) if before and after and has_pictures else None


def _jinja_environment() -> Any:
    environment = jinja_environment(TEMPLATES)
    environment.filters |= {
        "duration": format_duration,
        "keep_units": _keep_units_together,
        "printable": printable,
        "bytes": format_bytes,
        "sqnr": format_sqnr,
        "figures": _describe_figures,
        "ms": lambda seconds: format_significant(1000 * seconds),
    }
    return environment


def _build_section(report: Report, component: str, directory: Path) -> ReportSection:
    rows = report_rows(report, component)
    measured = tuple(
        row for row in rows if row.accepted or row.trial.seconds or row.trial.fidelity or row.trial.pictures
    )
    accepted = tuple(row for row in measured if row.accepted or row.baseline)
    baseline, chosen = baseline_and_chosen(report, component)
    probes = dict.fromkeys(probe for row in measured for probe in row.trial.fidelity)
    batch_sizes = {count for row in measured for count in row.trial.batch}
    return ReportSection(
        component=printable(component),
        title="Whole pictures, end to end" if component == PIPELINE else printable(component),
        baseline=baseline,
        chosen=chosen,
        probe_note=printable(report.probes.get(component, "")),
        accepted=accepted,
        columns=tuple(column for column in _table_columns(report) if any(column.cell(row) for row in accepted)),
        whiskers=build_whiskers(accepted),
        measured=measured,
        not_accepted=group_reasons(rows),
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


def _keep_units_together(text: str) -> str:
    """Return a text with a no-break space between each number and its unit, so that no line ends there."""
    return re.sub(r"(?<=\d) (?=(%|ms|s|dB|[KMG]iB)(\W|$))", "\N{NO-BREAK SPACE}", text)


def _describe_figures(row: ReportRow) -> str:
    """Return the measured speed-up and accuracy of a candidate that was not accepted; empty where it did not run."""
    parts = [
        f"{format_speedup(row.interval.value)} ({format_interval(row.interval)})" if row.interval else "",
        f"SQNR {format_sqnr(row.sqnr)}" if row.sqnr is not None else "",
        f"PSNR {format_psnr(row.psnr)}" if row.psnr is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _format_executed(row: ReportRow) -> str:
    census, weights = row.trial.census, format_weight_types(row.trial.weight_types)
    counts = ", ".join(f"{count} {precision}" for precision, count in census.items()) if len(census) > 1 else ""
    return "\n".join(printable(part) for part in (row.trial.executed or "", counts, weights) if part)


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
