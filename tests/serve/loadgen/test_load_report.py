"""Load report on results with known times."""

import pytest

from stillhouse.serve.loadgen.http_client import CUT_OFF, ResponseStatus
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.load_report import ALL, find_warnings, make_load_report, summarize_by_class
from stillhouse.serve.loadgen.request_class import RequestClass
from stillhouse.serve.loadgen.send import RequestResult

KINDS = {"free": RequestClass("free", 0.8, "free"), "pro": RequestClass("pro", 0.2, "pro")}
ALONE = {"free": 1.0, "pro": 10.0}


def answer(
    request_class: str, seconds: float, status: ResponseStatus = 200, at: float = 0.0, row: str = "", late: float = 0.0
) -> RequestResult:
    shot = ScheduledRequest(at, KINDS[request_class], 0, "", row or request_class)
    return RequestResult(
        shot, at + late, at + seconds, status, status == 200, "" if status == 200 else f"said {status}"
    )


def test_percentiles_are_of_successful_requests() -> None:
    (row, _) = summarize_by_class([answer("free", float(number)) for number in range(101)], ALONE, slo=3.0)
    assert (row.p50, row.p90, row.p99, row.mean) == (50.0, 90.0, 99.0, 50.0)


def test_goodput_is_the_share_of_sent_requests_within_the_target() -> None:
    answers = [
        *(answer("free", seconds) for seconds in (2.0, 3.0, 3.1)),
        answer("free", 0.1, 503),
        answer("pro", 29.0),
        answer("pro", 40.0),
    ]
    free, pro, everything = summarize_by_class(answers, ALONE, slo=3.0)
    assert (free.request_class, pro.request_class, everything.request_class) == ("free", "pro", ALL)
    assert (free.latency_target, pro.latency_target, everything.latency_target) == (3.0, 30.0, None)
    assert (free.goodput, pro.goodput, everything.goodput) == (0.5, 0.5, 0.5)
    assert [free.goodput_per_second, pro.goodput_per_second] == pytest.approx([2 / 40, 1 / 40])
    assert everything.goodput_per_second == pytest.approx(3 / 40)


def test_rejections_and_errors_are_counted_by_status() -> None:
    statuses: list[ResponseStatus] = [200, 200, 429, 429, 503, 500, CUT_OFF]
    (row, _) = summarize_by_class([answer("free", 1.0, status) for status in statuses], ALONE, slo=3.0)
    assert (row.sent, row.answered, row.rejected) == (7, 2, 3)
    assert row.errors == {"429": 2, "500": 1, "503": 1, CUT_OFF: 1}


def test_flood_has_its_own_row_with_the_target_of_its_class() -> None:
    rows = summarize_by_class([answer("pro", 5.0), answer("pro", 300.0, row="pro, flood")], ALONE, slo=3.0)
    assert [(row.request_class, row.sent, row.latency_target, row.goodput) for row in rows[:2]] == [
        ("pro", 1, 30.0, 1.0),
        ("pro, flood", 1, 30.0, 0.0),
    ]


def test_rows_without_responses_or_requests() -> None:
    (row, _) = summarize_by_class([answer("free", 1.0, 500)], ALONE, slo=3.0)
    assert (row.p50, row.p99, row.mean, row.goodput) == (None, None, None, 0.0)
    (everything,) = summarize_by_class([], ALONE, slo=3.0)
    assert (everything.sent, everything.goodput, everything.goodput_per_second) == (0, 0.0, 0.0)


def test_report_has_send_delay_cpu_share_and_errors() -> None:
    answers = [answer("free", 1.0, at=9.0, late=0.004), answer("free", 1.0, 500, at=1.0, late=0.002)]
    about = {"url": "http://here", "protocol": "openai", "rate": 2.0, "load": 0.5, "isolated_seconds": ALONE}
    report = make_load_report(answers, **about, slo=3.0, cpu_seconds=1.0)  # type: ignore[arg-type]
    assert report.seconds == 10.0
    assert report.cpu_share == pytest.approx(0.1)
    assert [report.send_delay_mean, report.send_delay_max] == pytest.approx([0.003, 0.004])
    assert report.error_bodies == {"500": "said 500"}
    assert report.warnings == ()


def test_late_or_busy_load_generator_gives_warnings() -> None:
    assert find_warnings(send_delay=0.010, cpu_share=0.5) == ()
    assert ["12 ms late" in doubt for doubt in find_warnings(send_delay=0.012, cpu_share=0.1)] == [True]
    assert ["70% of a core" in doubt for doubt in find_warnings(send_delay=0.0, cpu_share=0.7)] == [True]
