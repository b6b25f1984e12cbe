"""Latency model: measured seconds per evaluation as a function of batch rows, and predictions derived from them."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.batch_sizes import split_batch
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan

MIN_THROUGHPUT_SHARE = 0.97
"""Share of the best throughput at which a batch is large enough: larger batches gain little and delay other jobs."""
SMOOTHING = 0.05
"""Weight of a new measurement in the moving average of a slowdown (present seconds of an evaluation, divided by the
seconds in the latency curve)."""
MAX_OUTLIER_RATIO = 4.0
"""Largest factor between a new measurement of a slowdown and its average; a larger factor is clipped as an outlier."""
MAX_CURVES = 256
"""Largest number of latency curves (one for each pipeline and image size) that a `CostModel` keeps. Curves that were
not measured are removed first, beginning with the oldest."""


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Seconds of one network evaluation as a function of the rows of its batch, and the fixed costs of an image.

    Args:
        seconds: measured seconds by number of rows. Seconds for other numbers of rows are interpolated linearly, and
            extrapolated beyond the largest number.
        encode_text: seconds to encode a prompt.
        decode: seconds to decode an image and encode the file.
        encode_image: seconds to encode an input image.
        is_bucketed: whether batches are padded to the measured numbers of rows, see `pipelines.batch_sizes`. A batch
            then costs as much as its padded size; larger batches are split.
        saturation_rows: smallest measured number of rows with almost the best throughput (`MIN_THROUGHPUT_SHARE`).

    Raises:
        InvalidRequest: `seconds` is empty, or a duration or a number of rows is not above 0.

    >>> curve = LatencyCurve({1: 1.0, 2: 1.0, 4: 2.0})
    >>> curve.step_seconds(3), curve.step_seconds(8), curve.saturation_rows
    (1.5, 4.0, 2)
    >>> LatencyCurve({1: 1.0, 2: 1.0, 4: 2.0}, is_bucketed=True).step_seconds(3)
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
                f"the measured seconds by rows of a batch are {dict(self.seconds)}",
                allowed="seconds above 0 for one or more numbers of rows, each 1 or more",
            )
        best = max(rows / duration for rows, duration in self.seconds.items())
        candidates = [rows for rows, duration in self.seconds.items() if rows / duration >= MIN_THROUGHPUT_SHARE * best]
        object.__setattr__(self, "saturation_rows", min(candidates))

    def step_seconds(self, rows: int) -> float:
        """Return the seconds of one evaluation of a batch of `rows` rows, estimated if the number was not measured."""
        if rows in self.seconds:
            return self.seconds[rows]
        sizes = sorted(self.seconds)
        if self.is_bucketed:
            return sum(self.seconds[size] for _, size in split_batch(rows, sizes))
        if len(sizes) == 1 or rows < sizes[0]:
            return self.seconds[sizes[0]] * (rows / sizes[0] if rows > sizes[0] else 1.0)
        place = min(max(bisect_left(sizes, rows), 1), len(sizes) - 1)
        low, high = sizes[place - 1], sizes[place]
        slope = max(0.0, (self.seconds[high] - self.seconds[low]) / (high - low))
        return self.seconds[low] + slope * (rows - low)

    def remaining_seconds(self, step_plan: StepPlan, index: int = 0) -> float:
        """Return the seconds from evaluation `index` (from 0) to the decoded image if the image is generated alone.

        Where `index` is 0, the seconds to encode the prompt and the input images are included. `step_plan` has the
        number of batch rows that each evaluation of the image takes.
        """
        evaluations = sum(count * self.step_seconds(rows) for rows, count in step_plan.remaining(index).items())
        return self._encode_decode_seconds(step_plan, index) + evaluations

    def device_seconds(self, step_plan: StepPlan, index: int = 0) -> float:
        """Return the seconds from evaluation `index` (from 0) to the decoded image if other images fill the batches.

        The image is charged only for its own share of each batch. `step_plan` has the number of batch rows that each
        evaluation of the image takes.
        """
        rows_left = sum(count * rows for rows, count in step_plan.remaining(index).items())
        filled = rows_left * self.step_seconds(self.saturation_rows) / self.saturation_rows
        return min(self.remaining_seconds(step_plan, index), self._encode_decode_seconds(step_plan, index) + filled)

    def start_seconds(self, step_plan: StepPlan) -> float:
        """Return the seconds before the first evaluation: to encode the prompt and the input images."""
        return self.encode_text + step_plan.encoded_images * self.encode_image

    def scale(self, factor: float) -> "LatencyCurve":
        """Return a curve in which evaluation, decoding and image encoding take `factor` times as long."""
        seconds = {rows: factor * duration for rows, duration in self.seconds.items()}
        return LatencyCurve(
            seconds, self.encode_text, factor * self.decode, factor * self.encode_image, self.is_bucketed
        )

    def _encode_decode_seconds(self, step_plan: StepPlan, index: int) -> float:
        return (0.0 if index else self.start_seconds(step_plan)) + self.decode


@dataclass(frozen=True, slots=True)
class CostModel:
    """Latency model: a latency curve for each batch key (pipeline and image size), and its current slowdown.

    Args:
        curves: latency curves by batch key, measured or scaled from the curve of another image size.
        slowdowns: recent ratio of observed seconds per evaluation to the seconds of the curve, by batch key; 1 if
            absent. The speed of a machine drifts while it runs. All batch sizes drift alike, so `saturation_rows` does
            not change.
    """

    curves: Mapping[BatchKey, LatencyCurve]
    slowdowns: Mapping[BatchKey, float] = field(default_factory=dict)

    def step_seconds(self, batch_key: BatchKey, rows: int) -> float:
        """Return the present seconds of one evaluation of a batch of `rows` rows with this batch key."""
        return self._curve(batch_key).step_seconds(rows) * self._slowdown(batch_key)

    def saturation_rows(self, batch_key: BatchKey) -> int:
        """Return the number of rows above which batches with this batch key gain almost no throughput."""
        return self._curve(batch_key).saturation_rows

    def is_bucketed(self, batch_key: BatchKey) -> bool:
        """Return whether batches of a batch key (pipeline and image size) are padded to measured numbers of rows."""
        return self._curve(batch_key).is_bucketed

    def isolated_seconds(self, batch_key: BatchKey, step_plan: StepPlan) -> float:
        """Return the isolated latency: the seconds that one image takes, encoding and decoding included, if alone."""
        return self._curve(batch_key).remaining_seconds(step_plan) * self._slowdown(batch_key)

    def remaining_seconds(self, job: Job) -> float:
        """Return the seconds until a job finishes if it runs alone from now on."""
        return self._curve(job.batch_key).remaining_seconds(job.step_plan, job.index) * self._slowdown(job.batch_key)

    def device_seconds(self, job: Job) -> float:
        """Return the seconds of the device that a job still needs if other jobs fill its batches."""
        return self._curve(job.batch_key).device_seconds(job.step_plan, job.index) * self._slowdown(job.batch_key)

    def with_slowdown(self, batch_key: BatchKey, slowdown: float) -> "CostModel":
        """Return a copy in which one batch key has this slowdown (present seconds divided by the curve's seconds)."""
        return replace(self, slowdowns={**self.slowdowns, batch_key: slowdown})

    def with_measurement(self, batch_key: BatchKey, rows: int, seconds: float) -> "CostModel":
        """Return a copy in which a batch key's slowdown is updated: a batch of `rows` rows has just taken `seconds`.

        The slowdown moves by the share `SMOOTHING` towards `seconds` divided by the curve's seconds.

        >>> key = BatchKey("model", 64, 64)
        >>> CostModel({key: LatencyCurve({1: 1.0})}).with_measurement(key, 1, 2.0).step_seconds(key, 1)
        1.05
        """
        observed = seconds / self._curve(batch_key).step_seconds(rows)
        current = self._slowdown(batch_key)
        clipped = min(max(observed, current / MAX_OUTLIER_RATIO), current * MAX_OUTLIER_RATIO)
        return self.with_slowdown(batch_key, current + SMOOTHING * (clipped - current))

    def with_batch_key(self, batch_key: BatchKey) -> "CostModel":
        """Return a copy with a latency curve for `batch_key`, or this object itself if it already has such a curve.

        A new curve is the curve of the pipeline's most similar image size, scaled by the ratio of pixels. Work grows at
        least linearly with the pixels; `with_measurement` corrects the estimate after the first steps. Only the most
        recent unmeasured sizes are kept, so that clients with many sizes do not fill the memory.

        Raises:
            InvalidRequest: no size of the pipeline was measured.
        """
        if batch_key in self.curves:
            return self
        nearest = self._nearest(batch_key)
        curves = {**self.curves, batch_key: self._scaled(nearest, batch_key)}
        slowdowns = {**self.slowdowns, batch_key: self._slowdown(nearest)}
        if len(curves) > MAX_CURVES:
            retained = _retained_keys(curves)
            curves = {key: curve for key, curve in curves.items() if key in retained}
            slowdowns = {key: slowdown for key, slowdown in slowdowns.items() if key in retained}
        return replace(self, curves=curves, slowdowns=slowdowns)

    def _curve(self, batch_key: BatchKey) -> LatencyCurve:
        curve = self.curves.get(batch_key)
        return self._scaled(self._nearest(batch_key), batch_key) if curve is None else curve

    def _scaled(self, source: BatchKey, target: BatchKey) -> LatencyCurve:
        return self.curves[source].scale(target.pixels / source.pixels)

    def _nearest(self, batch_key: BatchKey) -> BatchKey:
        same_pipeline = [key for key in self.curves if key.pipeline == batch_key.pipeline]
        if not same_pipeline:
            raise InvalidRequest(
                f"no latency was measured for the pipeline of {batch_key}", allowed=", ".join(map(str, self.curves))
            )
        return min(same_pipeline, key=lambda key: max(key.pixels / batch_key.pixels, batch_key.pixels / key.pixels))

    def _slowdown(self, batch_key: BatchKey) -> float:
        return self.slowdowns.get(batch_key, 1.0)


def _retained_keys(keys: Iterable[BatchKey]) -> set[BatchKey]:
    """Return the batch keys (pipeline and image size) whose latency curves are kept when there are too many curves.

    The result is the first key of each pipeline, whose curve was measured, and the last `MAX_CURVES` / 2 keys.

    Args:
        keys: the batch keys of all curves, in the order in which they were added.
    """
    first: dict[str, BatchKey] = {}
    for key in keys:
        first.setdefault(key.pipeline, key)
    return {*first.values(), *list(keys)[-MAX_CURVES // 2 :]}
