"""The page of a verdict: one file, nothing from elsewhere, every figure of the table in it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.distill.evaluation.comparison import EvaluationResult, ScoreDelta
from stillhouse.distill.evaluation.evaluation_report import (
    LEGEND,
    EvaluationReport,
    evaluation_columns,
    evaluation_rows,
    evaluation_to_json,
    read_evaluation,
    summarize_evaluation,
)
from stillhouse.distill.views.evaluation_page import render_evaluation_page
from stillhouse.distill.views.score_plot import BOTTOM, LEFT, RIGHT, TOP, score_plots
from stillhouse.errors import InvalidRequest
from stillhouse.measure.clock import Timing
from stillhouse.measure.machine import read_machine
from stillhouse.shapes.score import Share

HOSTILE = "<script>alert('\"x\"')</script>"


def make_result(name: str, rows_: int, seconds: float, strict: float, gap: float) -> EvaluationResult:
    scores = {one: Share(strict, strict - 0.03, strict + 0.03) for one in ("all_correct", "strict", "clean")}
    gaps = {one: ScoreDelta(gap, gap - 0.02, gap + 0.02) for one in ("all_correct", "strict", "clean")}
    timing = Timing(seconds, seconds, seconds, 7)
    return EvaluationResult(name, rows_, "ddim", 3.0, rows_, timing, scores, gaps, 20.0, 25.0, 0.9, 1.5, 0.8, 0.7, 0.95)


@pytest.fixture
def verdict() -> EvaluationReport:
    standings = (
        make_result("teacher, 35 steps", 70, 0.5, 0.41, 0.0),
        make_result("small", 3, 0.05, 0.4, -0.01),
        make_result("ddim 3 unguided", 3, 0.05, 0.1, -0.31),
    )
    return EvaluationReport(
        "shapes", ("small",), 1000, standings, "ab" * 32, read_machine(), {"numpy": "2"}, "2026-01-01T00:00", 60.0
    )


def pictures(verdict: EvaluationReport) -> dict[str, list[np.ndarray]]:
    return {one.name: [np.full((64, 64, 3), 9, np.uint8)] * 2 for one in verdict.standings}


def test_the_page_stands_alone_and_holds_every_figure(verdict: EvaluationReport) -> None:
    text = render_evaluation_page(verdict, ["a red circle", "a blue square"], pictures(verdict))
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "<script" not in text
    for row in evaluation_rows(verdict):
        assert all(cell in text for cell in row)
    assert text.count("<img ") == 6 and summarize_evaluation(verdict) in text and "abababababababab" in text


def test_every_score_stands_with_its_interval_and_its_distance_from_the_teacher(verdict: EvaluationReport) -> None:
    told = dict(zip(enumerate(evaluation_columns(verdict)), evaluation_rows(verdict)[1], strict=True))
    by = {
        heading: [cell for (_, name), cell in told.items() if name == heading]
        for heading in evaluation_columns(verdict)
    }
    assert by["all correct"] == by["strict"] == ["40.0 % (37.0 to 43.0)"]
    assert by["to the teacher"] == ["-1.0 (-3.0 to +1.0)"] * 2
    assert by["SSIM"] == ["0.900"] and by["PSNR"] == ["25.0 dB"]
    assert [cell for cell in evaluation_rows(verdict)[0] if cell == ""] == [""] * 4, (
        "the teacher is not compared with itself"
    )
    assert LEGEND in render_evaluation_page(verdict, ["a circle", "a square"], pictures(verdict))


def test_words_from_outside_stay_words(verdict: EvaluationReport) -> None:
    named = replace(verdict, teacher=HOSTILE, students=(HOSTILE,))
    named = replace(named, standings=(verdict.standings[0], replace(verdict.standings[1], name=HOSTILE)))
    text = render_evaluation_page(
        named, [HOSTILE], {one.name: [np.zeros((8, 8, 3), np.uint8)] for one in named.standings}
    )
    assert "<script" not in text and "&lt;script" in text


def test_marks_stand_in_the_frame_and_cheaper_is_further_left(verdict: EvaluationReport) -> None:
    for drawn in score_plots(verdict):
        for mark in drawn.marks:
            assert LEFT <= mark.x <= RIGHT and TOP <= mark.high <= mark.y <= mark.low <= BOTTOM
        teacher, student, hurried = drawn.marks
        assert student.x < teacher.x and hurried.y > student.y > teacher.y
        assert [mark.kind for mark in drawn.marks] == ["teacher", "student", "hurried"]


def test_without_an_oracle_agreement_with_the_teacher_is_drawn(verdict: EvaluationReport) -> None:
    silent = tuple(replace(one, scores={}, gaps={}, rerender=None) for one in verdict.standings)
    plain = replace(verdict, standings=silent)
    assert "all correct" not in evaluation_columns(plain) and all(
        len(row) == len(evaluation_columns(plain)) for row in evaluation_rows(plain)
    )
    assert "25.0 dB from its pictures" in summarize_evaluation(plain)
    assert [mark.name for mark in score_plots(plain)[0].marks] == ["small", "ddim 3 unguided"]
    assert "PSNR to the teacher" in render_evaluation_page(plain, ["x"], {one.name: [] for one in silent})


def test_the_sentence_tells_the_gap_with_its_interval(verdict: EvaluationReport) -> None:
    assert summarize_evaluation(verdict) == (
        "small: 3 steps instead of 70 guided ones, 10.0 times as quick as its teacher; "
        "clean and all correct -1.0 points (-3.0 to +1.0) against it."
    )


def test_a_verdict_is_read_back(verdict: EvaluationReport, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    file.write_text(evaluation_to_json(verdict))
    assert read_evaluation(file) == verdict
    file.write_text("{}")
    with pytest.raises(InvalidRequest, match="is no verdict"):
        read_evaluation(file)
