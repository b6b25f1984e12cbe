"""The report's arithmetic, on answers whose times are known."""

import pytest

from stillhouse.serve.loadgen.http_client import CUT_OFF, Status
from stillhouse.serve.loadgen.load_plan import Shot
from stillhouse.serve.loadgen.load_report import ALL, doubts_of, report_of, rows_of
from stillhouse.serve.loadgen.request_class import Kind
from stillhouse.serve.loadgen.send import Answer

KINDS = {"free": Kind("free", 0.8, "free"), "pro": Kind("pro", 0.2, "pro")}
ALONE = {"free": 1.0, "pro": 10.0}


def answer(
    kind: str, seconds: float, status: Status = 200, at: float = 0.0, row: str = "", late: float = 0.0
) -> Answer:
    shot = Shot(at, KINDS[kind], 0, "", row or kind)
    return Answer(shot, at + late, at + seconds, status, status == 200, "" if status == 200 else f"said {status}")


def test_percentiles_are_those_of_what_was_answered() -> None:
    (row, _) = rows_of([answer("free", float(number)) for number in range(101)], ALONE, slo=3.0)
    assert (row.p50, row.p90, row.p99, row.mean) == (50.0, 90.0, 99.0, 50.0)


def test_an_answer_is_good_within_the_promise_of_its_kind_and_counts_among_all_that_were_sent() -> None:
    answers = [
        *(answer("free", seconds) for seconds in (2.0, 3.0, 3.1)),
        answer("free", 0.1, 503),
        answer("pro", 29.0),
        answer("pro", 40.0),
    ]
    free, pro, everything = rows_of(answers, ALONE, slo=3.0)
    assert (free.kind, pro.kind, everything.kind) == ("free", "pro", ALL)
    assert (free.promise, pro.promise, everything.promise) == (3.0, 30.0, None)
    assert (free.goodput, pro.goodput, everything.goodput) == (0.5, 0.5, 0.5)
    assert [free.good_per_second, pro.good_per_second] == pytest.approx([2 / 40, 1 / 40])
    assert everything.good_per_second == pytest.approx(3 / 40)


def test_refusals_and_errors_are_counted_by_status() -> None:
    statuses: list[Status] = [200, 200, 429, 429, 503, 500, CUT_OFF]
    (row, _) = rows_of([answer("free", 1.0, status) for status in statuses], ALONE, slo=3.0)
    assert (row.sent, row.answered, row.rejected) == (7, 2, 3)
    assert row.errors == {"429": 2, "500": 1, "503": 1, CUT_OFF: 1}


def test_a_flood_is_a_row_of_its_own_with_the_promise_of_its_kind() -> None:
    rows = rows_of([answer("pro", 5.0), answer("pro", 300.0, row="pro, flood")], ALONE, slo=3.0)
    assert [(row.kind, row.sent, row.promise, row.goodput) for row in rows[:2]] == [
        ("pro", 1, 30.0, 1.0),
        ("pro, flood", 1, 30.0, 0.0),
    ]


def test_nothing_answered_has_no_percentiles_and_nothing_sent_no_rows_but_the_last() -> None:
    (row, _) = rows_of([answer("free", 1.0, 500)], ALONE, slo=3.0)
    assert (row.p50, row.p99, row.mean, row.goodput) == (None, None, None, 0.0)
    (everything,) = rows_of([], ALONE, slo=3.0)
    assert (everything.sent, everything.goodput, everything.good_per_second) == (0, 0.0, 0.0)


def test_the_report_tells_of_itself() -> None:
    answers = [answer("free", 1.0, at=9.0, late=0.004), answer("free", 1.0, 500, at=1.0, late=0.002)]
    about = {"url": "http://here", "protocol": "openai", "rate": 2.0, "load": 0.5, "alone": ALONE}
    report = report_of(answers, **about, slo=3.0, processor=1.0)  # type: ignore[arg-type]
    assert report.seconds == 10.0
    assert report.processor == pytest.approx(0.1)
    assert [report.late_mean, report.late_most] == pytest.approx([0.003, 0.004])
    assert report.said == {"500": "said 500"}
    assert report.doubts == ()


def test_a_measurement_that_was_late_or_busy_is_in_doubt() -> None:
    assert doubts_of(late=0.010, processor=0.5) == ()
    assert ["12 ms late" in doubt for doubt in doubts_of(late=0.012, processor=0.1)] == [True]
    assert ["70% of a core" in doubt for doubt in doubts_of(late=0.0, processor=0.7)] == [True]
