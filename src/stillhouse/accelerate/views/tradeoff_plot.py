"""The trade-off plot of a report: a mark for each candidate, its speed-up to the right and its accuracy upwards.

This module computes coordinates in SVG units; a template draws the plot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.views.axes import BOTTOM, LEFT, RIGHT, Tick, quality_axis, speed_axis
from stillhouse.accelerate.views.formatting import format_psnr, format_speedup, format_sqnr
from stillhouse.accelerate.views.rows import ReportRow
from stillhouse.measure import fidelity, image_metrics

# Width of a letter, height of a line and radius of a mark in SVG units, and maximum letters of a label. Letters of
# common fonts are narrower than this width, so that labels do not overlap in any font.
_LETTER, _LINE, _MARK_RADIUS, _MAX_LABEL = 7.6, 17, 10, 56

_Coordinate: TypeAlias = tuple[float, float]
_Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class MarkLabel:
    """A text next to a mark of the plot.

    Args:
        text: the text.
        x, y: position of the text in SVG units; y is the line on which the letters stand.
        anchor: which part of the text is at x, as SVG's text-anchor: start, middle or end.
    """

    text: str
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> _Box:
        """Return the area that the label covers, in SVG units: left, top, right, bottom."""
        width = _LETTER * len(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return left, self.y - _LINE + 3, left + width, self.y + 3


@dataclass(frozen=True, slots=True)
class TradeoffMark:
    """The mark of a candidate in the plot. Coordinates are in SVG units.

    Args:
        row: the candidate's row of the report.
        x, y: position of the mark.
        low, high: x of the ends of the speed-up's 95 % interval.
        family: index of the candidate's backend in `TradeoffPlot.backends`, which decides the mark's shape and colour.
        on_front: whether the candidate is on the Pareto front of the accepted candidates.
        tooltip: name and values of the candidate in one line.
        label: label with the candidate's name; None where the mark has no label.
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
    """The plot of speed-up against accuracy for one network or the whole pipeline.

    Args:
        quality_name: measure of accuracy: SQNR or PSNR.
        marks: marks of the candidates in drawing order, the chosen candidate last.
        speed_ticks: ticks of the horizontal axis, each as (x, label).
        quality_ticks: ticks of the vertical axis, each as (y, label).
        bound_tick: tick of the minimum accuracy that candidates must have; None where there is no bound.
        front_line: Pareto front of the accepted candidates, as the `points` of an SVG polyline.
        backends: names of the backends in the plot.
        missing: number of candidates without speed-up or accuracy, which are not in the plot.
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
    """Return the plot of one network or of the whole pipeline; None where fewer than two candidates can be placed.

    The measure of accuracy is the SQNR of outputs or the PSNR of pictures, whichever more candidates have.

    Args:
        rows: the report's rows of the network.
        bounds: limits of the choice, of which the minimum accuracy is drawn.
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
    ratio = point.row.interval
    return (ratio.low, ratio.high) if ratio else (point.speed, point.speed)


def _find_front(points: Sequence[_TradeoffPoint]) -> list[_TradeoffPoint]:
    """Return the accepted points on the Pareto front of speed-up and accuracy, slowest first."""
    front: list[_TradeoffPoint] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.quality)):
        if point.row.accepted and (not front or point.quality > front[-1].quality):
            front.append(point)
    return front[::-1]


def _front_corners(steps: Sequence[_Coordinate]) -> list[_Coordinate]:
    """Return the corners (x, y) of the Pareto front as a staircase, from the left edge of the frame to its bottom.

    Args:
        steps: positions of the marks on the front, slowest first; empty: no corners.
    """
    corners: list[_Coordinate] = []
    x = float(LEFT)
    for right, y in steps:
        corners += [(x, y), (right, y)]
        x = right
    return [*corners, (x, float(BOTTOM))] if corners else []


def _bounding_box(first: _Coordinate, second: _Coordinate) -> _Box:
    return min(first[0], second[0]), min(first[1], second[1]), max(first[0], second[0]), max(first[1], second[1])


def _place_labels(marks: Sequence[TradeoffMark], lines: Sequence[_Box]) -> tuple[TradeoffMark, ...]:
    """Return copies of the marks, with labels where there is free space.

    Labels are placed for the chosen candidate, the baseline and the candidates on the Pareto front, in this order.

    Args:
        marks: marks of the plot.
        lines: boxes around the plot's lines, which a label should not cross.
    """
    occupied = [
        (min(m.low, m.x - _MARK_RADIUS), m.y - _MARK_RADIUS, max(m.high, m.x + _MARK_RADIUS), m.y + _MARK_RADIUS)
        for m in marks
    ]
    labels: dict[int, MarkLabel] = {}
    labelled = [number for number, mark in enumerate(marks) if mark.row.chosen or mark.row.baseline or mark.on_front]
    for number in sorted(labelled, key=lambda number: (not marks[number].row.chosen, not marks[number].row.baseline)):
        # In a free position, the label covers no mark and no other label. Among the free positions, one where the label
        # crosses no line of the plot is preferred.
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
