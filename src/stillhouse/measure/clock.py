"""Two or more ways to do the same thing, timed fairly: in turns, and compared round by round.

A machine's speed drifts within minutes, so seconds that were taken one after the other say little; the ratio of
two neighbours in time says much.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of several runs: median, 95th percentile, and the least."""

    median: float
    p95: float
    least: float
    runs: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster: the middle of paired ratios with its 95 % bootstrap interval, see `paired_ratio`."""

    value: float
    low: float
    high: float


def run_interleaved(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every subject once a round, `rounds` times.

    Each subject returns the seconds of its own run. The order turns round with every round, so that no subject
    always follows the same neighbour.

    >>> alternate({"one": lambda: 1.0, "two": lambda: 2.0}, rounds=2)
    {'one': [1.0, 1.0], 'two': [2.0, 2.0]}
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds):
        for name in list(timers)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timers[name]())
    return seconds


def summarise(seconds: Sequence[float]) -> Timing:
    """Median, 95th percentile and least of several runs."""
    values = np.asarray(seconds, np.float64)
    return Timing(float(np.median(values)), float(np.quantile(values, 0.95)), float(values.min()), len(values))


def paired_ratio(slow: Sequence[float], fast: Sequence[float], resamples: int = 2000) -> Ratio:
    """How many times `fast` is faster than `slow`, from runs that were taken in the same rounds.

    The geometric mean of the rounds' ratios without the lowest and the highest fifth (the trimmed mean: Tukey 1960). A
    shared machine has two speeds rather than one and changes between them, where the median jumps from the one to the
    other: over the same rounds of small networks it varied by a quarter more. The interval is the percentile bootstrap
    over rounds (Efron 1979), with a fixed seed.

    >>> paired_ratio([2.0, 4.0], [1.0, 2.0])
    Ratio(value=2.0, low=2.0, high=2.0)
    """
    ratios = np.log2(np.asarray(slow, np.float64) / np.asarray(fast, np.float64))
    drawn = np.random.default_rng(0).choice(ratios, size=(resamples, len(ratios)))
    low, high = np.quantile(_trimmed_mean(drawn), (0.025, 0.975))
    return Ratio(float(np.exp2(_trimmed_mean(ratios))), float(np.exp2(low)), float(np.exp2(high)))


def _trimmed_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean along the last axis without the lowest and the highest fifth."""
    cut = values.shape[-1] // 5
    middle: NDArray[np.float64] = np.sort(values)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle
