"""Compute the SVG coordinates of plots that show picture quality against cost (denoiser rows, latency)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.distill.evaluation.comparison import EvaluationResult
from stillhouse.distill.evaluation.evaluation_report import EvaluationReport

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 548, 26, 288
"""x coordinates of the left and right edge, and y coordinates of the top and bottom edge, of the plot area in the SVG.

`WIDTH` and `HEIGHT` are the size of the whole SVG."""
_X_TICKS = tuple(base * 10.0**power for power in range(-4, 5) for base in (1, 2, 5))
_Y_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)

AxisTick = tuple[float, str]
"""SVG coordinate and label of a tick on an axis."""


@dataclass(frozen=True, slots=True)
class ScoreMark:
    """Point and error bar in a plot for one setup (pipeline with steps, sampler and guidance).

    Args:
        x, y: SVG coordinates of the point: cost and quality.
        low, high: SVG y coordinates of the lower and upper end of the quality's 95 % interval.
        kind: "teacher", "student" or "baseline" (the teacher at few steps).
        name: name of the setup.
        tooltip: text with the setup's measurements.
    """

    x: float
    y: float
    low: float
    high: float
    kind: str
    name: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class ScorePlot:
    """A plot of picture quality (y axis) against cost (x axis), in SVG coordinates.

    Args:
        x_title, y_title: titles of the axes.
        x_ticks, y_ticks: ticks of the axes.
        marks: one point for each setup (pipeline with steps, sampler and guidance).
        student_line: points of an SVG polyline through teacher and students: "x,y x,y ...".
    """

    x_title: str
    y_title: str
    x_ticks: tuple[AxisTick, ...]
    y_ticks: tuple[AxisTick, ...]
    marks: tuple[ScoreMark, ...]
    student_line: str


def score_plots(report: EvaluationReport) -> tuple[ScorePlot, ...]:
    """Return two plots of picture quality: against the denoiser rows of a picture, and against its latency.

    Quality is the strict score (share of pictures that show the caption exactly), or where the report has no scores,
    the PSNR to the teacher's pictures.
    """
    return (
        _score_plot(report, "denoiser rows of a picture", lambda result: float(result.denoiser_rows)),
        _score_plot(report, "latency of a picture in ms", lambda result: 1000 * result.latency.median),
    )


def _score_plot(report: EvaluationReport, title: str, cost: Callable[[EvaluationResult], float]) -> ScorePlot:
    scored = bool(report.results[0].scores)
    results = report.results if scored else report.results[1:]
    qualities = {result.name: _quality(result, scored) for result in results}
    to_x, x_ticks = _x_axis([cost(result) for result in results])
    to_y, y_ticks = _y_axis([value for interval in qualities.values() for value in interval], scored)

    def mark(result: EvaluationResult) -> ScoreMark:
        value, low, high = qualities[result.name]
        is_student = result.name in report.students
        kind = "teacher" if result is report.results[0] else "student" if is_student else "baseline"
        figures = f"{result.denoiser_rows} denoiser rows, {1000 * result.latency.median:.1f} ms"
        tooltip = f"{result.name}: {figures}, {_format_quality(value, scored)}"
        return ScoreMark(to_x(cost(result)), to_y(value), to_y(low), to_y(high), kind, result.name, tooltip)

    marks = tuple(map(mark, results))
    line = sorted((mark for mark in marks if mark.kind != "baseline"), key=lambda mark: mark.x)
    return ScorePlot(
        x_title=title,
        y_title="strict score" if scored else "PSNR to the teacher's pictures",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        marks=marks,
        student_line=" ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in line),
    )


def _quality(result: EvaluationResult, scored: bool) -> tuple[float, float, float]:
    """Return the quality of a setup, and the low and high end of its 95 % interval.

    Quality is the strict score, 0 to 1, if `scored`, else the PSNR in dB, which has no interval.
    """
    if not scored:
        return result.psnr, result.psnr, result.psnr
    share = result.scores["strict"]
    return share.value, share.low, share.high


def _format_quality(value: float, scored: bool) -> str:
    return f"{100 * value:.1f} %" if scored else f"{value:.1f} dB"


def _x_axis(values: Sequence[float]) -> tuple[Callable[[float], float], tuple[AxisTick, ...]]:
    """Return a function that maps costs to x coordinates on a logarithmic axis, and the ticks of this axis.

    Args:
        values: costs of all setups, above 0; the axis has a margin on both sides of them.
    """
    low, high = math.log(min(values)), math.log(max(values))
    margin = max(0.08 * (high - low), 0.2)
    low, high = low - margin, high + margin

    def to_x(value: float) -> float:
        return LEFT + (math.log(value) - low) / (high - low) * (RIGHT - LEFT)

    ticks: list[AxisTick] = []
    for cost in _X_TICKS:
        x = to_x(cost)
        if LEFT <= x <= RIGHT and (not ticks or x - ticks[-1][0] > 30):
            ticks.append((x, f"{cost:g}"))
    return to_x, tuple(ticks)


def _y_axis(values: Sequence[float], scored: bool) -> tuple[Callable[[float], float], tuple[AxisTick, ...]]:
    """Return a function that maps qualities to y coordinates on a linear axis, and the ticks of this axis.

    Args:
        values: qualities of all setups with the ends of their intervals; the axis contains them all.
        scored: True: qualities are shares, labelled in per cent; False: decibels.
    """
    low, high = min(values), max(values)
    step = next((step for step in _Y_STEPS if (high - low) / step <= 6), _Y_STEPS[-1])
    low, high = step * math.floor(low / step), step * max(math.ceil(high / step), math.floor(low / step) + 1)

    def to_y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    levels = [low + step * number for number in range(round((high - low) / step) + 1)]
    return to_y, tuple((to_y(level), f"{100 * level:.0f} %" if scored else f"{level:g} dB") for level in levels)
