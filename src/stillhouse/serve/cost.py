"""What a tick costs: seconds of one evaluation by rows, measured, and what follows from them for jobs and batches."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from stillhouse.errors import InvalidRequest
from stillhouse.serve.job import Group, Job, Walk

NEARLY = 0.97
"""Of the best throughput, what a smaller batch must reach to be taken instead: it keeps others waiting less."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of one evaluation of a batch, by its rows, and what a picture takes besides.

    Args:
        seconds: measured, by rows; a straight line between two, and beyond the last as between the last two.
        begin, finish: seconds to encode a prompt and to decode a picture, once each.

    Raises:
        InvalidRequest: nothing was measured, or seconds that are not above 0.

    >>> curve = Curve({1: 1.0, 2: 1.0, 4: 2.0})
    >>> curve.of(3), curve.of(8), curve.cap
    (1.5, 4.0, 2)
    """

    seconds: Mapping[int, float]
    begin: float = 0.0
    finish: float = 0.0
    cap: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) < 1 or min(self.seconds.values()) <= 0:
            raise InvalidRequest(
                f"a batch curve of {dict(self.seconds)}", allowed="seconds above 0 for batches of 1 row and more"
            )
        best = max(rows / taken for rows, taken in self.seconds.items())
        near = [rows for rows, taken in self.seconds.items() if rows / taken >= NEARLY * best]
        object.__setattr__(self, "cap", min(near))

    def of(self, rows: int) -> float:
        """Seconds of one evaluation of so many rows."""
        if rows in self.seconds:
            return self.seconds[rows]
        known = sorted(self.seconds)
        if len(known) == 1 or rows < known[0]:
            return self.seconds[known[0]] * (rows / known[0] if rows > known[0] else 1.0)
        place = min(max(bisect_left(known, rows), 1), len(known) - 1)
        low, high = known[place - 1], known[place]
        slope = max(0.0, (self.seconds[high] - self.seconds[low]) / (high - low))
        return self.seconds[low] + slope * (rows - low)

    def left(self, walk: Walk, index: int = 0) -> float:
        """Seconds from evaluation `index` to the end, for a picture that is alone."""
        single, paired = walk.left(index)
        walked = (single * self.of(1) if single else 0.0) + (paired * self.of(2) if paired else 0.0)
        return self._around(index) + walked

    def share(self, walk: Walk, index: int = 0) -> float:
        """Seconds of the device that the same takes where others fill its batches."""
        single, paired = walk.left(index)
        filled = (single + 2 * paired) * self.of(self.cap) / self.cap
        return min(self.left(walk, index), self._around(index) + filled)

    def _around(self, index: int) -> float:
        return (0.0 if index else self.begin) + self.finish


@dataclass(frozen=True, slots=True)
class Cost:
    """The curves of everything that is served, by group."""

    curves: Mapping[Group, Curve]

    def tick(self, group: Group, rows: int) -> float:
        """Seconds of one evaluation of so many rows."""
        return self.curves[group].of(rows)

    def cap(self, group: Group) -> int:
        """Rows from which a larger batch gains next to nothing."""
        return self.curves[group].cap

    def alone(self, group: Group, walk: Walk) -> float:
        """Seconds of a picture from start to end with nobody else there."""
        return self.curves[group].left(walk)

    def left(self, job: Job) -> float:
        """Seconds until a job would end if it went on alone from here."""
        return self.curves[job.group].left(job.walk, job.index)

    def share(self, job: Job) -> float:
        """Seconds of the device that a job still takes where others fill its batches."""
        return self.curves[job.group].share(job.walk, job.index)
