"""The finalists: accepted trials that may be the fastest, no more than are worth it, and no more than memory holds."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.choose import best_of
from stillhouse.accelerate.final import MOST, finalists
from stillhouse.accelerate.trial import Status, Trial
from stillhouse.measure.clock import Ratio
from tests.accelerate.trials import trial

STATUSES: tuple[Status, ...] = ("accepted", "rejected", "failed", "excluded", "skipped")
MIB = 1 << 20


@st.composite
def measured(draw: st.DrawFn) -> list[Trial]:
    """Trials of every status whose ratios lie near each other, so that their intervals often overlap."""
    made = []
    for number in range(draw(st.integers(0, 8))):
        ratio, spread = draw(st.floats(0.8, 1.6)), draw(st.floats(0.0, 0.2))
        one = trial(
            f"engine {number}",
            sqnr=draw(st.floats(20, 99)),
            status=draw(st.sampled_from((*STATUSES, "accepted", "accepted"))),
            peak_bytes=draw(st.none() | st.integers(1, 500)),
        )
        measured = Ratio(ratio, ratio * (1 - spread), ratio * (1 + spread))
        made.append(replace(one, ratio=draw(st.sampled_from((measured, measured, measured, None)))))
    return made


def value(one: Trial) -> float:
    assert one.ratio
    return one.ratio.value


def reaching(trials: list[Trial]) -> list[Trial]:
    """The accepted ones whose intervals end no lower than the fastest one's begins, or within a twentieth of it."""
    best = best_of(trials, "latency")
    if best is None or best.ratio is None:
        return []
    least = min(best.ratio.low, 0.95 * best.ratio.value)
    return [one for one in trials if one.status == "accepted" and one.ratio and one.ratio.high >= least]


def together(trials: list[Trial]) -> int:
    return sum(one.peak_bytes or 0 for one in trials)


@given(trials=measured(), memory=st.none() | st.integers(-100, 1500))
def test_finalists_are_accepted_near_the_fastest_and_few(trials: list[Trial], memory: int | None) -> None:
    found = finalists(trials, memory)
    near = reaching(trials)
    assert bool(found) == any(one.status == "accepted" and one.ratio for one in trials)
    assert all(one in near for one in found)
    assert len(found) <= MOST
    assert memory is None or len(found) <= 1 or together(found) <= memory
    assert [value(one) for one in found] == sorted((value(one) for one in near), reverse=True)[: len(found)]


@given(trials=measured(), memory=st.none() | st.integers(-100, 1500))
def test_who_may_be_the_fastest_is_left_out_only_for_the_number_or_the_memory(
    trials: list[Trial], memory: int | None
) -> None:
    found = finalists(trials, memory)
    out = [one for one in reaching(trials) if one not in found]
    if out and len(found) < MOST:
        assert memory is not None
        assert together([*found, max(out, key=value)]) > memory


@pytest.mark.parametrize(
    ("memory", "names"),
    [
        (None, ["first", "second", "third"]),
        (600 * MIB, ["first", "second", "third"]),
        (599 * MIB, ["first", "second"]),
        (299 * MIB, ["first"]),
        (1, ["first"]),
    ],
)
def test_the_slowest_give_way_where_memory_is_short(memory: int | None, names: list[str]) -> None:
    peaks = {"third": 300, "first": 100, "fourth": 1, "second": 200}
    speeds = {"first": 1.5, "second": 1.48, "third": 1.46, "fourth": 1.44}
    trials = [trial(name, speeds[name], peak_bytes=peak * MIB) for name, peak in peaks.items()]
    assert [one.candidate.backend for one in finalists(trials, memory)] == names


def test_who_is_clearly_slower_or_not_accepted_is_no_finalist() -> None:
    near, far = trial("near", 1.9), trial("far", 1.5)
    faster = [trial(status, 5.0, status=status) for status in STATUSES if status != "accepted"]
    assert finalists([far, *faster, near, trial("fast", 2.0)]) == [trial("fast", 2.0), near]
    assert finalists(faster) == []
