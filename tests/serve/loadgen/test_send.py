"""Sending: open-loop, on time, with honest delays."""

import asyncio
import resource

import pytest

from stillhouse.serve.loadgen.http_client import HttpResponse
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.request_class import RequestClass
from stillhouse.serve.loadgen.send import RequestResult, raise_file_limit, send_requests
from tests.serve.loadgen.virtual import clock, pass_time, run

KIND = RequestClass("free", 1.0, "free")
GOOD = HttpResponse(200, b"a picture")


def shots(*moments: float) -> list[ScheduledRequest]:
    return [ScheduledRequest(at, KIND, 0, str(number), "free") for number, at in enumerate(moments)]


def test_requests_are_sent_on_time_without_responses() -> None:
    async def ask(shot: ScheduledRequest) -> HttpResponse:
        await asyncio.sleep(100.0 - clock())
        return GOOD

    moments = (0.0, 0.25, 0.25, 1.0, 7.5)
    answers = run(send_requests(shots(*moments), ask, clock))
    assert sorted(answer.sent for answer in answers) == pytest.approx(moments)
    assert [answer.send_delay for answer in answers] == pytest.approx([0.0] * 5)
    assert [answer.ended for answer in answers] == pytest.approx([100.0] * 5)


def test_latencies_of_a_sequential_server_match_arithmetic() -> None:
    async def measured() -> list[RequestResult]:
        device = asyncio.Lock()

        async def ask(shot: ScheduledRequest) -> HttpResponse:
            async with device:
                await asyncio.sleep(2.0)
            return GOOD

        return await send_requests(shots(0.0, 1.0, 1.5, 20.0), ask, clock)

    assert [answer.seconds for answer in run(measured())] == pytest.approx([2.0, 3.0, 4.5, 2.0])


def test_latency_counts_from_the_scheduled_time() -> None:
    async def ask(shot: ScheduledRequest) -> HttpResponse:
        pass_time(0.5)  # the processor is busy, and the next request cannot be sent
        return GOOD

    answers = run(send_requests(shots(1.0, 1.1), ask, clock))
    assert [answer.send_delay for answer in answers] == pytest.approx([0.0, 0.4])
    assert [answer.seconds for answer in answers] == pytest.approx([0.5, 0.9])


def test_failed_results_keep_the_body() -> None:
    async def ask(shot: ScheduledRequest) -> HttpResponse:
        return HttpResponse(429, b"come back later" * 1000)

    (answer,) = run(send_requests(shots(0.0), ask, clock))
    assert (answer.status, answer.is_success) == (429, False)
    assert answer.error_body.startswith("come back later")
    assert len(answer.error_body) == 200


def test_progress_is_reported() -> None:
    heard: list[tuple[str, float, float]] = []

    async def ask(shot: ScheduledRequest) -> HttpResponse:
        await asyncio.sleep(1.0)
        return GOOD

    run(send_requests(shots(0.0, 4.0), ask, clock, lambda *message: heard.append(message)))
    assert len(heard) > 8, "although nothing happened for four seconds"
    assert heard[-1] == ("2 of 2 responses", 4.0, 4.0)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)


def test_empty_plan_has_no_results() -> None:
    async def ask(shot: ScheduledRequest) -> HttpResponse:
        raise AssertionError("nobody was to be asked")

    assert run(send_requests([], ask, clock)) == []


def test_file_limit_is_raised_up_to_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        raise_file_limit(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == max(soft, min(266, hard if hard > 0 else 266))
        raise_file_limit(10**9)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
