"""Speed-up and interval of a table row as a dot on a line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.accelerate.views.formatting import format_interval, format_speedup
from stillhouse.accelerate.views.rows import ReportRow

WIDTH = 120
_MARGIN = 6


@dataclass(frozen=True, slots=True)
class Whisker:
    """X coordinates from 0 to WIDTH on a logarithmic scale shared by all rows of a table.

    Args:
        baseline: coordinate of speed-up 1.
        low, value, high: coordinates of the speed-up and of the ends of its interval.
        label, interval_label: speed-up and interval as text; the interval is empty where none was measured.
    """

    baseline: float
    low: float
    value: float
    high: float
    label: str
    interval_label: str


def build_whiskers(rows: Sequence[ReportRow]) -> tuple[Whisker | None, ...]:
    """Return a whisker for each row; None where the row was not timed."""
    ends = [_interval_ends(row) for row in rows]
    values = [math.log(value) for three in ends if three for value in three] + [0.0]
    low, high = min(values), max(values)

    def to_x(value: float) -> float:
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return round(_MARGIN + share * (WIDTH - 2 * _MARGIN), 1)

    return tuple(
        Whisker(
            baseline=to_x(1.0),
            low=to_x(three[0]),
            value=to_x(three[1]),
            high=to_x(three[2]),
            label=format_speedup(three[1]),
            interval_label=format_interval(row.trial.ratio) if row.trial.ratio else "",
        )
        if three
        else None
        for row, three in zip(rows, ends, strict=True)
    )


def _interval_ends(row: ReportRow) -> tuple[float, float, float] | None:
    if not row.speed:
        return None
    ratio = row.trial.ratio
    return (ratio.low, row.speed, ratio.high) if ratio else (row.speed, row.speed, row.speed)
