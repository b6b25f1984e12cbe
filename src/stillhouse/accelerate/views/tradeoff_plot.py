"""Where the marks of a plot stand: speed-up to the right, quality upwards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.views.axes import BOTTOM, LEFT, RIGHT, Tick, quality_axis, speed_axis
from stillhouse.accelerate.views.formatting import psnr, sqnr, times
from stillhouse.accelerate.views.rows import Row
from stillhouse.measure import fidelity, image_metrics

_LETTER, _LINE, _MARK, _LONGEST = 7.6, 17, 10, 56  # of the labels: no font that is likely takes more

_Place: TypeAlias = tuple[float, float]
_Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Label:
    """A name beside a mark, with `anchor` as in SVG: start, middle or end."""

    text: str
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> _Box:
        """What it covers: left, top, right, bottom."""
        width = _LETTER * len(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return left, self.y - _LINE + 3, left + width, self.y + 3


@dataclass(frozen=True, slots=True)
class Mark:
    """A trial in the plot.

    Args:
        row: the trial.
        x, y: where it stands.
        low, high: from which x to which its interval goes.
        family: the number of its backend.
        front: whether it is accepted, and none that is accepted is faster and as good, or better and as fast.
        told: everything about it in one line.
        label: its name, where it is worth one and there is room.
    """

    row: Row
    x: float
    y: float
    low: float
    high: float
    family: int
    front: bool
    told: str
    label: Label | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """Speed-up against quality.

    Args:
        measure: SQNR or PSNR.
        marks: in the order in which they are drawn, the choice last.
        speeds, qualities: ticks with their labels.
        bound: the tick of the least quality that was asked for; None where none was.
        front: the Pareto front, as the points of an SVG polyline.
        families: the backends by their number.
        missing: trials that have no figures to be drawn by.
    """

    measure: str
    marks: tuple[Mark, ...]
    speeds: tuple[Tick, ...]
    qualities: tuple[Tick, ...]
    bound: Tick | None
    front: str
    families: tuple[str, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class _Point:
    row: Row
    speed: float
    quality: float


def plot(found: Sequence[Row], bounds: Bounds) -> Plot | None:
    """The plot of one component; None where fewer than two trials have figures to be drawn by.

    Quality is what more trials have of the two: the SQNR of outputs, or the PSNR of pictures.
    """
    pictures = sum(row.psnr is not None for row in found) > sum(row.sqnr is not None for row in found)
    points = _points(found, pictures)
    if len(points) < 2:
        return None
    equal, asked = (image_metrics.EQUAL, bounds.min_psnr) if pictures else (fidelity.EQUAL, bounds.min_sqnr)
    across, speeds = speed_axis([end for point in points for end in (point.speed, *_ends(point))])
    up, qualities = quality_axis([point.quality for point in points] + ([] if asked is None else [asked]), equal)
    front = _front(points)
    families = tuple(dict.fromkeys(point.row.trial.candidate.backend for point in points))
    measure, told = ("PSNR", psnr) if pictures else ("SQNR", sqnr)

    def mark(point: _Point) -> Mark:
        row, (low, high) = point.row, _ends(point)
        quality = f"{measure} {told(point.quality)}{'' if point.quality >= equal else ' dB'}"
        return Mark(
            row=row,
            x=across(point.speed),
            y=up(point.quality),
            low=across(low),
            high=across(high),
            family=families.index(row.trial.candidate.backend),
            front=point in front,
            told=": ".join(
                [row.name, f"{times(point.speed)}, {quality}, {row.trial.status}", *([row.reason] * bool(row.reason))]
            ),
        )

    corners = _staircase([(across(point.speed), up(point.quality)) for point in front])
    lines = [_box(*ends) for ends in pairwise(corners)] + (
        [] if asked is None else [(LEFT, up(asked), RIGHT, up(asked))]
    )
    return Plot(
        measure=measure,
        marks=_labelled([mark(point) for point in sorted(points, key=lambda point: point.row.chosen)], lines),
        speeds=speeds,
        qualities=qualities,
        bound=None if asked is None else (up(asked), f"asked for: {asked:g} dB"),
        front=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
        families=families,
        missing=len(found) - len(points),
    )


def _points(found: Sequence[Row], pictures: bool) -> list[_Point]:
    points = []
    for row in found:
        quality = row.psnr if pictures else row.sqnr
        if quality is None and row.baseline:
            quality = image_metrics.EQUAL if pictures else fidelity.EQUAL
        if row.speed and quality is not None and quality > fidelity.NOTHING:
            points.append(_Point(row, row.speed, quality))
    return points


def _ends(point: _Point) -> tuple[float, float]:
    ratio = point.row.trial.ratio
    return (ratio.low, ratio.high) if ratio else (point.speed, point.speed)


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Accepted points, slowest first, that no accepted one beats in one figure without losing in the other."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.quality)):
        if point.row.accepted and (not front or point.quality > front[-1].quality):
            front.append(point)
    return front[::-1]


def _staircase(steps: Sequence[_Place]) -> list[_Place]:
    """The border of what the front beats, from the left edge of the frame to its bottom."""
    corners: list[_Place] = []
    x = float(LEFT)
    for right, y in steps:
        corners += [(x, y), (right, y)]
        x = right
    return [*corners, (x, float(BOTTOM))] if corners else []


def _box(one: _Place, other: _Place) -> _Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[0], other[0]), max(one[1], other[1])


def _labelled(marks: Sequence[Mark], lines: Sequence[_Box]) -> tuple[Mark, ...]:
    """Names beside the choice, the baseline and the front, in this order, as far as they find room."""
    taken = [(min(m.low, m.x - _MARK), m.y - _MARK, max(m.high, m.x + _MARK), m.y + _MARK) for m in marks]
    labels: dict[int, Label] = {}
    worth = [number for number, mark in enumerate(marks) if mark.row.chosen or mark.row.baseline or mark.front]
    for number in sorted(worth, key=lambda number: (not marks[number].row.chosen, not marks[number].row.baseline)):
        # Better across a line than nowhere.
        free = [one for one in _beside(marks[number]) if _free(one.box, taken)]
        label = next((one for one in free if _free(one.box, lines)), free[0] if free else None)
        if label:
            labels[number] = label
            taken.append(label.box)
    return tuple(replace(mark, label=labels.get(number)) for number, mark in enumerate(marks))


def _beside(mark: Mark) -> list[Label]:
    name = mark.row.name
    text = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1].rstrip()}…"
    return [
        Label(text, max(mark.high, mark.x + _MARK) + 5, mark.y + 4, "start"),
        Label(text, mark.x + 5, mark.y - _MARK - 6, "start"),
        Label(text, min(mark.low, mark.x - _MARK) - 5, mark.y + 4, "end"),
        Label(text, mark.x - 5, mark.y + _MARK + 16, "end"),
        Label(text, mark.x, mark.y - _MARK - 6, "middle"),
        Label(text, mark.x - 5, mark.y - _MARK - 6, "end"),
        Label(text, mark.x, mark.y + _MARK + 16, "middle"),
        Label(text, mark.x + 5, mark.y + _MARK + 16, "start"),
    ]


def _free(box: _Box, taken: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    within = left >= LEFT and right <= RIGHT and top >= 0 and bottom <= BOTTOM
    return within and all(right < a or left > c or bottom < b or top > d for a, b, c, d in taken)
