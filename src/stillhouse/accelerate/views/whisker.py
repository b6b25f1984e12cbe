"""Drawing of a speed-up in a table: a dot for its value, on a line for its 95 % confidence interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.accelerate.views.formatting import format_interval, format_speedup
from stillhouse.accelerate.views.rows import ReportRow

WIDTH = 120
_MARGIN = 6


@dataclass(frozen=True, slots=True)
class Whisker:
    """Drawing of a speed-up: x coordinates, 0 to WIDTH, on a logarithmic scale that all rows of a table share.

    Args:
        baseline: x of the speed-up 1.
        low, value, high: x of the lower end of the 95 % interval, of the speed-up, and of the upper end.
        label: the speed-up as text.
        interval_label: the interval as text; empty where no interval was measured.
    """

    baseline: float
    low: float
    value: float
    high: float
    label: str
    interval_label: str


def build_whiskers(rows: Sequence[ReportRow]) -> tuple[Whisker | None, ...]:
    """Return a drawing of the speed-up for each row of a table; None in place of a row that was not timed."""
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
