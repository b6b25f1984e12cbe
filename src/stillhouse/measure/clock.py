"""Timing of several implementations in interleaved rounds, and their speed ratio.

The speed of a machine drifts within minutes. So times that were measured minutes apart cannot be compared. Two times of
the same round can be compared, and the result is a mean of their ratios over all rounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of several runs: median, 95th percentile and minimum, and the number of runs."""

    median: float
    p95: float
    least: float
    runs: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one implementation is than another, with the bounds of the 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def run_interleaved(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every timer once in each round, and return the seconds of each timer in the order of the rounds.

    The order is reversed in every other round, so that no timer always runs after the same other timer.

    Args:
        timers: functions by name; each performs one run and returns the seconds of that run.
        rounds: number of calls of each timer.

    >>> run_interleaved({"one": lambda: 1.0, "two": lambda: 2.0}, rounds=2)
    {'one': [1.0, 1.0], 'two': [2.0, 2.0]}
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for round_index in range(rounds):
        for name in list(timers)[:: -1 if round_index % 2 else 1]:
            seconds[name].append(timers[name]())
    return seconds


def summarise(seconds: Sequence[float]) -> Timing:
    """Return median, 95th percentile and minimum of the seconds of several runs."""
    values = np.asarray(seconds, np.float64)
    return Timing(float(np.median(values)), float(np.quantile(values, 0.95)), float(values.min()), len(values))


def paired_ratio(slow: Sequence[float], fast: Sequence[float], resamples: int = 2000) -> Ratio:
    """Return how many times faster `fast` is than `slow`, from seconds measured in the same rounds.

    Each round gives one ratio, slow / fast. The value is the geometric mean of these ratios without the lowest and the
    highest fifth (trimmed mean: Tukey 1960). The median is not used, because shared machines change between two speeds
    and the median jumps from one speed to the other: for small networks, the median varied by a quarter more than this
    mean. The interval is the percentile bootstrap over rounds (Efron 1979) with a fixed seed.

    Args:
        slow, fast: seconds of one run in each round; both in the order of the rounds.
        resamples: number of bootstrap samples.

    >>> paired_ratio([2.0, 4.0], [1.0, 2.0])
    Ratio(value=2.0, low=2.0, high=2.0)
    """
    ratios = np.log2(np.asarray(slow, np.float64) / np.asarray(fast, np.float64))
    samples = np.random.default_rng(0).choice(ratios, size=(resamples, len(ratios)))
    low, high = np.quantile(_trimmed_mean(samples), (0.025, 0.975))
    return Ratio(float(np.exp2(_trimmed_mean(ratios))), float(np.exp2(low)), float(np.exp2(high)))


def _trimmed_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each row along the last axis, without the lowest and the highest fifth of its values."""
    cut = values.shape[-1] // 5
    middle: NDArray[np.float64] = np.sort(values)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle
