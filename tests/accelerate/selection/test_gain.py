"""Gains over the baseline: closed forms for each goal."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.records.candidate import PIPELINE, Candidate
from stillhouse.accelerate.records.report import GOALS, Goal
from stillhouse.accelerate.selection.gain import beats_baseline, best_batch, goal_gain, rounded_peak, speed_ratio
from stillhouse.measure.clock import Ratio
from tests.accelerate.trials import make_trial

MIB = 1 << 20
BASELINE = make_trial("reference", 1.0, peak_bytes=1000 * MIB, batch={"1": 1.0, "8": 0.5})
POSITIVE = st.floats(0.01, 100)


def test_latency_gains_as_much_as_one_call_is_faster() -> None:
    assert goal_gain(make_trial("a", ratio=Ratio(2.0, 1.5, 2.5)), BASELINE, "latency") == Ratio(2.0, 1.5, 2.5)


@pytest.mark.parametrize("goal", ["throughput", "cost"])
def test_throughput_gains_at_the_best_batch_with_the_relative_interval_of_one_call(goal: Goal) -> None:
    trial = make_trial("a", ratio=Ratio(2.0, 1.5, 3.0), batch={"1": 0.4, "4": 0.125, "16": 0.01})
    assert goal_gain(trial, BASELINE, goal) == pytest.approx(Ratio(4.0, 3.0, 6.0)), "0.5 s / 0.125 s; 16 is too large"
    alone = replace(BASELINE, batch={})
    assert goal_gain(replace(trial, batch={}), alone, goal) == Ratio(2.0, 1.5, 3.0)
    assert goal_gain(replace(trial, batch={}), BASELINE, goal) is None
    assert goal_gain(trial, alone, goal) is None


@pytest.mark.parametrize(("peak", "is_gain"), [(979, True), (980, False), (1000, False), (1020, False)])
def test_less_memory_is_a_gain_beyond_two_percent(peak: int, is_gain: bool) -> None:
    trial = make_trial("a", 0.5, peak_bytes=peak * MIB)
    gain = goal_gain(trial, BASELINE, "memory")
    assert gain and gain.value == pytest.approx(1000 / peak) and gain.low == pytest.approx(980 / peak)
    assert beats_baseline(trial, BASELINE, "memory") == is_gain


def test_of_little_memory_a_megabyte_is_noise() -> None:
    small = replace(BASELINE, peak_bytes=10 * MIB)
    assert not beats_baseline(make_trial("a", peak_bytes=9 * MIB), small, "memory")
    assert beats_baseline(make_trial("a", peak_bytes=9 * MIB - 1), small, "memory")


def test_what_was_not_measured_is_no_gain() -> None:
    bare = make_trial("a", ratio=None, peak_bytes=None)
    assert all(goal_gain(bare, BASELINE, goal) is None for goal in GOALS)
    assert not any(beats_baseline(bare, BASELINE, goal) for goal in GOALS)
    assert speed_ratio(bare) is None and best_batch(bare) is None


def test_peaks_of_pipelines_are_counted_in_units_of_64_mib() -> None:
    pipeline = make_trial("", candidate=Candidate(PIPELINE, "stillhouse", "sampling"), peak_bytes=65 * MIB)
    assert rounded_peak(pipeline) == 2 and rounded_peak(replace(pipeline, peak_bytes=None)) == float("inf")
    assert rounded_peak(make_trial("a", peak_bytes=5)) == 5


@given(
    st.tuples(POSITIVE, POSITIVE, POSITIVE), st.dictionaries(st.sampled_from("1248"), POSITIVE), st.integers(1, 9999)
)
def test_an_interval_contains_its_value(ratio: tuple[float, float, float], batch: dict[str, float], peak: int) -> None:
    trial = make_trial("a", ratio=Ratio(*ratio), batch=batch, peak_bytes=peak * MIB)
    for goal in GOALS:
        gain = goal_gain(trial, BASELINE, goal)
        assert gain is None or gain.low <= gain.value <= gain.high
        assert not beats_baseline(trial, BASELINE, goal) or (gain and gain.low > 1)
