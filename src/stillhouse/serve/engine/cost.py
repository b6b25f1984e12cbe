"""What a tick costs: seconds of one evaluation by rows, measured, and what follows from them for jobs and batches."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.batch_sizes import split_batch
from stillhouse.serve.engine.job import Group, Job, Walk

NEARLY = 0.97
"""Of the best throughput, what a smaller batch must reach to be taken instead: it keeps others waiting less."""
LEARNED = 0.05
"""Of the difference between what a tick took and what was expected, how much is believed."""
STRANGE = 4.0
"""A tick that was so many times quicker or slower than expected tells no more than that."""

MOST_SIZES = 256
"""Curves that are kept."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of one evaluation of a batch, by its rows, and what a picture takes besides.

    Args:
        seconds: measured, by rows; a straight line between two, and beyond the last as between the last two.
        begin, finish: seconds to encode a prompt, and to decode a picture and write it as a file, once each.
        encode: seconds to encode a picture that one begins with.
        stepped: other batches are brought to the sizes that were measured, see `models.buckets`, and take as long as
            those; beyond the last, as several of them.

    Raises:
        InvalidRequest: nothing was measured, or seconds that are not above 0.

    >>> curve = Curve({1: 1.0, 2: 1.0, 4: 2.0})
    >>> curve.of(3), curve.of(8), curve.cap
    (1.5, 4.0, 2)
    >>> Curve({1: 1.0, 2: 1.0, 4: 2.0}, stepped=True).of(3)
    2.0
    """

    seconds: Mapping[int, float]
    begin: float = 0.0
    finish: float = 0.0
    encode: float = 0.0
    stepped: bool = False
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
        if self.stepped:
            return sum(self.seconds[fed] for _, fed in split_batch(rows, known))
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
        return self._around(walk, index) + walked

    def share(self, walk: Walk, index: int = 0) -> float:
        """Seconds of the device that the same takes where others fill its batches."""
        single, paired = walk.left(index)
        filled = (single + 2 * paired) * self.of(self.cap) / self.cap
        return min(self.left(walk, index), self._around(walk, index) + filled)

    def before(self, walk: Walk) -> float:
        """Seconds before the first evaluation."""
        return self.begin + walk.pictures * self.encode

    def times(self, factor: float) -> "Curve":
        """The curve of something that takes so many times as long."""
        longer = {rows: factor * taken for rows, taken in self.seconds.items()}
        return Curve(longer, self.begin, factor * self.finish, factor * self.encode, self.stepped)

    def _around(self, walk: Walk, index: int) -> float:
        return (0.0 if index else self.before(walk)) + self.finish


@dataclass(frozen=True, slots=True)
class Cost:
    """The curves of everything that is served, by group.

    Args:
        curves: as measured.
        pace: by group, how many times as long as measured its ticks take of late; 1 where nothing is said. Machines
            become slower and quicker while they run, and all batches with them, so caps stay as they are.
    """

    curves: Mapping[Group, Curve]
    pace: Mapping[Group, float] = field(default_factory=dict)

    def tick(self, group: Group, rows: int) -> float:
        """Seconds of one evaluation of so many rows."""
        return self._curve(group).of(rows) * self._pace(group)

    def cap(self, group: Group) -> int:
        """Rows from which a larger batch gains next to nothing."""
        return self._curve(group).cap

    def is_stepped(self, group: Group) -> bool:
        """Whether its batches are brought to the sizes that were measured."""
        return self._curve(group).stepped

    def alone(self, group: Group, walk: Walk) -> float:
        """Seconds of a picture from start to end with nobody else there."""
        return self._curve(group).left(walk) * self._pace(group)

    def left(self, job: Job) -> float:
        """Seconds until a job would end if it went on alone from here."""
        return self._curve(job.group).left(job.walk, job.index) * self._pace(job.group)

    def share(self, job: Job) -> float:
        """Seconds of the device that a job still takes where others fill its batches."""
        return self._curve(job.group).share(job.walk, job.index) * self._pace(job.group)

    def paced(self, group: Group, pace: float) -> "Cost":
        """The same with another pace for one group."""
        return replace(self, pace={**self.pace, group: pace})

    def seen(self, group: Group, rows: int, seconds: float) -> "Cost":
        """The same after a tick that took so long: its pace goes `LEARNED` of the way to the one that was seen.

        >>> group = Group("model", 64, 64)
        >>> Cost({group: Curve({1: 1.0})}).seen(group, 1, 2.0).tick(group, 1)
        1.05
        """
        seen = seconds / self._curve(group).of(rows)
        before = self._pace(group)
        within = min(max(seen, before / STRANGE), before * STRANGE)
        return self.paced(group, before + LEARNED * (within - before))

    def knowing(self, group: Group) -> "Cost":
        """The same with a curve for this group: that of its pipeline's most similar size, as many times as long.

        Work grows at least with the pixels; what it really takes is seen once the first ticks were made. Of sizes that
        nobody measured, the latest are known, so that clients who ask for ever others do not fill the memory.

        Raises:
            InvalidRequest: no size of that pipeline was ever measured.
        """
        if group in self.curves:
            return self
        near = self._near(group)
        scaled = self.curves[near].times(group.pixels / near.pixels)
        curves, pace = {**self.curves, group: scaled}, {**self.pace, group: self._pace(near)}
        if len(curves) > MOST_SIZES:
            first: dict[str, Group] = {}
            for known in curves:
                first.setdefault(known.pipeline, known)
            kept = {*first.values(), *list(curves)[-MOST_SIZES // 2 :]}
            curves = {known: curve for known, curve in curves.items() if known in kept}
            pace = {known: one for known, one in pace.items() if known in kept}
        return replace(self, curves=curves, pace=pace)

    def _curve(self, group: Group) -> Curve:
        found = self.curves.get(group)
        if found is None:
            near = self._near(group)
            found = self.curves[near].times(group.pixels / near.pixels)
        return found

    def _near(self, group: Group) -> Group:
        own = [known for known in self.curves if known.pipeline == group.pipeline]
        if not own:
            raise InvalidRequest(f"a job for {group}", allowed=", ".join(map(str, self.curves)))
        return min(own, key=lambda known: max(known.pixels / group.pixels, group.pixels / known.pixels))

    def _pace(self, group: Group) -> float:
        return self.pace.get(group, 1.0)
