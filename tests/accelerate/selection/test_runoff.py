"""Finalists: accepted trials that may be the fastest, limited in number and by memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Self, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.evaluation.candidate_messages import Open, TimeCalls
from stillhouse.accelerate.evaluation.candidate_process import CandidateProcess
from stillhouse.accelerate.evaluation.context import BaselineRun, EvaluationContext
from stillhouse.accelerate.evaluation.latency import FINAL_BUDGET, TimingBudget
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.records.trial import Status, Trial
from stillhouse.accelerate.selection.choose import best_trial
from stillhouse.accelerate.selection.runoff import (
    BASELINE_KEY,
    MAX_FINALISTS,
    final_seconds,
    repeat_finals,
    select_finalists,
    time_rounds,
    time_side_by_side,
)
from stillhouse.measure.clock import Ratio, Timing
from tests.accelerate.trials import make_trial

STATUSES: tuple[Status, ...] = ("accepted", "rejected", "failed", "excluded", "skipped")
MIB = 1 << 20


@st.composite
def measured(draw: st.DrawFn) -> list[Trial]:
    """Trials of every status whose ratios are close, so that their intervals often overlap."""
    trials = []
    for number in range(draw(st.integers(0, 8))):
        ratio, spread = draw(st.floats(0.8, 1.6)), draw(st.floats(0.0, 0.2))
        trial = make_trial(
            f"engine {number}",
            sqnr=draw(st.floats(20, 99)),
            status=draw(st.sampled_from((*STATUSES, "accepted", "accepted"))),
            peak_bytes=draw(st.none() | st.integers(1, 500)),
        )
        measured = Ratio(ratio, ratio * (1 - spread), ratio * (1 + spread))
        trials.append(replace(trial, ratio=draw(st.sampled_from((measured, measured, measured, None)))))
    return trials


def value(trial: Trial) -> float:
    assert trial.ratio
    return trial.ratio.value


def reaching(trials: list[Trial]) -> list[Trial]:
    """Accepted trials whose interval ends above the start of the fastest one's, or within 5 % of it."""
    best = best_trial(trials, "latency")
    if best is None or best.ratio is None:
        return []
    minimum = min(best.ratio.low, 0.95 * best.ratio.value)
    return [trial for trial in trials if trial.status == "accepted" and trial.ratio and trial.ratio.high >= minimum]


def together(trials: list[Trial]) -> int:
    return sum(trial.peak_bytes or 0 for trial in trials)


@given(trials=measured(), memory=st.none() | st.integers(-100, 1500))
def test_finalists_are_accepted_near_the_fastest_and_few(trials: list[Trial], memory: int | None) -> None:
    finalists = select_finalists(trials, memory)
    near = reaching(trials)
    assert bool(finalists) == any(trial.status == "accepted" and trial.ratio for trial in trials)
    assert all(trial in near for trial in finalists)
    assert len(finalists) <= MAX_FINALISTS
    assert memory is None or len(finalists) <= 1 or together(finalists) <= memory
    assert [value(trial) for trial in finalists] == sorted((value(trial) for trial in near), reverse=True)[
        : len(finalists)
    ]


@given(trials=measured(), memory=st.none() | st.integers(-100, 1500))
def test_who_may_be_the_fastest_is_left_out_only_for_the_number_or_the_memory(
    trials: list[Trial], memory: int | None
) -> None:
    finalists = select_finalists(trials, memory)
    omitted = [trial for trial in reaching(trials) if trial not in finalists]
    if omitted and len(finalists) < MAX_FINALISTS:
        assert memory is not None
        assert together([*finalists, max(omitted, key=value)]) > memory


@pytest.mark.parametrize(
    ("memory", "names"),
    [
        (None, ["first", "second", "third", "fourth"]),
        (601 * MIB, ["first", "second", "third", "fourth"]),
        (600 * MIB, ["first", "second", "third"]),
        (599 * MIB, ["first", "second"]),
        (299 * MIB, ["first"]),
        (1, ["first"]),
    ],
)
def test_the_slowest_give_way_where_memory_is_short(memory: int | None, names: list[str]) -> None:
    peaks = {"third": 300, "first": 100, "fifth": 1, "fourth": 1, "second": 200}
    speeds = {"first": 1.5, "second": 1.48, "third": 1.46, "fourth": 1.45, "fifth": 1.44}
    trials = [make_trial(name, speeds[name], peak_bytes=peak * MIB) for name, peak in peaks.items()]
    assert [trial.candidate.backend for trial in select_finalists(trials, memory)] == names


def test_who_is_clearly_slower_or_not_accepted_is_no_finalist() -> None:
    near, far = make_trial("near", 1.9), make_trial("far", 1.5)
    faster = [make_trial(status, 5.0, status=status) for status in STATUSES if status != "accepted"]
    assert select_finalists([far, *faster, near, make_trial("fast", 2.0)]) == [make_trial("fast", 2.0), near]
    assert select_finalists(faster) == []


def compared(truth: dict[str, float], contests: list[list[str]]) -> Callable[[Sequence[Trial]], dict[str, list[float]]]:
    """A comparison that returns true speeds and records its participants."""

    def compare(finalists: Sequence[Trial]) -> dict[str, list[float]]:
        contests.append([trial.candidate.backend for trial in finalists])
        timings = {trial.candidate.key: [1 / truth[trial.candidate.backend]] * 3 for trial in finalists}
        return {BASELINE_KEY: [1.0] * 3, **timings}

    return compare


def test_who_leads_because_the_finalists_fell_back_has_a_final_too() -> None:
    short_ratios = {"lucky": 2.2, "b": 2.15, "c": 2.14, "d": 2.13, "fifth": 2.05}
    truth = {"lucky": 1.7, "b": 1.9, "c": 2.0, "d": 1.95, "fifth": 1.8}
    contests: list[list[str]] = []
    timed = repeat_finals([make_trial(name, ratio) for name, ratio in short_ratios.items()], compared(truth, contests))
    assert contests == [["lucky", "b", "c", "d"], ["fifth", "c", "d"]]
    assert {trial.candidate.backend: round(value(trial), 9) for trial in timed} == truth
    assert max(timed, key=value).candidate.backend == "c"


def test_one_final_is_enough_where_its_winner_leads_everyone() -> None:
    short_ratios = {"a": 2.2, "b": 2.1, "slow": 1.2}
    contests: list[list[str]] = []
    timed = repeat_finals(
        [make_trial(name, ratio) for name, ratio in short_ratios.items()], compared({"a": 2.0, "b": 1.5}, contests)
    )
    assert contests == [["a", "b"]]
    assert [round(value(trial), 9) for trial in timed] == [2.0, 1.5]


def test_nothing_to_decide_means_no_final() -> None:
    contests: list[list[str]] = []
    assert repeat_finals([make_trial("a", 2.0), make_trial("slow", 1.0)], compared({}, contests)) == []
    assert repeat_finals([], compared({}, contests)) == []
    assert contests == []


def test_without_time_for_another_final_the_first_one_counts() -> None:
    contests: list[list[str]] = []
    first = compared({"lucky": 1.5, "b": 1.9, "c": 1.6, "d": 1.6}, contests)

    def compare(finalists: Sequence[Trial]) -> dict[str, list[float]]:
        return {} if contests else first(finalists)

    short_ratios = {"lucky": 2.2, "b": 2.15, "c": 2.14, "d": 2.13, "fifth": 2.05}
    timed = repeat_finals([make_trial(name, ratio) for name, ratio in short_ratios.items()], compare)
    assert {trial.candidate.backend for trial in timed} == {"lucky", "b", "c", "d"}


def test_who_could_not_be_opened_is_not_tried_again() -> None:
    contests: list[list[str]] = []

    def compare(finalists: Sequence[Trial]) -> dict[str, list[float]]:
        contests.append([trial.candidate.backend for trial in finalists])
        return {
            BASELINE_KEY: [1.0],
            **{trial.candidate.key: [0.5] for trial in finalists if trial.candidate.backend != "gone"},
        }

    timed = repeat_finals([make_trial("gone", 2.2), make_trial("a", 2.1)], compare)
    assert contests == [["gone", "a"]]
    assert [trial.candidate.backend for trial in timed] == ["a"]


def steadily(seconds: float, number: int) -> float:
    """Return the same seconds in every round."""
    return seconds


class Clock:
    """A clock that only the calls move, and who called in which order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def timer(self, name: str, seconds: Callable[[int], float]) -> Callable[[int], float]:
        """Return a timer with `seconds(round)` per call; its two warm-up rounds take one second per call."""
        rounds = iter(range(-2, 10_000))

        def run(calls: int) -> float:
            number = next(rounds)
            elapsed = calls * (seconds(number) if number >= 0 else 1.0)
            self.now += elapsed
            self.order.append(name)
            return elapsed

        return run


def test_a_contest_ends_as_soon_as_the_fastest_is_known() -> None:
    clock = Clock()
    timers = {
        name: clock.timer(name, partial(steadily, s)) for name, s in {BASELINE_KEY: 2.0, "one": 1.0, "two": 1.5}.items()
    }
    seconds = time_rounds(timers, FINAL_BUDGET, clock)
    assert seconds == {
        BASELINE_KEY: [2.0] * FINAL_BUDGET.min_rounds,
        "one": [1.0] * FINAL_BUDGET.min_rounds,
        "two": [1.5] * FINAL_BUDGET.min_rounds,
    }


def test_each_round_has_everyone_once_and_the_next_one_turns_round() -> None:
    clock = Clock()
    timers = {name: clock.timer(name, lambda number: 1.0) for name in (BASELINE_KEY, "one", "two")}
    time_rounds(timers, TimingBudget(min_rounds=3, max_rounds=3, seconds=1000.0), clock)
    there, back = [BASELINE_KEY, "one", "two"], ["two", "one", BASELINE_KEY]
    assert clock.order[6:] == [*there, *back, *there]


@pytest.mark.parametrize(("width", "rounds"), [(0.05, 9), (0.2, 4)])
def test_it_goes_on_while_a_rival_may_be_faster_by_more_than_the_width(width: float, rounds: int) -> None:
    clock = Clock()
    timers = {
        BASELINE_KEY: clock.timer(BASELINE_KEY, lambda number: 2.0),
        "steady": clock.timer("steady", lambda number: 1.0),
        "unsteady": clock.timer("unsteady", lambda number: 1.1 if number % 2 else 0.9),
    }
    seconds = time_rounds(timers, TimingBudget(min_rounds=4, max_rounds=9, interval_width=width, seconds=1000.0), clock)
    assert {len(timings) for timings in seconds.values()} == {rounds}


def test_a_contest_that_is_late_still_has_three_rounds() -> None:
    clock = Clock()
    timers = {name: clock.timer(name, lambda number: 60.0 + number) for name in (BASELINE_KEY, "one")}
    assert len(time_rounds(timers, replace(FINAL_BUDGET, seconds=1.0), clock)["one"]) == 3


class Opened:
    """A process that takes a second for each call, or now more and now less."""

    count = 0
    seconds: Sequence[float] = (1.0,)

    def __init__(self, task: CandidateTask, *arguments: Any) -> None:
        self.task, self.rounds = task, cycle(self.seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def call(self, command: Any, timeout: float) -> float | None:
        Opened.count += isinstance(command, Open)
        return command.calls * next(self.rounds) if isinstance(command, TimeCalls) else None


@pytest.mark.parametrize(
    ("seconds", "first_seconds", "openings"),
    [(None, None, 3), (2.0, 2.0, 3), (2.6, 2.6, 1), (None, 4.9, 3), (4.9, None, 3), (0.0, 5.1, 1)],
)
def test_who_opens_quickly_is_opened_three_times_and_timed_as_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None, first_seconds: float | None, openings: int
) -> None:
    monkeypatch.setattr("stillhouse.accelerate.selection.runoff.CandidateProcess", Opened)
    monkeypatch.setattr(Opened, "count", 0)
    context = EvaluationContext(tmp_path, tmp_path, tmp_path / "model.onnx", tmp_path / "probes.npz", Bounds())
    baseline, quick = make_trial("baseline"), make_trial("quick")
    other = make_trial("other", open_seconds=seconds, first_seconds=first_seconds)
    process = cast(CandidateProcess, Opened(context.make_task(baseline.candidate)))
    timings = time_side_by_side([baseline, quick, other], context, BaselineRun(process, ()), FINAL_BUDGET)
    assert Opened.count == 2 * openings
    assert timings == {
        key: [1.0] * FINAL_BUDGET.min_rounds for key in (BASELINE_KEY, quick.candidate.key, other.candidate.key)
    }


def test_all_openings_of_a_final_that_decides_nothing_have_the_rounds_of_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.accelerate.selection.runoff.CandidateProcess", Opened)
    context = EvaluationContext(tmp_path, tmp_path, tmp_path / "model.onnx", tmp_path / "probes.npz", Bounds())
    process = cast(CandidateProcess, Opened(context.make_task(make_trial("baseline").candidate)))
    monkeypatch.setattr(Opened, "seconds", (0.8, 1.2))
    timings = time_side_by_side([make_trial("one"), make_trial("two")], context, BaselineRun(process, ()))
    assert {len(seconds) for seconds in timings.values()} == {FINAL_BUDGET.max_rounds}


def test_the_least_seconds_of_a_final_are_those_of_opening_and_three_rounds() -> None:
    slow = Timing(4.0, 4.0, 4.0, 3)
    pair = [make_trial(name, 1.0, seconds=slow, open_seconds=10.0, first_seconds=5.0) for name in ("one", "other")]
    pair = [replace(trial, baseline_seconds=slow) for trial in pair]
    assert final_seconds(pair) == 2 * 15 + 4 * (2 * 4 + 4)
    assert final_seconds(pair[:1]) == final_seconds([]) == 0
