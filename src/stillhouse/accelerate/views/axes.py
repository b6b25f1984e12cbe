"""Axes of the trade-off plot: scales from values to coordinates, and their ticks."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

WIDTH, HEIGHT = 1120, 460
LEFT, RIGHT, TOP, BOTTOM = 60, 1100, 26, 408
"""Edges of the plot's frame inside the drawing of WIDTH by HEIGHT, in SVG units from the upper left corner."""

_EQUAL_Y, _TOP_BELOW_EQUAL = TOP + 14, TOP + 40
_SPEED_TICKS = (1, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 300, 1000)
_QUALITY_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)

Tick: TypeAlias = tuple[float, str]


def speed_axis(values: Sequence[float]) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """Return the plot's horizontal axis: a function from a speed-up to x in SVG units, and ticks as (x, label).

    The axis is logarithmic: doubling the speed is the same distance everywhere. All `values`, which are speed-ups above
    0, fit on the axis.
    """
    low, high = math.log(min(values)), math.log(max(values))
    margin = max(0.06 * (high - low), (math.log(2.4) - (high - low)) / 2)
    low, high = low - margin, high + margin

    def to_x(speed: float) -> float:
        return LEFT + (math.log(speed) - low) / (high - low) * (RIGHT - LEFT)

    ticks: list[Tick] = []
    for speed in _SPEED_TICKS:
        x = to_x(speed)
        if LEFT <= x <= RIGHT and all(abs(x - other) > 46 for other, _ in ticks):
            ticks.append((x, f"{speed:g}x"))
    return to_x, tuple(sorted(ticks))


def quality_axis(values: Sequence[float], equal: float) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """Return the plot's vertical axis, linear in dB: a function from dB to y in SVG units, and ticks as (y, label).

    Args:
        values: SQNR or PSNR values in dB that must fit on the axis.
        equal: value in dB that stands for identical results. Values of at least `equal` share a line at the top.
    """
    finite = [value for value in values if value < equal]
    top = _TOP_BELOW_EQUAL if len(finite) < len(values) else TOP
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    step = next((step for step in _QUALITY_STEPS if (high - low) / step <= 6), _QUALITY_STEPS[-1])
    low, high = step * math.floor(low / step - 0.05), step * math.ceil(high / step + 0.05)

    def to_y(quality: float) -> float:
        return _EQUAL_Y if quality >= equal else BOTTOM - (quality - low) / (high - low) * (BOTTOM - top)

    levels = [low + step * number for number in range(round((high - low) / step) + 1)] if finite else []
    levels = [level for level in levels if level < equal]
    return to_y, (*((to_y(level), f"{level:g}") for level in levels), *([(_EQUAL_Y, "equal")] if top != TOP else []))
