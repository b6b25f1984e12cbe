"""No sentence of the console, the page or the spreadsheet claims a gain that its numbers do not show."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl import load_workbook

from stillhouse.accelerate.records.candidate import NETWORK, PIPELINE, Candidate
from stillhouse.accelerate.records.report import GOALS, Bounds, Report
from stillhouse.accelerate.records.trial import PictureFidelity, Status, Trial
from stillhouse.accelerate.selection.choose import choose_trials
from stillhouse.accelerate.selection.gain import beats_baseline
from stillhouse.accelerate.views.console import format_report
from stillhouse.accelerate.views.report_page import render_report
from stillhouse.accelerate.views.rows import report_components, report_rows
from stillhouse.accelerate.views.summary import summarise_report
from stillhouse.accelerate.views.xlsx import write_spreadsheet
from stillhouse.measure.clock import Ratio, Timing
from tests.accelerate.trials import make_report, make_trial

STATUSES: tuple[Status, ...] = ("accepted", "accepted", "rejected", "failed", "excluded", "skipped")
SECONDS = st.floats(1e-4, 300)
FACTORS = st.floats(0.2, 9)
NUMBER = r"([\d.,]+(?:e-?\d+)?)"
INTERVAL = rf"\(95 % interval {NUMBER} to {NUMBER}\)"
UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
ROUNDING = 1.02
"""Factor by which two printed numbers of three digits may differ from exact ones."""


def timings(seconds: float) -> Timing:
    return Timing(seconds, 1.1 * seconds, 0.9 * seconds, 9)


@st.composite
def trials(draw: st.DrawFn, candidate: Candidate, status: Status | None = None) -> Trial:
    """A trial of any times, intervals, memory and batches, which need not agree with each other."""
    pictures = PictureFidelity(192, draw(st.floats(5, 99)), 5.0, 0.9, score=0.9, baseline_score=0.93)
    verdict = draw(st.sampled_from(STATUSES)) if status is None else status
    trial = make_trial(
        "",
        sqnr=draw(st.floats(-10, 999)),
        status=verdict,
        candidate=candidate,
        reason="" if verdict == "accepted" else "it is 3 times as wrong",
        seconds=timings(draw(SECONDS)),
        baseline_seconds=draw(st.none() | SECONDS.map(timings)),
        ratio=Ratio(draw(FACTORS), draw(FACTORS), draw(FACTORS)),
        batch=draw(st.just({}) | st.dictionaries(st.sampled_from(["1", "4", "8", "16"]), SECONDS, max_size=3)),
        peak_bytes=draw(st.none() | st.integers(1 << 18, 1 << 34)),
        pictures=pictures if candidate.component == PIPELINE else None,
    )
    is_timed = verdict in ("accepted", "rejected") and draw(st.integers(0, 9)) > 0
    return trial if is_timed else replace(trial, ratio=None, seconds=None, baseline_seconds=None)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """A report of one or two networks, and perhaps whole pictures; what is chosen is right, any, or nothing."""
    components = draw(st.sampled_from([(NETWORK,), ("denoiser",), ("denoiser", "decoder"), ("denoiser", PIPELINE)]))
    measured: list[Trial] = []
    baselines: dict[str, str] = {}
    for component in components:
        recipes = ("baseline", "sampling") if component == PIPELINE else ("f32", "f32")
        reference = Candidate(component, "onnxruntime", recipes[0])
        if is_run := draw(st.integers(0, 5)) > 0:
            baselines[component] = reference.key
        measured.append(draw(trials(reference, None if draw(st.booleans()) else "accepted" if is_run else "failed")))
        others = [Candidate(component, "openvino", recipes[1], options={"n": str(index)}) for index in range(3)]
        measured += [draw(trials(candidate)) for candidate in others[: draw(st.integers(0, 3))]]
    report = make_report(
        *measured,
        goal=draw(st.sampled_from(GOALS)),
        baselines=baselines,
        bounds=Bounds(max_memory=draw(st.none() | st.integers(1 << 20, 1 << 34))),
        price=draw(st.none() | st.floats(0.01, 100)),
        finished=draw(st.booleans()),
        warnings=draw(st.sampled_from([(), ("the inputs are made up",)])),
    )
    if draw(st.booleans()):
        return choose_trials(report, report.goal, report.bounds)
    keys = {name: draw(st.sampled_from([t.candidate.key for t in report.trials_of(name)])) for name in components}
    return replace(report, chosen={name: key for name, key in keys.items() if draw(st.booleans())})


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("."))


def quantity(text: str) -> float:
    """Return a printed time in seconds, or a printed size in bytes."""
    parts = re.findall(rf"{NUMBER} (ms|s|min|h|B|KiB|MiB|GiB)\b", text)
    return sum(number(value) * UNITS[unit] for value, unit in parts)


def check_claims(text: str, report: Report) -> None:
    """Check every claim of a text by the numbers beside it."""
    text = " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())
    assert not ("Nothing was chosen" in text and "Chosen for" in text)
    assert not ("The baseline stays" in text and "Chosen for" in text and PIPELINE in report.chosen)
    for value, low, high in re.findall(rf"{NUMBER} times [^.()]*{INTERVAL}", text):
        assert number(low) <= number(value) <= number(high)
    for words in re.findall(rf"times (?:as fast|as many[^.()]*) {INTERVAL}", text):
        assert number(words[0]) >= 1
    gains = re.findall(rf"takes ([^:.]*?\S+ \w+) instead of ([^:]*?): {NUMBER} times as fast {INTERVAL}", text)
    for after, before, _, low, high in gains:
        assert number(low) / ROUNDING <= quantity(before) / quantity(after) <= number(high) * ROUNDING
    for after, before in re.findall(r"takes ([\d.,]+ \w+) of memory instead of ([\d.,]+ \w+)", text):
        assert quantity(after) < quantity(before)


def summary_texts(report: Report) -> str:
    summary = summarise_report(report)
    tiles = " ".join(f"{tile.value} {tile.label} {tile.note}." for tile in summary.tiles)
    return " ".join([summary.headline, summary.price, *summary.sentences, tiles])


@given(reports())
@settings(max_examples=150, deadline=None)
def test_a_gain_is_claimed_only_where_the_lower_end_of_its_interval_is_above_one(report: Report) -> None:
    summary, text = summarise_report(report), summary_texts(report)
    check_claims(text, report)
    if summary.gain is not None:
        assert summary.outcome == "gain" and 1 < summary.gain.low <= summary.gain.value <= summary.gain.high
        assert summary.chosen and not summary.chosen.baseline and summary.tiles
    else:
        assert summary.outcome != "gain"
        assert not re.search(r"times as (fast|many)|instead of|x as fast|less memory", text)
    if "MiB less than the baseline" in text:
        assert summary.chosen and summary.baseline
        assert (summary.chosen.trial.peak_bytes or 0) < (summary.baseline.trial.peak_bytes or 0)
    if "no accepted candidate is better" in summary.headline and summary.baseline:
        others = [trial for trial in report.trials_of(summary.component or "") if trial is not summary.baseline.trial]
        others = [trial for trial in others if trial.status == "accepted"]
        assert not any(beats_baseline(trial, summary.baseline.trial, report.goal) for trial in others)
    if summary.outcome in ("nothing", "baseline"):
        assert not summary.tiles and not summary.price and "Chosen for" not in text


@given(reports())
@settings(max_examples=150, deadline=None)
def test_every_interval_contains_its_value(report: Report) -> None:
    for component in report_components(report):
        for row in report_rows(report, component):
            assert row.interval is None or row.interval.low <= row.interval.value <= row.interval.high
            assert row.interval is None or row.speed == row.interval.value
            assert not row.baseline or row.speed == 1


@given(reports())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_console_page_and_spreadsheet_say_the_same(tmp_path: Path, report: Report) -> None:
    summary = summarise_report(report)
    write_spreadsheet(report, tmp_path / "summary.xlsx")
    book = load_workbook(tmp_path / "summary.xlsx")
    facts = {name: value for name, value, *_ in book["environment"].iter_rows(values_only=True)}
    assert facts["result"] == summary.headline
    console = format_report(report, 4000)
    page = re.sub(r"<[^>]+>", " ", render_report(report, tmp_path).partition("<main>")[2].partition("<section")[0])
    page = " ".join(page.replace("&#39;", "'").replace("\N{NO-BREAK SPACE}", " ").split())
    for sentence in (summary.headline, summary.price, *summary.sentences, *summary.warnings):
        assert sentence in console and sentence in page
    sheet = " ".join(
        str(value) for sheet in book for row in sheet.iter_rows(values_only=True) for value in row if value
    )
    for text in (console, page, sheet):
        check_claims(text, report)
    heads, *rows = book["Sheet1"].iter_rows(values_only=True)
    for row in rows:
        low, value, high = (cast(Any, row[heads.index(name)]) for name in ("speed-up low", "speed-up", "speed-up high"))
        assert value is None or low <= value <= high
