"""Seconds per row by batch size: which sizes are timed, and when timing ends."""

from dataclasses import replace

import pytest

from stillhouse.accelerate.evaluation.batch_scaling import CPU_BATCH_SIZES, may_win_at_larger_batch, measure_batch_curve
from stillhouse.accelerate.evaluation.candidate_process import CandidateError
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.measure.clock import Timing
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from tests.accelerate.trials import make_trial

ANY = Candidate("denoiser", "onnxruntime")
ANY_ON_GPU = Candidate("denoiser", "torch", options={"device": "cuda"})
FIXED = Candidate("denoiser", "openvino", options={"shapes": "static"})
COMPILED = Candidate("denoiser", "torch", options={"device": "cuda", "compile": "regional", "shapes": "static"})
GRAPHS = Candidate("denoiser", "torch", options={"device": "cuda", "graphs": "cuda", "shapes": "static"})


class Rows:
    """A component whose rows get faster by a share when the batch doubles, up to a largest batch."""

    def __init__(self, gain: float, most: int = 1000) -> None:
        self.gain, self.most = gain, most
        self.calls: list[tuple[int, int]] = []

    def __call__(self, rows: int, calls: int) -> float:
        self.calls.append((rows, calls))
        if rows > self.most:
            raise CandidateError("too large")
        return float((1 - self.gain) ** rows.bit_length())


def timed(candidate: Candidate, rows: Rows, seconds: float = 0.01, opened: float = 0.1) -> list[int]:
    trial = make_trial("", candidate=candidate, seconds=Timing(seconds, seconds, seconds, 9), open_seconds=opened)
    return [int(size) for size in measure_batch_curve(trial, rows)]


def test_a_processor_is_asked_for_few_rows_and_a_gpu_for_many() -> None:
    assert timed(ANY, Rows(0.2)) == [*CPU_BATCH_SIZES]
    assert timed(ANY_ON_GPU, Rows(0.2)) == timed(GRAPHS, Rows(0.2)) == [*DEFAULT_SIZES]


def test_a_gpu_that_is_full_is_asked_no_more_and_a_processor_where_it_takes_long() -> None:
    assert timed(ANY_ON_GPU, Rows(0.01)) == [1, 2]
    assert timed(ANY, Rows(0.01)) == [*CPU_BATCH_SIZES]
    assert timed(ANY, Rows(0.01), seconds=5) == [1, 2]


def test_a_batch_that_fails_ends_the_curve() -> None:
    assert timed(ANY_ON_GPU, Rows(0.2, most=8)) == [1, 2, 4, 8]
    assert timed(ANY, Rows(0.2, most=0)) == []


@pytest.mark.parametrize(
    ("candidate", "opened", "sizes"),
    [(FIXED, 0.1, [8]), (FIXED, 9.0, []), (COMPILED, 30.0, [8]), (COMPILED, 300.0, [])],
)
def test_what_is_opened_for_each_size_is_asked_for_one(candidate: Candidate, opened: float, sizes: list[int]) -> None:
    """Where that is soon done, for a GPU: what compiles would else be compared at the few rows of a race."""
    assert timed(candidate, Rows(0.2), opened=opened) == sizes


@pytest.mark.parametrize(
    ("ratio", "seconds", "early_stop_ratio", "expected"),
    [(1.0, 0.1, 1.9, True), (1.0, 0.1, 2.2, False), (1.0, 5.0, 1.2, False)],
)
def test_who_is_a_little_behind_at_few_rows_may_be_ahead_at_many(
    ratio: float, seconds: float, early_stop_ratio: float, expected: bool
) -> None:
    trial = make_trial("", ratio, seconds=Timing(seconds, seconds, seconds, 9))
    assert may_win_at_larger_batch(trial, early_stop_ratio) == expected


def test_long_calls_are_timed_once_and_not_again_after_the_race() -> None:
    timing = Timing(6.0, 6.0, 6.0, 9)
    rows = Rows(0.2)
    curve = measure_batch_curve(make_trial("", candidate=ANY, seconds=timing, batch={"2": 3.0}), rows)
    assert rows.calls == [(1, 1)]
    assert curve == {"2": 3.0, "1": 0.8}, "two rows gain nothing: no larger batch is tried"
    measure_batch_curve(make_trial("", candidate=ANY, seconds=timing, batch={"2": 0.6}), rows)
    assert rows.calls[1:] == [(1, 1), (4, 1), (8, 1)]
    short = replace(timing, median=0.1)
    measure_batch_curve(make_trial("", candidate=ANY, seconds=short, batch={"2": 0.05}), rows)
    assert rows.calls[4:] == [(size, 3) for size in CPU_BATCH_SIZES], "as its neighbours are"
