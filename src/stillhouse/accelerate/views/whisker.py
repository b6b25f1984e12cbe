"""Drawing of the speed-ups in a table: a dot for each value, on a line for its 95 % interval, above a common axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.accelerate.views.axes import Tick
from stillhouse.accelerate.views.formatting import format_interval, format_speedup
from stillhouse.accelerate.views.rows import ReportRow

WIDTH = 300
"""Width of the drawings in SVG units."""
_MARGIN, _TICK_DISTANCE = 18, 44
_TICKS = (1, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.1, 1.2, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class Whisker:
    """Drawing of a speed-up: x coordinates, 0 to WIDTH, on a logarithmic scale that all rows of a table share.

    Args:
        low, value, high: x of the lower end of the 95 % interval, of the speed-up, and of the upper end.
        label: the speed-up as text.
        interval_label: the interval as text; empty where no interval was measured.
    """

    low: float
    value: float
    high: float
    label: str
    interval_label: str


@dataclass(frozen=True, slots=True)
class WhiskerColumn:
    """Drawings of the speed-ups of a table's rows.

    Args:
        baseline: x of the speed-up 1.
        ticks: ticks of the common axis, each as (x, label).
        whiskers: a drawing for each row; None in place of a row that was not timed.
    """

    baseline: float
    ticks: tuple[Tick, ...]
    whiskers: tuple[Whisker | None, ...]


def build_whiskers(rows: Sequence[ReportRow]) -> WhiskerColumn:
    """Return drawings of the speed-ups of a table's rows, with their common axis."""
    ends = [_interval_ends(row) for row in rows]
    values = [math.log(value) for three in ends if three for value in three] + [0.0]
    low, high = min(values), max(values)

    def to_x(value: float) -> float:
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return round(_MARGIN + share * (WIDTH - 2 * _MARGIN), 1)

    ticks: list[Tick] = []
    for tick in _TICKS:
        x = to_x(tick)
        if low <= math.log(tick) <= high and all(abs(x - other) >= _TICK_DISTANCE for other, _ in ticks):
            ticks.append((x, f"{tick:g}x"))
    whiskers = tuple(
        Whisker(
            low=to_x(three[0]),
            value=to_x(three[1]),
            high=to_x(three[2]),
            label=format_speedup(three[1]),
            interval_label=format_interval(row.interval) if row.interval else "",
        )
        if three
        else None
        for row, three in zip(rows, ends, strict=True)
    )
    return WhiskerColumn(to_x(1.0), tuple(sorted(ticks)), whiskers)


def _interval_ends(row: ReportRow) -> tuple[float, float, float] | None:
    if not row.speed:
        return None
    return (row.interval.low, row.speed, row.interval.high) if row.interval else (row.speed, row.speed, row.speed)
