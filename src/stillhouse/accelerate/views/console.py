"""The report of `stillhouse accelerate` as text for a terminal of any width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from stillhouse.accelerate.records.candidate import NETWORK, PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Status, Trial
from stillhouse.accelerate.views.formatting import (
    format_bytes,
    format_interval,
    format_psnr,
    format_significant,
    format_speedup,
    format_sqnr,
    printable,
)
from stillhouse.accelerate.views.rows import ReportRow, baseline_and_chosen, report_components, report_rows
from stillhouse.accelerate.views.summary import summarise_report
from stillhouse.accelerate.views.use_it import use_it

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STATUS_STYLES = {"accepted": "green", "rejected": "yellow", "failed": "red", "excluded": "dim", "skipped": "dim"}
_GAP, _NARROWEST_NAME = 2, 22
_MOST_NAMES = 2
"""Largest number of candidates of one reason that are named; further ones are counted."""


@dataclass(frozen=True, slots=True)
class _TerminalColumn:
    """A column of a table.

    Args:
        heading: text above the column.
        cell: function from a row of the report to the text of its cell.
        drop_order: on a terminal that is too narrow, columns of the highest `drop_order` are left out first.
        align_right: whether cells are aligned right, else left.
    """

    heading: str
    cell: Callable[[ReportRow], str]
    drop_order: int
    align_right: bool = True


_COLUMNS = (
    _TerminalColumn("status", lambda row: row.trial.status, 1, align_right=False),
    _TerminalColumn("runs in", lambda row: printable(row.trial.executed or ""), 5, align_right=False),
    _TerminalColumn("p50 ms", lambda row: _format_milliseconds(row.trial, "median"), 0),
    _TerminalColumn("p95 ms", lambda row: _format_milliseconds(row.trial, "p95"), 8),
    _TerminalColumn("speed-up", lambda row: format_speedup(row.speed) if row.speed else "", 0),
    _TerminalColumn("95 % interval", lambda row: format_interval(row.interval) if row.interval else "", 4),
    _TerminalColumn("SQNR dB", lambda row: "" if row.sqnr is None else format_sqnr(row.sqnr), 2),
    _TerminalColumn("PSNR dB", lambda row: "" if row.psnr is None else format_psnr(row.psnr), 3),
    _TerminalColumn("peak memory", lambda row: format_bytes(row.trial.peak_bytes) if row.trial.peak_bytes else "", 6),
)


def print_report(report: Report, console: "Console", directory: Path | None = None) -> None:
    """Print the tables of a report, one for each network and for the whole pipeline, and a summary.

    A table has the measured candidates, fastest first; `>` marks the chosen candidate. The headings of columns that do
    not fit, and the reasons why candidates were not accepted, are printed below the table. The code that loads the
    choice without Stillhouse comes last.

    Args:
        report: the report to print.
        console: console of the package rich, which determines the width.
        directory: the report's directory, in which the chosen graph lies; None: no code is printed.
    """
    for component in report_components(report):
        _print_component(report, component, console)
    summary = summarise_report(report)
    for warning in summary.warnings:
        console.print(_text(f"Warning: {warning}", "yellow"))
    console.print(_text(summary.headline, "bold"))
    for sentence in (summary.price, *summary.sentences):
        if sentence:
            console.print(_text(sentence))
    if note := report.probes.get(NETWORK):
        console.print(_text(f"Inputs: {printable(note)}"))
    for entry in use_it(report, directory) if directory else ():
        console.print()
        console.print(_text(f"{entry.title}, in {directory}:", "bold"))
        # Lines of code are not broken, so that they can be copied.
        console.print(_text(entry.code), soft_wrap=True)


def format_report(report: Report, width: int | None = None, directory: Path | None = None) -> str:
    """Return the tables and the summary of a report as plain text, as `print_report` prints them.

    Args:
        report: the report to print.
        width: maximum width in characters; None: the terminal's width, or 120 without a terminal.
        directory: the report's directory, for the code that loads the choice; None: no code is printed.
    """
    from rich.console import Console

    file = StringIO()
    columns = width or get_terminal_size((120, 24)).columns
    print_report(report, Console(file=file, width=columns, color_system=None, force_terminal=False), directory)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _print_component(report: Report, component: str, console: "Console") -> None:
    rows = report_rows(report, component)
    baseline = baseline_and_chosen(report, component)[0]
    title = "whole pictures, end to end" if component == PIPELINE else printable(component)
    console.print(_text(title, "bold"), _text(f"baseline {baseline.name}" if baseline else "", "dim"))
    measured = tuple(row for row in rows if row.accepted or row.trial.seconds or row.trial.fidelity)
    if measured:
        columns, missing = _fit_columns(measured, console.width)
        console.print(_build_table(measured, columns))
        if missing:
            console.print(_text(f"  columns not shown: {', '.join(missing)}", "dim"))
    if not_accepted := [row for row in rows if not row.accepted]:
        console.print(_text("not accepted"))
        console.print(_build_reasons_table(not_accepted))
    console.print()


def _fit_columns(table_rows: Sequence[ReportRow], width: int) -> tuple[list[_TerminalColumn], list[str]]:
    """Return the columns to show, and the headings of columns that do not fit. Columns without values are in neither.

    Args:
        table_rows: rows of the table.
        width: width of the terminal in characters.
    """
    filled = [column for column in _COLUMNS if any(column.cell(row) for row in table_rows)]
    name_width = max(len(row.name) for row in table_rows)
    shown = list(filled)
    while len(shown) > 1:
        used_width = sum(
            _GAP + max(len(column.heading), *(len(column.cell(row)) for row in table_rows)) for column in shown
        )
        if used_width + _GAP + min(name_width, _NARROWEST_NAME) <= width:
            break
        shown.remove(max(shown, key=lambda column: column.drop_order))
    return shown, [column.heading for column in filled if column not in shown]


def _build_table(table_rows: Sequence[ReportRow], columns: Sequence[_TerminalColumn]) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("candidate", overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.align_right else "left", no_wrap=True)
    for row in table_rows:
        style = "bold" if row.chosen else ""
        cells = [_text(column.cell(row), STATUS_STYLES.get(column.cell(row), "")) for column in columns]
        table.add_row(_text(">" if row.chosen else ""), _text(row.name), *cells, style=style)
    return table


def _build_reasons_table(not_accepted: Sequence[ReportRow]) -> "Table":
    """Return a table of the rows that were not accepted with their reasons.

    Rows of one verdict and reason share a line, at the place of the first. Many rows are counted, not named.
    """
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column("", width=0)
    table.add_column("", no_wrap=True)
    table.add_column("", ratio=1, overflow="fold")
    groups: dict[tuple[Status, str], list[ReportRow]] = {}
    for row in not_accepted:
        groups.setdefault((row.trial.status, row.reason), []).append(row)
    for (status, reason), rows in groups.items():
        names = "; ".join(row.name for row in rows[:_MOST_NAMES])
        more = f" and {len(rows) - _MOST_NAMES} more" if len(rows) > _MOST_NAMES else ""
        table.add_row("", _text(status, STATUS_STYLES[status]), _text(f"{names}{more}: {reason}"))
    return table


def _text(text: str, style: str = "") -> "Text":
    """Return a text in a style of the package rich, in which brackets are printed as they are, not read as markup."""
    from rich.text import Text

    return Text(text, style)


def _format_milliseconds(trial: Trial, statistic: str) -> str:
    return "" if trial.seconds is None else format_significant(1000 * getattr(trial.seconds, statistic))
