"""A speed-up and its interval as a dot on a line, for the rows of a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.accelerate.views.formatting import format_interval, format_speedup
from stillhouse.accelerate.views.rows import ReportRow

WIDTH = 120
_MARGIN = 6


@dataclass(frozen=True, slots=True)
class Whisker:
    """Places from 0 to 120, on a logarithmic scale that the rows of a table share.

    Args:
        one: of the baseline's speed.
        low, value, high: of the speed-up and its interval.
        told, spread: both in words; no spread where none was measured.
    """

    baseline: float
    low: float
    value: float
    high: float
    label: str
    interval_label: str


def build_whiskers(rows: Sequence[ReportRow]) -> tuple[Whisker | None, ...]:
    """One for each row, None where it was not timed."""
    ends = [_interval_ends(row) for row in rows]
    values = [math.log(value) for three in ends if three for value in three] + [0.0]
    low, high = min(values), max(values)

    def place(value: float) -> float:
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return round(_MARGIN + share * (WIDTH - 2 * _MARGIN), 1)

    return tuple(
        Whisker(
            baseline=place(1.0),
            low=place(three[0]),
            value=place(three[1]),
            high=place(three[2]),
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
