"""The gain of a measured candidate over the baseline, for each goal of the choice, with its interval."""

import math

from stillhouse.accelerate.evaluation.batch_scaling import CPU_BATCH_SIZES
from stillhouse.accelerate.records.candidate import PIPELINE
from stillhouse.accelerate.records.report import Goal
from stillhouse.accelerate.records.trial import Trial
from stillhouse.measure.clock import Ratio

MEMORY_NOISE, MIN_MEMORY_NOISE_BYTES = 0.02, 1 << 20
"""Peak memory of equal processes differs by less than this share, or by less than these bytes."""
_PIPELINE_MEMORY_UNIT = 64 << 20
"""Peak memory of whole pipelines is rounded up to a multiple of these bytes before pipelines are compared."""


def goal_gain(trial: Trial, baseline: Trial, goal: Goal) -> Ratio | None:
    """Return how many times better a candidate is than the baseline for a goal, with its 95 % interval.

    For the goal latency, this is the speed-up of one call. For throughput and cost, this is the ratio of samples per
    second, each at its best batch size (see `best_batch`). Batches are not timed in pairs, so the ends of the interval
    are taken from the speed-up of one call: they have the same relative distance from the value. Where neither was
    timed in batches, the speed-up of one call is returned. For memory, this is the ratio of peak memory; the interval
    contains the noise of the baseline's peak.

    Args:
        trial, baseline: measurements of the candidate and of the baseline.
        goal: what the choice optimizes.

    Returns:
        the gain, above 1 if the candidate is better; None where it was not measured.
    """
    if goal == "memory":
        return _memory_gain(trial, baseline)
    ratio = speed_ratio(trial)
    if goal == "latency" or ratio is None or not (trial.batch or baseline.batch):
        return ratio
    best, baseline_best = best_batch(trial), best_batch(baseline)
    if best is None or baseline_best is None:
        return None
    value = baseline_best[1] / best[1]
    return Ratio(value, value * (ratio.low / ratio.value), value * (ratio.high / ratio.value))


def beats_baseline(trial: Trial, baseline: Trial, goal: Goal) -> bool:
    """Return whether a candidate is better than the baseline for a goal beyond doubt.

    This is the case where the lower end of the gain's interval is above 1. The memory of whole pipelines must also be
    less after rounding, see `rounded_peak`.

    Args:
        trial, baseline: measurements of the candidate and of the baseline.
        goal: what the choice optimizes.
    """
    gain = goal_gain(trial, baseline, goal)
    is_less = goal != "memory" or rounded_peak(trial) < rounded_peak(baseline)
    return gain is not None and gain.low > 1 and is_less


def speed_ratio(trial: Trial) -> Ratio | None:
    """Return the speed-up of a candidate's call over the baseline's, with an interval that contains the value.

    The bootstrap of few rounds may give an interval beside the value, which is then extended to the value. The result
    is None where the candidate was not timed.
    """
    ratio = trial.ratio
    return ratio and Ratio(ratio.value, min(ratio.low, ratio.value), max(ratio.high, ratio.value))


def best_batch(trial: Trial) -> tuple[int, float] | None:
    """Return the batch size at which a candidate needs the fewest seconds per sample, and these seconds.

    Only batch sizes up to the largest of CPU_BATCH_SIZES count, because larger ones are timed on GPUs only. The result
    is None where the candidate was not timed in such a batch.
    """
    seconds = {int(rows): value for rows, value in trial.batch.items() if int(rows) <= CPU_BATCH_SIZES[-1]}
    return min(seconds.items(), key=lambda pair: (pair[1], pair[0]), default=None)


def rounded_peak(trial: Trial) -> float:
    """Return the peak memory by which candidates are compared: infinity where it was not measured.

    The result is in bytes for a network. For a whole pipeline, the peak is rounded up to whole units of 64 MiB, and the
    result is their number. Peaks of pipelines that differ only by noise then become equal: pipelines that differ only
    in sampling options run the same networks.
    """
    peak = float(trial.peak_bytes or math.inf)
    if trial.candidate.component == PIPELINE and math.isfinite(peak):
        return math.ceil(peak / _PIPELINE_MEMORY_UNIT)
    return peak


def _memory_gain(trial: Trial, baseline: Trial) -> Ratio | None:
    if not trial.peak_bytes or not baseline.peak_bytes:
        return None
    noise = max(MEMORY_NOISE * baseline.peak_bytes, MIN_MEMORY_NOISE_BYTES)
    peaks = (baseline.peak_bytes, max(0.0, baseline.peak_bytes - noise), baseline.peak_bytes + noise)
    return Ratio(*(peak / trial.peak_bytes for peak in peaks))
