"""Seconds alone: the median of requests in turns, and a server that is of no use is found out before it is loaded."""

import asyncio
from dataclasses import dataclass, field

import pytest

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import REFUSED, Endpoint, HttpResponse
from stillhouse.serve.loadgen.isolated_latency import MAX_SECONDS, measure_isolated_latency
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.protocols import OpenAIProtocol
from stillhouse.serve.loadgen.request_class import RequestClass
from stillhouse.serve.loadgen.server_state import TargetServer
from tests.serve.loadgen.fake import PICTURE
from tests.serve.loadgen.virtual import clock, run

GOOD = HttpResponse(200, PICTURE)
FREE, PRO = RequestClass("free", 0.8, "free"), RequestClass("pro", 0.2, "pro")


@dataclass(frozen=True, slots=True)
class SlowServer(TargetServer):
    """Takes so many seconds for each kind, one after the other, and begins again at the end."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    reply: HttpResponse = GOOD

    async def send(self, request: ScheduledRequest) -> HttpResponse:
        turn = self.asked.count(request.request_class.name)
        self.asked.append(request.request_class.name)
        taken = self.seconds[request.request_class.name]
        await asyncio.sleep(taken[turn % len(taken)])
        return self.reply


def slow(reply: HttpResponse = GOOD, **seconds: list[float]) -> SlowServer:
    return SlowServer(Endpoint("http://here", "here", "192.0.2.1", 80), OpenAIProtocol(), (), 1.0, seconds, [], reply)


def test_it_is_the_median_after_one_that_does_not_count() -> None:
    server = slow(free=[9.0, 1.0, 2.0, 30.0], pro=[5.0])
    assert run(measure_isolated_latency((FREE, PRO), server, runs=3, clock=clock)) == pytest.approx(
        {"free": 2.0, "pro": 5.0}
    )
    assert server.asked == ["free", "pro"] * 4


def test_what_takes_long_is_asked_for_less_often_but_at_least_once() -> None:
    server = slow(pro=[MAX_SECONDS])
    assert run(measure_isolated_latency((PRO,), server, runs=9, clock=clock)) == pytest.approx({"pro": MAX_SECONDS})
    assert len(server.asked) == 2


def test_kinds_that_say_their_seconds_are_not_asked_for() -> None:
    server = slow(free=[1.0])
    told = RequestClass("pro", 0.2, "pro", isolated_seconds=7.0)
    assert run(measure_isolated_latency((FREE, told), server, runs=1, clock=clock)) == pytest.approx(
        {"free": 1.0, "pro": 7.0}
    )
    assert set(server.asked) == {"free"}
    assert run(measure_isolated_latency((told,), server, clock=clock)) == {"pro": 7.0}


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (HttpResponse(REFUSED, b"connection refused"), StillhouseError, "cannot connect to http://here"),
        (HttpResponse(400, b"no such model"), InvalidRequest, "answered with 400: no such model"),
        (HttpResponse(200, b"good morning"), StillhouseError, "has no image: good morning"),
    ],
)
def test_a_server_that_does_not_draw_is_not_measured(reply: HttpResponse, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        run(measure_isolated_latency((FREE,), slow(reply, free=[1.0]), clock=clock))
