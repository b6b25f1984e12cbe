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
    duration,
    interval,
    plain,
    promises,
    psnr,
    share,
    significant,
    size,
    sqnr,
    times,
)
from stillhouse.accelerate.views.image_strips import GAIN, Strip, strips
from stillhouse.accelerate.views.rows import Row, components, marked, rows
from stillhouse.accelerate.views.summary import headline, price, story, subject
from stillhouse.accelerate.views.tradeoff_plot import Plot, plot
from stillhouse.accelerate.views.whisker import Whisker, whiskers
from stillhouse.html.environment import environment
from stillhouse.images.png import write_file

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that stands by itself: what it is, how much, and in which light."""

    name: str
    figure: str
    beside: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, what it means, its cells, and whether these are words."""

    heading: str
    meaning: str
    cell: Callable[[Row], str]
    words: bool = False


@dataclass(frozen=True, slots=True)
class Section:
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
    base: Row | None
    chosen: Row | None
    probed: str
    ran: tuple[Row, ...]
    columns: tuple[Column, ...]
    whiskers: tuple[Whisker | None, ...]
    lost: tuple[Row, ...]
    plot: Plot | None
    strips: tuple[Strip, ...]
    probes: tuple[str, ...]
    batches: tuple[str, ...]


def write_html(report: Report, path: Path) -> None:
    """Write the page. Pictures are looked for beside it, where the report's own paths lead.

    Raises:
        InvalidRequest: it cannot be written there.
        RuntimeMissing: jinja2 is not installed.
    """
    write_file(path, page(report, path.parent).encode())


def page(report: Report, directory: Path) -> str:
    """The page as text.

    Args:
        report: what it tells.
        directory: what the paths of pictures are relative to.

    Raises:
        RuntimeMissing: jinja2 is not installed.
    """
    names = sorted(components(report), key=lambda name: name != PIPELINE)
    text: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headline=headline(report),
            story=story(report),
            tiles=_tiles(report),
            promises=promises(report.bounds),
            sections=[_section(report, name, directory) for name in names],
            statuses=_statuses(report),
            gain=GAIN,
            frame=axes,
        )
    )
    return text


def _environment() -> Any:
    made = environment(TEMPLATES)
    made.filters |= {
        "duration": duration,
        "joined": _joined,
        "plain": plain,
        "size": size,
        "sqnr": sqnr,
        "ms": lambda seconds: significant(1000 * seconds),
    }
    return made


def _section(report: Report, component: str, directory: Path) -> Section:
    found = rows(report, component)
    ran = tuple(row for row in found if row.accepted or row.trial.seconds or row.trial.fidelity or row.trial.pictures)
    base, chosen = marked(report, component)
    probes = dict.fromkeys(probe for row in ran for probe in row.trial.fidelity)
    batches = {count for row in ran for count in row.trial.batch}
    return Section(
        component=plain(component),
        title="Whole pictures, end to end" if component == PIPELINE else plain(component),
        base=base,
        chosen=chosen,
        probed=plain(report.probes.get(component, "")),
        ran=ran,
        columns=tuple(column for column in _columns(report) if any(column.cell(row) for row in ran)),
        whiskers=whiskers(ran),
        lost=tuple(row for row in found if not row.accepted),
        plot=plot(found, report.bounds),
        strips=strips(found, directory),
        probes=tuple(probes) if len(probes) > 1 else (),
        batches=tuple(sorted(batches, key=lambda count: (len(count), count))) if len(batches) > 1 else (),
    )


def _columns(report: Report) -> tuple[Column, ...]:
    paid = partial(_price, report)
    return (
        Column("Runs in", "precision of the heavy layers, as read back from the runtime", _executed, words=True),
        Column("p50, ms", "median time of one call", lambda row: _milliseconds(row.trial, "median")),
        Column("p95, ms", "time that 95 of 100 calls stay below", lambda row: _milliseconds(row.trial, "p95")),
        Column("SQNR, dB", "of outputs, worst probe", lambda row: "" if row.sqnr is None else sqnr(row.sqnr)),
        Column("PSNR, dB", "of pictures, mean", lambda row: "" if row.psnr is None else psnr(row.psnr)),
        Column("SSIM", "of pictures, mean", lambda row: f"{row.trial.pictures.ssim:.3f}" if row.trial.pictures else ""),
        Column("Score", "pictures that show all that was asked", _score),
        Column("Peak memory", "of the process that ran it", lambda row: _size(row.trial.peak_bytes)),
        Column("On disk", "all files that are needed to run it", lambda row: _size(row.trial.file_bytes)),
        Column("Build", "to make the artefact", lambda row: _seconds(row.trial.build_seconds)),
        Column("Open", "to load and compile it", lambda row: _seconds(row.trial.open_seconds)),
        Column(f"{plain(report.currency)} per 1,000", "at the price that was told", paid),
    )


def _tiles(report: Report) -> tuple[Tile, ...]:
    whole = subject(report)
    base, chosen = marked(report, whole) if whole else (None, None)
    if chosen is None:
        return ()
    old, new = base.trial if base else None, chosen.trial
    pictures, worst = new.pictures, new.worst
    spread = f"95 % interval {interval(new.ratio)}" if new.ratio else ""
    one = "One picture" if whole == PIPELINE else "One call"

    def instead(before: str | None) -> str:
        return f"instead of {before}" if before else ""

    tiles = (
        Tile("Speed-up", times(chosen.speed) if chosen.speed else "", spread),
        Tile(
            one,
            duration(new.seconds.median) if new.seconds else "",
            instead(duration(old.seconds.median) if old and old.seconds else None),
        ),
        Tile(
            f"Price of 1,000, {plain(report.currency)}",
            _price(report, chosen),
            instead(_price(report, base) if base else None),
        ),
        Tile(
            "Score",
            share(pictures.score) if pictures and pictures.score is not None else "",
            f"baseline {share(pictures.baseline_score)}" if pictures and pictures.baseline_score is not None else "",
        ),
        Tile("PSNR", _decibels(psnr(pictures.psnr)) if pictures else "", "of same-seed pictures"),
        Tile("SQNR", _decibels(sqnr(worst.sqnr)) if worst and not pictures else "", "of outputs, worst probe"),
        Tile("Peak memory", _size(new.peak_bytes), instead(_size(old.peak_bytes) if old else None)),
    )
    return tuple(tile for tile in tiles if tile.figure)


def _statuses(report: Report) -> dict[str, int]:
    found = [trial.status for trial in report.trials]
    return {status: found.count(status) for status in ("accepted", "rejected", "failed", "excluded", "skipped")}


def _joined(words: str) -> str:
    """Figures stay on the line of their units."""
    return re.sub(r"(?<=\d) (?=(%|ms|s|dB|[KMG]iB)(\W|$))", "\N{NO-BREAK SPACE}", words)


def _executed(row: Row) -> str:
    census = row.trial.census
    told = ", ".join(f"{count} {precision}" for precision, count in census.items()) if len(census) > 1 else ""
    return "\n".join(plain(part) for part in (row.trial.executed or "", told) if part)


def _score(row: Row) -> str:
    pictures = row.trial.pictures
    return "" if pictures is None or pictures.score is None else f"{share(pictures.score)} of {pictures.count}"


def _price(report: Report, row: Row) -> str:
    paid = price(report, row.trial.seconds.median) if row.trial.seconds else None
    return "" if paid is None else significant(paid)


def _milliseconds(trial: Trial, which: str) -> str:
    return "" if trial.seconds is None else significant(1000 * getattr(trial.seconds, which))


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _size(count: int | None) -> str:
    return size(count) if count else ""


def _decibels(told: str) -> str:
    return told if told in ("equal", "none") else f"{told} dB"
