"""Send a plan, open-loop: every request at its moment, whatever became of those before it."""

import asyncio
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from stillhouse.serve.loadgen.http_client import Reply, Status
from stillhouse.serve.loadgen.load_plan import Shot

Tell: TypeAlias = Callable[[str, float, float], None]
"""Called with what is being done, how much is done, and how much there is."""
_SAID = 200
_OWN_FILES = 256
_OFTEN = 0.5
"""Seconds after which whoever looks hears something, though nothing happened."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request; seconds from the beginning of the plan.

    Args:
        shot: the request.
        sent: when it was sent, as soon as the processor was free after `shot.at`.
        ended: when its reply was complete.
        status: of the reply.
        said: the beginning of the reply, where it is not a good one.
    """

    shot: Shot
    sent: float
    ended: float
    status: Status
    is_good: bool = True
    said: str = ""

    @property
    def seconds(self) -> float:
        """From the moment when the request was due: what it waited to be sent, it has waited, too."""
        return self.ended - self.shot.at

    def later(self, seconds: float) -> "Answer":
        """The same, if everything had happened so much later."""
        shot = replace(self.shot, at=self.shot.at + seconds)
        return replace(self, shot=shot, sent=self.sent + seconds, ended=self.ended + seconds)

    @property
    def late(self) -> float:
        """Seconds between the moment when it was due and the one when it was sent."""
        return self.sent - self.shot.at


async def send(
    shots: Sequence[Shot],
    ask: Callable[[Shot], Awaitable[Reply]],
    clock: Callable[[], float] = perf_counter,
    tell: Tell = lambda what, done, total: None,
) -> list[Answer]:
    """Send all of them and wait for all replies; the answers in the order in which they came.

    Args:
        shots: in the order of time.
        ask: sends one and waits for its reply; it has patience of its own.
        clock: seconds.
        tell: hears how far it is.
    """
    answers: list[Answer] = []
    last = shots[-1].at if shots else 0.0
    began = clock()

    async def one(shot: Shot) -> None:
        sent = clock() - began
        reply = await ask(shot)
        said = "" if reply.is_good else reply.body[:_SAID].decode(errors="replace")
        answers.append(Answer(shot, sent, clock() - began, reply.status, reply.is_good, said))
        told()

    def told() -> None:
        tell(f"{len(answers)} of {len(shots)} answered", min(clock() - began, last), last)

    async with asyncio.TaskGroup() as group:
        for shot in shots:
            # Some loops know milliseconds only, and may wake too early.
            while (wait := shot.at - (clock() - began)) > 0:
                await asyncio.sleep(min(wait, _OFTEN))
                told()
            group.create_task(one(shot))
    return answers


def allow_files(count: int) -> None:
    """As many open connections as that, or as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
