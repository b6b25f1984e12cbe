"""The trade-off plot: coordinates of its marks and labels, speed-up to the right, quality upwards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.views.axes import BOTTOM, LEFT, RIGHT, Tick, quality_axis, speed_axis
from stillhouse.accelerate.views.formatting import format_psnr, format_speedup, format_sqnr
from stillhouse.accelerate.views.rows import ReportRow
from stillhouse.measure import fidelity, image_metrics

_LETTER, _LINE, _MARK_RADIUS, _MAX_LABEL = 7.6, 17, 10, 56  # in SVG units; common fonts have smaller letters

_Coordinate: TypeAlias = tuple[float, float]
_Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class MarkLabel:
    """A label next to a mark; `anchor` is SVG's: start, middle or end."""

    text: str
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> _Box:
        """Return the covered area: left, top, right, bottom."""
        width = _LETTER * len(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return left, self.y - _LINE + 3, left + width, self.y + 3


@dataclass(frozen=True, slots=True)
class TradeoffMark:
    """A trial in the plot.

    Args:
        row: the trial's row.
        x, y: position.
        low, high: x of the ends of the speed-up's interval.
        family: index of its backend in `TradeoffPlot.backends`.
        on_front: whether the trial is on the Pareto front of the accepted trials.
        tooltip: all values of the trial in one line.
        label: label with the trial's name; None where the mark has no label.
    """

    row: ReportRow
    x: float
    y: float
    low: float
    high: float
    family: int
    on_front: bool
    tooltip: str
    label: MarkLabel | None = None


@dataclass(frozen=True, slots=True)
class TradeoffPlot:
    """Speed-up against quality.

    Args:
        quality_name: SQNR or PSNR.
        marks: in drawing order, the choice last.
        speed_ticks, quality_ticks: ticks with their labels.
        bound_tick: tick of the lower bound of the quality; None where there is no bound.
        front_line: Pareto front as points of an SVG polyline.
        backends: names of the backends.
        missing: number of trials without speed or quality.
    """

    quality_name: str
    marks: tuple[TradeoffMark, ...]
    speed_ticks: tuple[Tick, ...]
    quality_ticks: tuple[Tick, ...]
    bound_tick: Tick | None
    front_line: str
    backends: tuple[str, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class _TradeoffPoint:
    row: ReportRow
    speed: float
    quality: float


def build_tradeoff_plot(rows: Sequence[ReportRow], bounds: Bounds) -> TradeoffPlot | None:
    """Return the plot of one component; None where fewer than two trials have both speed and quality.

    Quality is the SQNR of outputs or the PSNR of pictures, whichever more trials have.
    """
    pictures = sum(row.psnr is not None for row in rows) > sum(row.sqnr is not None for row in rows)
    points = _collect_points(rows, pictures)
    if len(points) < 2:
        return None
    equal, bound = (image_metrics.MAX_PSNR, bounds.min_psnr) if pictures else (fidelity.MAX_SQNR, bounds.min_sqnr)
    to_x, speed_ticks = speed_axis([end for point in points for end in (point.speed, *_interval_ends(point))])
    to_y, quality_ticks = quality_axis([point.quality for point in points] + ([] if bound is None else [bound]), equal)
    front = _find_front(points)
    backends = tuple(dict.fromkeys(point.row.trial.candidate.backend for point in points))
    quality_name, format_quality = ("PSNR", format_psnr) if pictures else ("SQNR", format_sqnr)

    def make_mark(point: _TradeoffPoint) -> TradeoffMark:
        row, (low, high) = point.row, _interval_ends(point)
        quality = f"{quality_name} {format_quality(point.quality)}{'' if point.quality >= equal else ' dB'}"
        return TradeoffMark(
            row=row,
            x=to_x(point.speed),
            y=to_y(point.quality),
            low=to_x(low),
            high=to_x(high),
            family=backends.index(row.trial.candidate.backend),
            on_front=point in front,
            tooltip=": ".join(
                [
                    row.name,
                    f"{format_speedup(point.speed)}, {quality}, {row.trial.status}",
                    *([row.reason] * bool(row.reason)),
                ]
            ),
        )

    corners = _front_corners([(to_x(point.speed), to_y(point.quality)) for point in front])
    lines = [_bounding_box(*ends) for ends in pairwise(corners)] + (
        [] if bound is None else [(LEFT, to_y(bound), RIGHT, to_y(bound))]
    )
    return TradeoffPlot(
        quality_name=quality_name,
        marks=_place_labels([make_mark(point) for point in sorted(points, key=lambda point: point.row.chosen)], lines),
        speed_ticks=speed_ticks,
        quality_ticks=quality_ticks,
        bound_tick=None if bound is None else (to_y(bound), f"bound: {bound:g} dB"),
        front_line=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
        backends=backends,
        missing=len(rows) - len(points),
    )


def _collect_points(rows: Sequence[ReportRow], pictures: bool) -> list[_TradeoffPoint]:
    points = []
    for row in rows:
        quality = row.psnr if pictures else row.sqnr
        if quality is None and row.baseline:
            quality = image_metrics.MAX_PSNR if pictures else fidelity.MAX_SQNR
        if row.speed and quality is not None and quality > fidelity.MIN_SQNR:
            points.append(_TradeoffPoint(row, row.speed, quality))
    return points


def _interval_ends(point: _TradeoffPoint) -> tuple[float, float]:
    ratio = point.row.trial.ratio
    return (ratio.low, ratio.high) if ratio else (point.speed, point.speed)


def _find_front(points: Sequence[_TradeoffPoint]) -> list[_TradeoffPoint]:
    """Return the Pareto front of the accepted points, slowest first."""
    front: list[_TradeoffPoint] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.quality)):
        if point.row.accepted and (not front or point.quality > front[-1].quality):
            front.append(point)
    return front[::-1]


def _front_corners(steps: Sequence[_Coordinate]) -> list[_Coordinate]:
    """Return the corners of the front's staircase, from the left edge of the frame to its bottom."""
    corners: list[_Coordinate] = []
    x = float(LEFT)
    for right, y in steps:
        corners += [(x, y), (right, y)]
        x = right
    return [*corners, (x, float(BOTTOM))] if corners else []


def _bounding_box(first: _Coordinate, second: _Coordinate) -> _Box:
    return min(first[0], second[0]), min(first[1], second[1]), max(first[0], second[0]), max(first[1], second[1])


def _place_labels(marks: Sequence[TradeoffMark], lines: Sequence[_Box]) -> tuple[TradeoffMark, ...]:
    """Add labels to the choice, the baseline and the front, in this order, where there is free space."""
    occupied = [
        (min(m.low, m.x - _MARK_RADIUS), m.y - _MARK_RADIUS, max(m.high, m.x + _MARK_RADIUS), m.y + _MARK_RADIUS)
        for m in marks
    ]
    labels: dict[int, MarkLabel] = {}
    labelled = [number for number, mark in enumerate(marks) if mark.row.chosen or mark.row.baseline or mark.on_front]
    for number in sorted(labelled, key=lambda number: (not marks[number].row.chosen, not marks[number].row.baseline)):
        # Prefer positions off the lines, but accept a label across a line.
        free_positions = [position for position in _label_positions(marks[number]) if _is_free(position.box, occupied)]
        label = next(
            (position for position in free_positions if _is_free(position.box, lines)),
            free_positions[0] if free_positions else None,
        )
        if label:
            labels[number] = label
            occupied.append(label.box)
    return tuple(replace(mark, label=labels.get(number)) for number, mark in enumerate(marks))


def _label_positions(mark: TradeoffMark) -> list[MarkLabel]:
    name = mark.row.name
    text = name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1].rstrip()}…"
    return [
        MarkLabel(text, max(mark.high, mark.x + _MARK_RADIUS) + 5, mark.y + 4, "start"),
        MarkLabel(text, mark.x + 5, mark.y - _MARK_RADIUS - 6, "start"),
        MarkLabel(text, min(mark.low, mark.x - _MARK_RADIUS) - 5, mark.y + 4, "end"),
        MarkLabel(text, mark.x - 5, mark.y + _MARK_RADIUS + 16, "end"),
        MarkLabel(text, mark.x, mark.y - _MARK_RADIUS - 6, "middle"),
        MarkLabel(text, mark.x - 5, mark.y - _MARK_RADIUS - 6, "end"),
        MarkLabel(text, mark.x, mark.y + _MARK_RADIUS + 16, "middle"),
        MarkLabel(text, mark.x + 5, mark.y + _MARK_RADIUS + 16, "start"),
    ]


def _is_free(box: _Box, occupied: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    within = left >= LEFT and right <= RIGHT and top >= 0 and bottom <= BOTTOM
    return within and all(right < a or left > c or bottom < b or top > d for a, b, c, d in occupied)
