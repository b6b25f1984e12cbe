"""Seconds alone: the median of requests in turns, and a server that is of no use is found out before it is loaded."""

import asyncio
from dataclasses import dataclass, field

import pytest

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import REFUSED, Place, Reply
from stillhouse.serve.loadgen.isolated_latency import LONG, alone
from stillhouse.serve.loadgen.load_plan import Shot
from stillhouse.serve.loadgen.protocols import OpenAI
from stillhouse.serve.loadgen.request_class import Kind
from stillhouse.serve.loadgen.server_state import Server
from tests.serve.loadgen.fake import PICTURE
from tests.serve.loadgen.virtual import clock, run

GOOD = Reply(200, PICTURE)
FREE, PRO = Kind("free", 0.8, "free"), Kind("pro", 0.2, "pro")


@dataclass(frozen=True, slots=True)
class Slow(Server):
    """Takes so many seconds for each kind, one after the other, and begins again at the end."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    reply: Reply = GOOD

    async def ask(self, shot: Shot) -> Reply:
        turn = self.asked.count(shot.kind.name)
        self.asked.append(shot.kind.name)
        taken = self.seconds[shot.kind.name]
        await asyncio.sleep(taken[turn % len(taken)])
        return self.reply


def slow(reply: Reply = GOOD, **seconds: list[float]) -> Slow:
    return Slow(Place("http://here", "here", "192.0.2.1", 80), OpenAI(), (), 1.0, seconds, [], reply)


def test_it_is_the_median_after_one_that_does_not_count() -> None:
    server = slow(free=[9.0, 1.0, 2.0, 30.0], pro=[5.0])
    assert run(alone((FREE, PRO), server, runs=3, clock=clock)) == pytest.approx({"free": 2.0, "pro": 5.0})
    assert server.asked == ["free", "pro"] * 4


def test_what_takes_long_is_asked_for_less_often_but_at_least_once() -> None:
    server = slow(pro=[LONG])
    assert run(alone((PRO,), server, runs=9, clock=clock)) == pytest.approx({"pro": LONG})
    assert len(server.asked) == 2


def test_kinds_that_say_their_seconds_are_not_asked_for() -> None:
    server = slow(free=[1.0])
    told = Kind("pro", 0.2, "pro", alone=7.0)
    assert run(alone((FREE, told), server, runs=1, clock=clock)) == pytest.approx({"free": 1.0, "pro": 7.0})
    assert set(server.asked) == {"free"}
    assert run(alone((told,), server, clock=clock)) == {"pro": 7.0}


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (Reply(REFUSED, b"connection refused"), StillhouseError, "nobody answers at http://here"),
        (Reply(400, b"no such model"), InvalidRequest, "answered with 400: no such model"),
        (Reply(200, b"good morning"), StillhouseError, "without a picture: good morning"),
    ],
)
def test_a_server_that_does_not_draw_is_not_measured(reply: Reply, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        run(alone((FREE,), slow(reply, free=[1.0]), clock=clock))
