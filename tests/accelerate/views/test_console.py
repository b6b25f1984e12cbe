"""The report on terminals of any width."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from stillhouse.accelerate.views.console import format_report, print_report
from stillhouse.accelerate.views.summary import headline
from tests.accelerate.trials import make_report, make_trial
from tests.accelerate.views.sweeps import HOSTILE, network_report, pipeline_report


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [32, 40, 60, 80, 100, 120, 160, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(map(len, format_report(pipeline_report(), width).splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_candidate_that_was_not_accepted_has_its_reason(width: int) -> None:
    # Folding breaks long words anywhere, so whitespace is ignored.
    text = "".join(format_report(pipeline_report(), width).split())
    for trial in pipeline_report().trials:
        assert "".join(trial.reason.split()) in text
        assert width == 40 or trial.status in text


def test_rows_are_sorted_fastest_first_and_the_choice_is_marked() -> None:
    lines = format_report(network_report(), 200).splitlines()
    speeds = [float(word[:-1]) for line in lines for word in line.split() if word.endswith("x") and word[0].isdigit()]
    assert speeds[:11] == sorted(speeds[:11], reverse=True)
    marked = [line for line in lines if line.startswith(">")]
    assert len(marked) == 1 and "openvino f32, bf16, shapes static, streams 2" in marked[0]


def test_a_wide_terminal_shows_every_figure() -> None:
    line = next(line for line in format_report(pipeline_report(), 200).splitlines() if line.startswith(">"))
    assert line.split()[-11:] == [
        "accepted",
        "bf16",
        "19.8",
        "23.2",
        "4.85x",
        "4.51",
        "to",
        "5.14",
        "37.1",
        "480",
        "MiB",
    ]
    assert "columns not shown" not in format_report(pipeline_report(), 200)


def test_a_narrow_terminal_keeps_speed_and_says_what_it_leaves_out() -> None:
    text = format_report(network_report(), 60)
    assert "speed-up" in text and "p50 ms" in text
    missing = flat(text[text.index("columns not shown") :])
    assert missing.startswith("columns not shown: runs in, p95 ms, 95 % interval, SQNR dB, peak memory")


def test_networks_come_first_then_the_pipeline_then_what_was_chosen() -> None:
    text = format_report(pipeline_report(), 300)
    places = [
        text.index(word)
        for word in ("denoiser baseline", "decoder baseline", "end to end", headline(pipeline_report()))
    ]
    assert places == sorted(places)
    assert text.rstrip().endswith("the score falls by 6.2 points, more than 1.")


def test_the_code_that_uses_the_choice_comes_last_in_lines_that_can_be_copied(tmp_path: Path) -> None:
    sweep = replace(pipeline_report(), prompts=("a small red circle left of a big blue square",))
    last = format_report(sweep, 32, tmp_path).splitlines()[-1]
    assert last == "stillhouse generate --model . 'a small red circle left of a big blue square'"


def test_warnings_come_before_the_result() -> None:
    text = format_report(replace(pipeline_report(), warnings=("the inputs are made up",)), 200)
    assert text.index("Warning: the inputs are made up") < text.index(headline(pipeline_report()))


def test_brackets_and_formulas_of_strangers_are_words() -> None:
    text = format_report(pipeline_report(), 300)
    assert f"{HOSTILE} <script>alert(1)</script> [red]no[/red]" in text


def test_escape_sequences_of_strangers_do_not_reach_the_terminal() -> None:
    first, *rest = pipeline_report().trials
    evil = replace(first, status="failed", reason="\x1b[2J\x1b]0;title\x07 two\nlines")
    file = StringIO()
    sweep = replace(pipeline_report(), trials=(evil, *rest), source="\x1b[31m")
    print_report(sweep, Console(file=file, width=100, color_system=None))
    assert "\x1b" not in file.getvalue() and "\x07" not in file.getvalue()
    assert "[2J]0;title two lines" in file.getvalue()


def test_colours_only_where_there_are_some() -> None:
    file = StringIO()
    print_report(pipeline_report(), Console(file=file, width=100, force_terminal=True, color_system="standard"))
    assert "\x1b[32maccepted" in file.getvalue()
    assert "\x1b" not in format_report(pipeline_report())


def test_a_terminal_tells_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, format_report(pipeline_report()).splitlines())) <= 50


def test_a_terminal_that_knows_ascii_only_can_print_it() -> None:
    format_report(pipeline_report(), 80).encode("ascii")


def test_an_empty_report_is_told_too() -> None:
    assert format_report(replace(pipeline_report(), trials=(), baselines={}, chosen={}), 80).startswith(
        "Nothing was chosen."
    )


def test_candidates_of_one_reason_share_a_line() -> None:
    missing = [
        make_trial(name, status="excluded", reason="there is no GPU", ratio=None, seconds=None) for name in "abcd"
    ]
    text = format_report(make_report(make_trial("x"), *missing), width=120)
    assert text.count("there is no GPU") == 1
    assert "a f32; b f32 and 2 more: there is no GPU" in text
