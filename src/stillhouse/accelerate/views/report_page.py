"""The report as one page that stands alone: no network, no script, everything in the file."""

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
from stillhouse.images.png import write_file

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SummaryTile:
    """A figure that stands by itself: what it is, how much, and in which light."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table: its heading, what it means, its cells, and whether these are words."""

    heading: str
    meaning: str
    cell: Callable[[ReportRow], str]
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class ReportSection:
    """One component.

    Args:
        component: its name; `title` is what the page calls it.
        base, chosen: their rows, None where there is none.
        probed: with what, in words.
        ran: the rows of the table, and their columns.
        whiskers: the speed-up of each row, drawn.
        lost: the rows that were not accepted.
        plot, strips: see there.
        probes, batches: the columns of the tables that tell quality by probe, and time by batch size.
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
    """Write the page. Pictures are looked for beside it, where the report's own paths lead.

    Raises:
        InvalidRequest: it cannot be written there.
        RuntimeMissing: jinja2 is not installed.
    """
    write_file(path, render_report(report, path.parent).encode())


def render_report(report: Report, directory: Path) -> str:
    """The page as text.

    Args:
        report: what it tells.
        directory: what the paths of pictures are relative to.

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
            story=summary_sentences(report),
            tiles=_summary_tiles(report),
            promises=describe_bounds(report.bounds),
            sections=[_build_section(report, name, directory) for name in names],
            statuses=_count_statuses(report),
            gain=DIFFERENCE_GAIN,
            frame=axes,
        )
    )
    return text


def _jinja_environment() -> Any:
    made = jinja_environment(TEMPLATES)
    made.filters |= {
        "duration": format_duration,
        "joined": _keep_units_together,
        "plain": printable,
        "size": format_bytes,
        "sqnr": format_sqnr,
        "ms": lambda seconds: format_significant(1000 * seconds),
    }
    return made


def _build_section(report: Report, component: str, directory: Path) -> ReportSection:
    found = report_rows(report, component)
    ran = tuple(row for row in found if row.accepted or row.trial.seconds or row.trial.fidelity or row.trial.pictures)
    base, chosen = baseline_and_chosen(report, component)
    probes = dict.fromkeys(probe for row in ran for probe in row.trial.fidelity)
    batches = {count for row in ran for count in row.trial.batch}
    return ReportSection(
        component=printable(component),
        title="Whole pictures, end to end" if component == PIPELINE else printable(component),
        baseline=base,
        chosen=chosen,
        probe_note=printable(report.probes.get(component, "")),
        measured=ran,
        columns=tuple(column for column in _table_columns(report) if any(column.cell(row) for row in ran)),
        whiskers=build_whiskers(ran),
        not_accepted=tuple(row for row in found if not row.accepted),
        plot=build_tradeoff_plot(found, report.bounds),
        strips=build_strips(found, directory),
        probes=tuple(probes) if len(probes) > 1 else (),
        batch_sizes=tuple(sorted(batches, key=lambda count: (len(count), count))) if len(batches) > 1 else (),
    )


def _table_columns(report: Report) -> tuple[TableColumn, ...]:
    paid = partial(_format_price, report)
    return (
        TableColumn(
            "Runs in", "precision of the heavy layers, as read back from the runtime", _format_executed, is_text=True
        ),
        TableColumn("p50, ms", "median time of one call", lambda row: _format_milliseconds(row.trial, "median")),
        TableColumn(
            "p95, ms", "time that 95 of 100 calls stay below", lambda row: _format_milliseconds(row.trial, "p95")
        ),
        TableColumn(
            "SQNR, dB", "of outputs, worst probe", lambda row: "" if row.sqnr is None else format_sqnr(row.sqnr)
        ),
        TableColumn("PSNR, dB", "of pictures, mean", lambda row: "" if row.psnr is None else format_psnr(row.psnr)),
        TableColumn(
            "SSIM", "of pictures, mean", lambda row: f"{row.trial.pictures.ssim:.3f}" if row.trial.pictures else ""
        ),
        TableColumn("Score", "pictures that show all that was asked", _format_score),
        TableColumn("Peak memory", "of the process that ran it", lambda row: _format_size(row.trial.peak_bytes)),
        TableColumn("On disk", "all files that are needed to run it", lambda row: _format_size(row.trial.file_bytes)),
        TableColumn("Build", "to make the artefact", lambda row: _format_seconds(row.trial.build_seconds)),
        TableColumn("Open", "to load and compile it", lambda row: _format_seconds(row.trial.open_seconds)),
        TableColumn(f"{printable(report.currency)} per 1,000", "at the price that was told", paid),
    )


def _summary_tiles(report: Report) -> tuple[SummaryTile, ...]:
    whole = summary_component(report)
    base, chosen = baseline_and_chosen(report, whole) if whole else (None, None)
    if chosen is None:
        return ()
    old, new = base.trial if base else None, chosen.trial
    pictures, worst = new.pictures, new.worst_fidelity
    spread = f"95 % interval {format_interval(new.ratio)}" if new.ratio else ""
    one = "One picture" if whole == PIPELINE else "One call"

    def instead(before: str | None) -> str:
        return f"instead of {before}" if before else ""

    tiles = (
        SummaryTile("Speed-up", format_speedup(chosen.speed) if chosen.speed else "", spread),
        SummaryTile(
            one,
            format_duration(new.seconds.median) if new.seconds else "",
            instead(format_duration(old.seconds.median) if old and old.seconds else None),
        ),
        SummaryTile(
            f"Price of 1,000, {printable(report.currency)}",
            _format_price(report, chosen),
            instead(_format_price(report, base) if base else None),
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
            "Peak memory", _format_size(new.peak_bytes), instead(_format_size(old.peak_bytes) if old else None)
        ),
    )
    return tuple(tile for tile in tiles if tile.value)


def _count_statuses(report: Report) -> dict[str, int]:
    found = [trial.status for trial in report.trials]
    return {status: found.count(status) for status in ("accepted", "rejected", "failed", "excluded", "skipped")}


def _keep_units_together(text: str) -> str:
    """Figures stay on the line of their units."""
    return re.sub(r"(?<=\d) (?=(%|ms|s|dB|[KMG]iB)(\W|$))", "\N{NO-BREAK SPACE}", text)


def _format_executed(row: ReportRow) -> str:
    census = row.trial.census
    told = ", ".join(f"{count} {precision}" for precision, count in census.items()) if len(census) > 1 else ""
    return "\n".join(printable(part) for part in (row.trial.executed or "", told) if part)


def _format_score(row: ReportRow) -> str:
    pictures = row.trial.pictures
    return "" if pictures is None or pictures.score is None else f"{format_percent(pictures.score)} of {pictures.count}"


def _format_price(report: Report, row: ReportRow) -> str:
    paid = price_per_thousand(report, row.trial.seconds.median) if row.trial.seconds else None
    return "" if paid is None else format_significant(paid)


def _format_milliseconds(trial: Trial, statistic: str) -> str:
    return "" if trial.seconds is None else format_significant(1000 * getattr(trial.seconds, statistic))


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds)


def _format_size(count: int | None) -> str:
    return format_bytes(count) if count else ""


def _format_decibels(text: str) -> str:
    return text if text in ("equal", "none") else f"{text} dB"
