"""The HTML page of an evaluation report: self-contained, complete and escaped."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from msgspec import convert

from stillhouse.distill.evaluation.comparison import EvaluationResult, ScoreDelta
from stillhouse.distill.evaluation.evaluation_report import (
    LEGEND,
    EvaluationReport,
    evaluation_columns,
    evaluation_rows,
    evaluation_to_json,
    summarize_evaluation,
)
from stillhouse.distill.views.evaluation_page import render_evaluation_page
from stillhouse.distill.views.score_plot import BOTTOM, LEFT, RIGHT, TOP, score_plots
from stillhouse.measure.clock import Timing
from stillhouse.measure.machine import read_machine
from stillhouse.shapes.score import Share

HOSTILE = "<script>alert('\"x\"')</script>"


def make_result(name: str, rows: int, seconds: float, strict: float, delta: float) -> EvaluationResult:
    names = ("all_correct", "strict", "clean")
    scores = {score: Share(strict, strict - 0.03, strict + 0.03) for score in names}
    deltas = {score: ScoreDelta(delta, delta - 0.02, delta + 0.02) for score in names}
    timing = Timing(seconds, seconds, seconds, 7)
    return EvaluationResult(name, rows, "ddim", 3.0, rows, timing, scores, deltas, 20.0, 25.0, 0.9, 1.5, 0.8, 0.7, 0.95)


@pytest.fixture
def report() -> EvaluationReport:
    results = (
        make_result("teacher, 35 steps", 70, 0.5, 0.41, 0.0),
        make_result("small", 3, 0.05, 0.4, -0.01),
        make_result("ddim 3 unguided", 3, 0.05, 0.1, -0.31),
    )
    return EvaluationReport(
        "shapes", ("small",), 1000, results, "ab" * 32, read_machine(), {"numpy": "2"}, "2026-01-01T00:00", 60.0
    )


def pictures(report: EvaluationReport) -> dict[str, list[np.ndarray]]:
    return {result.name: [np.full((64, 64, 3), 9, np.uint8)] * 2 for result in report.results}


def test_the_page_is_self_contained_and_complete(report: EvaluationReport) -> None:
    text = render_evaluation_page(report, ["a red circle", "a blue square"], pictures(report))
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "<script" not in text
    for row in evaluation_rows(report):
        assert all(cell in text for cell in row)
    assert text.count("<img ") == 6 and summarize_evaluation(report) in text and "abababababababab" in text


def test_every_score_has_its_interval_and_its_delta_to_the_teacher(report: EvaluationReport) -> None:
    cells = dict(zip(enumerate(evaluation_columns(report)), evaluation_rows(report)[1], strict=True))
    by_heading = {
        heading: [cell for (_, name), cell in cells.items() if name == heading]
        for heading in evaluation_columns(report)
    }
    assert by_heading["all correct"] == by_heading["strict"] == ["40.0 % (37.0 to 43.0)"]
    assert by_heading["delta to the teacher"] == ["-1.0 (-3.0 to +1.0)"] * 2
    assert by_heading["SSIM"] == ["0.900"] and by_heading["PSNR"] == ["25.0 dB"]
    assert [cell for cell in evaluation_rows(report)[0] if cell == ""] == [""] * 4, (
        "the teacher is not compared with itself"
    )
    assert LEGEND in render_evaluation_page(report, ["a circle", "a square"], pictures(report))


def test_names_and_prompts_are_escaped(report: EvaluationReport) -> None:
    named = replace(report, teacher=HOSTILE, students=(HOSTILE,))
    named = replace(named, results=(report.results[0], replace(report.results[1], name=HOSTILE)))
    text = render_evaluation_page(
        named, [HOSTILE], {result.name: [np.zeros((8, 8, 3), np.uint8)] for result in named.results}
    )
    assert "<script" not in text and "&lt;script" in text


def test_marks_are_in_the_plot_area_and_cheaper_is_further_left(report: EvaluationReport) -> None:
    for plot in score_plots(report):
        for mark in plot.marks:
            assert LEFT <= mark.x <= RIGHT and TOP <= mark.high <= mark.y <= mark.low <= BOTTOM
        teacher, student, baseline = plot.marks
        assert student.x < teacher.x and baseline.y > student.y > teacher.y
        assert [mark.kind for mark in plot.marks] == ["teacher", "student", "baseline"]


def test_without_scores_the_plots_show_psnr_to_the_teacher(report: EvaluationReport) -> None:
    unscored = tuple(replace(result, scores={}, deltas={}, rerender=None) for result in report.results)
    plain = replace(report, results=unscored)
    assert "all correct" not in evaluation_columns(plain) and all(
        len(row) == len(evaluation_columns(plain)) for row in evaluation_rows(plain)
    )
    assert "25.0 dB PSNR to pictures of the teacher" in summarize_evaluation(plain)
    assert [mark.name for mark in score_plots(plain)[0].marks] == ["small", "ddim 3 unguided"]
    assert "PSNR to the teacher" in render_evaluation_page(plain, ["x"], {result.name: [] for result in unscored})


def test_the_summary_has_the_delta_with_its_interval(report: EvaluationReport) -> None:
    assert summarize_evaluation(report) == (
        "small: 3 steps instead of 70 guided ones, 10.0 times as fast as its teacher; "
        "strict score -1.0 points (-3.0 to +1.0) relative to the teacher."
    )


def test_the_json_document_has_every_field(report: EvaluationReport) -> None:
    assert convert(json.loads(evaluation_to_json(report)), EvaluationReport, strict=False) == report
