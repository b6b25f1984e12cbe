"""Where the marks of a plot stand: what a picture costs to the right, how good it is upwards."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.distill.evaluation.comparison import Standing
from stillhouse.distill.evaluation.evaluation_report import Verdict

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 548, 26, 288
"""The drawing, and the frame of the marks in it."""
_COSTS = tuple(base * 10.0**power for power in range(-4, 5) for base in (1, 2, 5))
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)

Tick = tuple[float, str]


@dataclass(frozen=True, slots=True)
class Mark:
    """A way in the plot: a place, the ends of its interval upwards, whose it is, and what is told of it."""

    x: float
    y: float
    low: float
    high: float
    kind: str
    name: str
    told: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Cost against quality.

    Args:
        title: what is to the right.
        measure: what is upwards.
        costs, qualities: ticks with their labels.
        marks: of every way.
        students: points of an SVG polyline through teacher and students.
    """

    title: str
    measure: str
    costs: tuple[Tick, ...]
    qualities: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    students: str


def plots(verdict: Verdict) -> tuple[Plot, ...]:
    """By evaluations and by seconds; quality is the strict score, or agreement with the teacher where there is none."""
    return (
        _plot(verdict, "evaluations of the network for a picture", lambda one: float(one.rows), lambda x: f"{x:g}"),
        _plot(verdict, "milliseconds for a picture", lambda one: 1000 * one.alone.median, lambda x: f"{x:g}"),
    )


def _plot(verdict: Verdict, title: str, cost: Callable[[Standing], float], label: Callable[[float], str]) -> Plot:
    scored = bool(verdict.standings[0].scores)
    shown = verdict.standings if scored else verdict.standings[1:]
    ends = {one.name: _quality(one, scored) for one in shown}
    across, costs = _across([cost(one) for one in shown], label)
    up, qualities = _up([end for value in ends.values() for end in value], scored)

    def mark(one: Standing) -> Mark:
        value, low, high = ends[one.name]
        kind = "teacher" if one is verdict.standings[0] else "student" if one.name in verdict.students else "hurried"
        told = f"{one.name}: {one.rows} evaluations, {1000 * one.alone.median:.1f} ms, {_told(value, scored)}"
        return Mark(across(cost(one)), up(value), up(low), up(high), kind, one.name, told)

    marks = tuple(map(mark, shown))
    chain = sorted((one for one in marks if one.kind != "hurried"), key=lambda one: one.x)
    return Plot(
        title=title,
        measure="clean and all correct" if scored else "PSNR to the teacher's pictures",
        costs=costs,
        qualities=qualities,
        marks=marks,
        students=" ".join(f"{one.x:.1f},{one.y:.1f}" for one in chain),
    )


def _quality(one: Standing, scored: bool) -> tuple[float, float, float]:
    if not scored:
        return one.psnr, one.psnr, one.psnr
    share = one.scores["strict"]
    return share.value, share.low, share.high


def _told(value: float, scored: bool) -> str:
    return f"{100 * value:.1f} %" if scored else f"{value:.1f} dB"


def _across(
    values: Sequence[float], label: Callable[[float], str]
) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    low, high = math.log(min(values)), math.log(max(values))
    slack = max(0.08 * (high - low), 0.2)
    low, high = low - slack, high + slack

    def across(value: float) -> float:
        return LEFT + (math.log(value) - low) / (high - low) * (RIGHT - LEFT)

    ticks: list[Tick] = []
    for cost in _COSTS:
        x = across(cost)
        if LEFT <= x <= RIGHT and (not ticks or x - ticks[-1][0] > 30):
            ticks.append((x, label(cost)))
    return across, tuple(ticks)


def _up(values: Sequence[float], scored: bool) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    low, high = min(values), max(values)
    step = next((step for step in _STEPS if (high - low) / step <= 6), _STEPS[-1])
    low, high = step * math.floor(low / step), step * max(math.ceil(high / step), math.floor(low / step) + 1)

    def up(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    levels = [low + step * number for number in range(round((high - low) / step) + 1)]
    return up, tuple((up(level), f"{100 * level:.0f} %" if scored else f"{level:g} dB") for level in levels)
