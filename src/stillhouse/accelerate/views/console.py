"""The report on a terminal of any width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.formatting import interval, plain, psnr, significant, size, sqnr, times
from stillhouse.accelerate.views.rows import Row, components, marked, rows
from stillhouse.accelerate.views.summary import headline, story

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

STYLES = {"accepted": "green", "rejected": "yellow", "failed": "red", "excluded": "dim", "skipped": "dim"}
_GAP, _NARROWEST_NAME = 2, 22


@dataclass(frozen=True, slots=True)
class _Column:
    """A heading, what stands below it, and how early it goes where there is no room: the highest `spare` first."""

    heading: str
    cell: Callable[[Row], str]
    spare: int
    right: bool = True


_COLUMNS = (
    _Column("status", lambda row: row.trial.status, 1, right=False),
    _Column("runs in", lambda row: plain(row.trial.executed or ""), 5, right=False),
    _Column("p50 ms", lambda row: _milliseconds(row.trial, "median"), 0),
    _Column("p95 ms", lambda row: _milliseconds(row.trial, "p95"), 8),
    _Column("speed-up", lambda row: times(row.speed) if row.speed else "", 0),
    _Column("95 % interval", lambda row: interval(row.trial.ratio) if row.trial.ratio else "", 4),
    _Column("SQNR dB", lambda row: "" if row.sqnr is None else sqnr(row.sqnr), 2),
    _Column("PSNR dB", lambda row: "" if row.psnr is None else psnr(row.psnr), 3),
    _Column("peak memory", lambda row: size(row.trial.peak_bytes) if row.trial.peak_bytes else "", 6),
)


def print_report(report: Report, console: "Console") -> None:
    """Print a table for each network, that of the whole pipeline, the reasons, and what was chosen.

    Tables are sorted, fastest first; `>` marks the choice. Columns that find no room are left out and named.
    """
    for component in components(report):
        _print_component(report, component, console)
    console.print(_text(headline(report), "bold"))
    for sentence in story(report):
        console.print(_text(sentence))


def table(report: Report, width: int | None = None) -> str:
    """What `print_report` prints, as plain text.

    Args:
        report: what it tells.
        width: columns at most; None takes the terminal's, and 120 where there is none.
    """
    from rich.console import Console

    file = StringIO()
    columns = width or get_terminal_size((120, 24)).columns
    print_report(report, Console(file=file, width=columns, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _print_component(report: Report, component: str, console: "Console") -> None:
    found = rows(report, component)
    base = marked(report, component)[0]
    title = "the whole picture, end to end" if component == PIPELINE else plain(component)
    console.print(_text(title, "bold"), _text(f"against {base.name}" if base else "", "dim"))
    measured = tuple(row for row in found if row.accepted or row.trial.seconds or row.trial.fidelity)
    if measured:
        shown, missing = _fitting(measured, console.width)
        console.print(_drawn(measured, shown))
        if missing:
            console.print(_text(f"  no room for {', '.join(missing)}", "dim"))
    if lost := [row for row in found if not row.accepted]:
        console.print(_text("not accepted"))
        console.print(_reasons(lost))
    console.print()


def _fitting(found: Sequence[Row], width: int) -> tuple[list[_Column], list[str]]:
    """The columns that have something to show and room to show it, and the headings of those that lack the room."""
    told = [column for column in _COLUMNS if any(column.cell(row) for row in found)]
    longest = max(len(row.name) for row in found)
    shown = list(told)
    while len(shown) > 1:
        taken = sum(_GAP + max(len(column.heading), *(len(column.cell(row)) for row in found)) for column in shown)
        if taken + _GAP + min(longest, _NARROWEST_NAME) <= width:
            break
        shown.remove(max(shown, key=lambda column: column.spare))
    return shown, [column.heading for column in told if column not in shown]


def _drawn(found: Sequence[Row], shown: Sequence[_Column]) -> "Table":
    from rich.table import Table

    drawn = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    drawn.add_column("")
    drawn.add_column("candidate", overflow="fold")
    for column in shown:
        drawn.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for row in found:
        style = "bold" if row.chosen else ""
        cells = [_text(column.cell(row), STYLES.get(column.cell(row), "")) for column in shown]
        drawn.add_row(_text(">" if row.chosen else ""), _text(row.name), *cells, style=style)
    return drawn


def _reasons(lost: Sequence[Row]) -> "Table":
    from rich.table import Table

    drawn = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0), pad_edge=False)
    drawn.add_column("", width=0)
    drawn.add_column("", no_wrap=True)
    drawn.add_column("", ratio=1, overflow="fold")
    for row in lost:
        status = row.trial.status
        drawn.add_row("", _text(status, STYLES[status]), _text(f"{row.name}: {row.reason}"))
    return drawn


def _text(words: str, style: str = "") -> "Text":
    """Text in which brackets are brackets."""
    from rich.text import Text

    return Text(words, style)


def _milliseconds(trial: Trial, which: str) -> str:
    return "" if trial.seconds is None else significant(1000 * getattr(trial.seconds, which))
