"""What a tick costs: seconds of one evaluation by rows, measured, and what follows from them for jobs and batches."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.batch_sizes import split_batch
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan

MIN_THROUGHPUT_SHARE = 0.97
"""Of the best throughput, what a smaller batch must reach to be taken instead: it keeps others waiting less."""
SMOOTHING = 0.05
"""Of the difference between what a tick took and what was expected, how much is believed."""
MAX_OUTLIER_RATIO = 4.0
"""A tick that was so many times quicker or slower than expected tells no more than that."""

MAX_CURVES = 256
"""Curves that are kept."""


@dataclass(frozen=True, slots=True)
class LatencyCurve:
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
    encode_text: float = 0.0
    decode: float = 0.0
    encode_image: float = 0.0
    is_bucketed: bool = False
    saturation_rows: int = field(init=False)

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) < 1 or min(self.seconds.values()) <= 0:
            raise InvalidRequest(
                f"a batch curve of {dict(self.seconds)}", allowed="seconds above 0 for batches of 1 row and more"
            )
        best = max(rows / taken for rows, taken in self.seconds.items())
        near = [rows for rows, taken in self.seconds.items() if rows / taken >= MIN_THROUGHPUT_SHARE * best]
        object.__setattr__(self, "cap", min(near))

    def step_seconds(self, rows: int) -> float:
        """Seconds of one evaluation of so many rows."""
        if rows in self.seconds:
            return self.seconds[rows]
        known = sorted(self.seconds)
        if self.is_bucketed:
            return sum(self.seconds[fed] for _, fed in split_batch(rows, known))
        if len(known) == 1 or rows < known[0]:
            return self.seconds[known[0]] * (rows / known[0] if rows > known[0] else 1.0)
        place = min(max(bisect_left(known, rows), 1), len(known) - 1)
        low, high = known[place - 1], known[place]
        slope = max(0.0, (self.seconds[high] - self.seconds[low]) / (high - low))
        return self.seconds[low] + slope * (rows - low)

    def remaining_seconds(self, step_plan: StepPlan, index: int = 0) -> float:
        """Seconds from evaluation `index` to the end, for a picture that is alone."""
        steps = sum(count * self.step_seconds(rows) for rows, count in step_plan.remaining(index).items())
        return self._encode_decode_seconds(step_plan, index) + steps

    def device_seconds(self, step_plan: StepPlan, index: int = 0) -> float:
        """Seconds of the device that the same takes where others fill its batches."""
        rows_left = sum(count * rows for rows, count in step_plan.remaining(index).items())
        filled = rows_left * self.step_seconds(self.saturation_rows) / self.saturation_rows
        return min(self.remaining_seconds(step_plan, index), self._encode_decode_seconds(step_plan, index) + filled)

    def start_seconds(self, step_plan: StepPlan) -> float:
        """Seconds before the first evaluation."""
        return self.encode_text + step_plan.encoded_images * self.encode_image

    def scale(self, factor: float) -> "LatencyCurve":
        """The curve of something that takes so many times as long."""
        longer = {rows: factor * taken for rows, taken in self.seconds.items()}
        return LatencyCurve(
            longer, self.encode_text, factor * self.decode, factor * self.encode_image, self.is_bucketed
        )

    def _encode_decode_seconds(self, step_plan: StepPlan, index: int) -> float:
        return (0.0 if index else self.start_seconds(step_plan)) + self.decode


@dataclass(frozen=True, slots=True)
class CostModel:
    """The curves of everything that is served, by group.

    Args:
        curves: as measured.
        pace: by group, how many times as long as measured its ticks take of late; 1 where nothing is said. Machines
            become slower and quicker while they run, and all batches with them, so caps stay as they are.
    """

    curves: Mapping[BatchKey, LatencyCurve]
    slowdowns: Mapping[BatchKey, float] = field(default_factory=dict)

    def step_seconds(self, batch_key: BatchKey, rows: int) -> float:
        """Seconds of one evaluation of so many rows."""
        return self._curve(batch_key).step_seconds(rows) * self._slowdown(batch_key)

    def saturation_rows(self, batch_key: BatchKey) -> int:
        """Rows from which a larger batch gains next to nothing."""
        return self._curve(batch_key).saturation_rows

    def is_bucketed(self, batch_key: BatchKey) -> bool:
        """Whether its batches are brought to the sizes that were measured."""
        return self._curve(batch_key).is_bucketed

    def isolated_seconds(self, batch_key: BatchKey, step_plan: StepPlan) -> float:
        """Seconds of a picture from start to end with nobody else there."""
        return self._curve(batch_key).remaining_seconds(step_plan) * self._slowdown(batch_key)

    def remaining_seconds(self, job: Job) -> float:
        """Seconds until a job would end if it went on alone from here."""
        return self._curve(job.batch_key).remaining_seconds(job.step_plan, job.index) * self._slowdown(job.batch_key)

    def device_seconds(self, job: Job) -> float:
        """Seconds of the device that a job still takes where others fill its batches."""
        return self._curve(job.batch_key).device_seconds(job.step_plan, job.index) * self._slowdown(job.batch_key)

    def with_slowdown(self, batch_key: BatchKey, slowdown: float) -> "CostModel":
        """The same with another pace for one group."""
        return replace(self, slowdowns={**self.slowdowns, batch_key: slowdown})

    def with_measurement(self, batch_key: BatchKey, rows: int, seconds: float) -> "CostModel":
        """The same after a tick that took so long: its pace goes `LEARNED` of the way to the one that was seen.

        >>> group = Group("model", 64, 64)
        >>> Cost({group: Curve({1: 1.0})}).seen(group, 1, 2.0).tick(group, 1)
        1.05
        """
        seen = seconds / self._curve(batch_key).step_seconds(rows)
        before = self._slowdown(batch_key)
        within = min(max(seen, before / MAX_OUTLIER_RATIO), before * MAX_OUTLIER_RATIO)
        return self.with_slowdown(batch_key, before + SMOOTHING * (within - before))

    def with_batch_key(self, batch_key: BatchKey) -> "CostModel":
        """The same with a curve for this group: that of its pipeline's most similar size, as many times as long.

        Work grows at least with the pixels; what it really takes is seen once the first ticks were made. Of sizes that
        nobody measured, the latest are known, so that clients who ask for ever others do not fill the memory.

        Raises:
            InvalidRequest: no size of that pipeline was ever measured.
        """
        if batch_key in self.curves:
            return self
        near = self._nearest(batch_key)
        scaled = self.curves[near].scale(batch_key.pixels / near.pixels)
        curves, pace = {**self.curves, batch_key: scaled}, {**self.slowdowns, batch_key: self._slowdown(near)}
        if len(curves) > MAX_CURVES:
            first: dict[str, BatchKey] = {}
            for known in curves:
                first.setdefault(known.pipeline, known)
            kept = {*first.values(), *list(curves)[-MAX_CURVES // 2 :]}
            curves = {known: curve for known, curve in curves.items() if known in kept}
            pace = {known: one for known, one in pace.items() if known in kept}
        return replace(self, curves=curves, slowdowns=pace)

    def _curve(self, batch_key: BatchKey) -> LatencyCurve:
        found = self.curves.get(batch_key)
        if found is None:
            near = self._nearest(batch_key)
            found = self.curves[near].scale(batch_key.pixels / near.pixels)
        return found

    def _nearest(self, batch_key: BatchKey) -> BatchKey:
        own = [known for known in self.curves if known.pipeline == batch_key.pipeline]
        if not own:
            raise InvalidRequest(f"a job for {batch_key}", allowed=", ".join(map(str, self.curves)))
        return min(own, key=lambda known: max(known.pixels / batch_key.pixels, batch_key.pixels / known.pixels))

    def _slowdown(self, batch_key: BatchKey) -> float:
        return self.slowdowns.get(batch_key, 1.0)
