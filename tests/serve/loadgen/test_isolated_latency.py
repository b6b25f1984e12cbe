"""Isolated latency: the median of alternating requests; an unusable server is detected before the load."""

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
    """Server with given latencies per class, used in turn."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    reply: HttpResponse = GOOD

    async def send(self, request: ScheduledRequest) -> HttpResponse:
        turn = self.requested.count(request.request_class.name)
        self.requested.append(request.request_class.name)
        durations = self.seconds[request.request_class.name]
        await asyncio.sleep(durations[turn % len(durations)])
        return self.reply


def slow(reply: HttpResponse = GOOD, **seconds: list[float]) -> SlowServer:
    return SlowServer(Endpoint("http://here", "here", "192.0.2.1", 80), OpenAIProtocol(), (), 1.0, seconds, [], reply)


def test_isolated_latency_is_the_median_after_a_warm_up() -> None:
    server = slow(free=[9.0, 1.0, 2.0, 30.0], pro=[5.0])
    assert run(measure_isolated_latency((FREE, PRO), server, runs=3, clock=clock)) == pytest.approx(
        {"free": 2.0, "pro": 5.0}
    )
    assert server.requested == ["free", "pro"] * 4


def test_slow_requests_are_measured_less_often() -> None:
    server = slow(pro=[MAX_SECONDS])
    assert run(measure_isolated_latency((PRO,), server, runs=9, clock=clock)) == pytest.approx({"pro": MAX_SECONDS})
    assert len(server.requested) == 2


def test_classes_with_given_latency_are_not_measured() -> None:
    server = slow(free=[1.0])
    progress = RequestClass("pro", 0.2, "pro", isolated_seconds=7.0)
    assert run(measure_isolated_latency((FREE, progress), server, runs=1, clock=clock)) == pytest.approx(
        {"free": 1.0, "pro": 7.0}
    )
    assert set(server.requested) == {"free"}
    assert run(measure_isolated_latency((progress,), server, clock=clock)) == {"pro": 7.0}


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (HttpResponse(REFUSED, b"connection refused"), StillhouseError, "cannot connect to http://here"),
        (HttpResponse(400, b"no such model"), InvalidRequest, "answered with 400: no such model"),
        (HttpResponse(200, b"good morning"), StillhouseError, "has no image: good morning"),
    ],
)
def test_server_without_images_is_an_error(reply: HttpResponse, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(measure_isolated_latency((FREE,), slow(reply, free=[1.0]), clock=clock))
