"""Durations: the seconds of each file are recorded, and the longest file runs first."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.durations import DurationRecorder, sort_by_duration


@dataclass
class Named:
    """A test or a report of one, as far as the plugin reads it."""

    nodeid: str
    duration: float = 0.0


def test_seconds_of_a_file_are_added_up(tmp_path: Path) -> None:
    recorder = DurationRecorder(tmp_path / "durations.json")
    reports: list[Any] = [Named("a.py::one", 1.0), Named("b.py::x[a::b]", 4.0), Named("a.py::two", 2.0)]
    for report in reports:
        recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish(0)
    assert json.loads((tmp_path / "durations.json").read_text()) == {"b.py": 4.0, "a.py": 3.0}


def test_a_process_without_reports_writes_nothing(tmp_path: Path) -> None:
    DurationRecorder(tmp_path / "durations.json").pytest_sessionfinish(0)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_session_writes_nothing(tmp_path: Path) -> None:
    recorder = DurationRecorder(tmp_path / "durations.json")
    report: Any = Named("a.py::one", 1.0)
    recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
    assert not list(tmp_path.iterdir())


def test_the_longest_file_is_first_and_files_keep_their_order() -> None:
    items: list[Any] = [Named(f"{file}.py::{test}") for file in "abc" for test in "yx"]
    sort_by_duration(items, {"a.py": 1.0, "b.py": 2.0})
    assert [item.nodeid for item in items] == [f"{file}.py::{test}" for file in "cba" for test in "yx"]
