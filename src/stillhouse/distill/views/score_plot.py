"""Where the marks of a plot stand: what a picture costs to the right, how good it is upwards."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.distill.evaluation.comparison import EvaluationResult
from stillhouse.distill.evaluation.evaluation_report import EvaluationReport

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 548, 26, 288
"""The drawing, and the frame of the marks in it."""
_X_TICKS = tuple(base * 10.0**power for power in range(-4, 5) for base in (1, 2, 5))
_Y_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)

AxisTick = tuple[float, str]


@dataclass(frozen=True, slots=True)
class ScoreMark:
    """A way in the plot: a place, the ends of its interval upwards, whose it is, and what is told of it."""

    x: float
    y: float
    low: float
    high: float
    kind: str
    name: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class ScorePlot:
    """Cost against quality.

    Args:
        title: what is to the right.
        measure: what is upwards.
        costs, qualities: ticks with their labels.
        marks: of every way.
        students: points of an SVG polyline through teacher and students.
    """

    x_title: str
    y_title: str
    x_ticks: tuple[AxisTick, ...]
    y_ticks: tuple[AxisTick, ...]
    marks: tuple[ScoreMark, ...]
    student_line: str


def score_plots(report: EvaluationReport) -> tuple[ScorePlot, ...]:
    """By evaluations and by seconds; quality is the strict score, or agreement with the teacher where there is none."""
    return (
        _score_plot(
            report, "evaluations of the network for a picture", lambda one: float(one.rows), lambda x: f"{x:g}"
        ),
        _score_plot(report, "milliseconds for a picture", lambda one: 1000 * one.alone.median, lambda x: f"{x:g}"),
    )


def _score_plot(
    report: EvaluationReport, title: str, cost: Callable[[EvaluationResult], float], label: Callable[[float], str]
) -> ScorePlot:
    scored = bool(report.standings[0].scores)
    shown = report.standings if scored else report.standings[1:]
    ends = {one.name: _quality(one, scored) for one in shown}
    across, costs = _x_axis([cost(one) for one in shown], label)
    up, qualities = _y_axis([end for value in ends.values() for end in value], scored)

    def mark(one: EvaluationResult) -> ScoreMark:
        value, low, high = ends[one.name]
        kind = "teacher" if one is report.standings[0] else "student" if one.name in report.students else "hurried"
        told = f"{one.name}: {one.rows} evaluations, {1000 * one.alone.median:.1f} ms, {_format_quality(value, scored)}"
        return ScoreMark(across(cost(one)), up(value), up(low), up(high), kind, one.name, told)

    marks = tuple(map(mark, shown))
    chain = sorted((one for one in marks if one.kind != "hurried"), key=lambda one: one.x)
    return ScorePlot(
        x_title=title,
        y_title="clean and all correct" if scored else "PSNR to the teacher's pictures",
        x_ticks=costs,
        y_ticks=qualities,
        marks=marks,
        student_line=" ".join(f"{one.x:.1f},{one.y:.1f}" for one in chain),
    )


def _quality(result: EvaluationResult, scored: bool) -> tuple[float, float, float]:
    if not scored:
        return result.psnr, result.psnr, result.psnr
    share = result.scores["strict"]
    return share.value, share.low, share.high


def _format_quality(value: float, scored: bool) -> str:
    return f"{100 * value:.1f} %" if scored else f"{value:.1f} dB"


def _x_axis(
    values: Sequence[float], label: Callable[[float], str]
) -> tuple[Callable[[float], float], tuple[AxisTick, ...]]:
    low, high = math.log(min(values)), math.log(max(values))
    slack = max(0.08 * (high - low), 0.2)
    low, high = low - slack, high + slack

    def across(value: float) -> float:
        return LEFT + (math.log(value) - low) / (high - low) * (RIGHT - LEFT)

    ticks: list[AxisTick] = []
    for cost in _X_TICKS:
        x = across(cost)
        if LEFT <= x <= RIGHT and (not ticks or x - ticks[-1][0] > 30):
            ticks.append((x, label(cost)))
    return across, tuple(ticks)


def _y_axis(values: Sequence[float], scored: bool) -> tuple[Callable[[float], float], tuple[AxisTick, ...]]:
    low, high = min(values), max(values)
    step = next((step for step in _Y_STEPS if (high - low) / step <= 6), _Y_STEPS[-1])
    low, high = step * math.floor(low / step), step * max(math.ceil(high / step), math.floor(low / step) + 1)

    def up(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    levels = [low + step * number for number in range(round((high - low) / step) + 1)]
    return up, tuple((up(level), f"{100 * level:.0f} %" if scored else f"{level:g} dB") for level in levels)
