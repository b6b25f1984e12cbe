"""Send a plan, open-loop: every request at its moment, whatever became of those before it."""

import asyncio
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from stillhouse.serve.loadgen.http_client import HttpResponse, ResponseStatus
from stillhouse.serve.loadgen.load_plan import ScheduledRequest

ProgressCallback: TypeAlias = Callable[[str, float, float], None]
"""Called with what is being done, how much is done, and how much there is."""
_MAX_BODY_CHARS = 200
_SPARE_FILES = 256
_PROGRESS_SECONDS = 0.5
"""Seconds after which whoever looks hears something, though nothing happened."""


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What became of a request; seconds from the beginning of the plan.

    Args:
        shot: the request.
        sent: when it was sent, as soon as the processor was free after `shot.at`.
        ended: when its reply was complete.
        status: of the reply.
        said: the beginning of the reply, where it is not a good one.
    """

    request: ScheduledRequest
    sent: float
    ended: float
    status: ResponseStatus
    is_success: bool = True
    error_body: str = ""

    @property
    def seconds(self) -> float:
        """From the moment when the request was due: what it waited to be sent, it has waited, too."""
        return self.ended - self.request.time

    def shift(self, seconds: float) -> "RequestResult":
        """The same, if everything had happened so much later."""
        shot = replace(self.request, time=self.request.time + seconds)
        return replace(self, request=shot, sent=self.sent + seconds, ended=self.ended + seconds)

    @property
    def send_delay(self) -> float:
        """Seconds between the moment when it was due and the one when it was sent."""
        return self.sent - self.request.time


async def send_requests(
    requests: Sequence[ScheduledRequest],
    send_request: Callable[[ScheduledRequest], Awaitable[HttpResponse]],
    clock: Callable[[], float] = perf_counter,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> list[RequestResult]:
    """Send all of them and wait for all replies; the answers in the order in which they came.

    Args:
        shots: in the order of time.
        ask: sends one and waits for its reply; it has patience of its own.
        clock: seconds.
        tell: hears how far it is.
    """
    answers: list[RequestResult] = []
    last = requests[-1].time if requests else 0.0
    began = clock()

    async def one(shot: ScheduledRequest) -> None:
        sent = clock() - began
        reply = await send_request(shot)
        said = "" if reply.is_success else reply.body[:_MAX_BODY_CHARS].decode(errors="replace")
        answers.append(RequestResult(shot, sent, clock() - began, reply.status, reply.is_success, said))
        told()

    def told() -> None:
        on_progress(f"{len(answers)} of {len(requests)} answered", min(clock() - began, last), last)

    async with asyncio.TaskGroup() as group:
        for shot in requests:
            # Some loops know milliseconds only, and may wake too early.
            while (wait := shot.time - (clock() - began)) > 0:
                await asyncio.sleep(min(wait, _PROGRESS_SECONDS))
                told()
            group.create_task(one(shot))
    return answers


def raise_file_limit(count: int) -> None:
    """As many open connections as that, or as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
