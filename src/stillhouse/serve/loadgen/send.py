"""Sending of scheduled requests, open-loop: at their times, regardless of earlier responses."""

import asyncio
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from stillhouse.serve.loadgen.http_client import HttpResponse, ResponseStatus
from stillhouse.serve.loadgen.load_plan import ScheduledRequest

ProgressCallback: TypeAlias = Callable[[str, float, float], None]
"""Called with a description, the completed amount and the total."""
_MAX_BODY_CHARS = 200
_SPARE_FILES = 256
_PROGRESS_SECONDS = 0.5
"""Longest interval in seconds between two progress reports."""


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Result of a request; times are seconds from the start of the plan.

    Args:
        request: the scheduled request.
        sent: time of sending.
        ended: time of the complete response.
        status: status of the response.
        is_success: whether the request succeeded.
        error_body: start of the body of an unsuccessful response.
    """

    request: ScheduledRequest
    sent: float
    ended: float
    status: ResponseStatus
    is_success: bool = True
    error_body: str = ""

    @property
    def seconds(self) -> float:
        """Return the latency from the scheduled time, send delay included."""
        return self.ended - self.request.time

    def shift(self, seconds: float) -> "RequestResult":
        """Return a copy with all times later by `seconds`."""
        request = replace(self.request, time=self.request.time + seconds)
        return replace(self, request=request, sent=self.sent + seconds, ended=self.ended + seconds)

    @property
    def send_delay(self) -> float:
        """Return the seconds between the scheduled and the actual time of sending."""
        return self.sent - self.request.time


async def send_requests(
    requests: Sequence[ScheduledRequest],
    send_request: Callable[[ScheduledRequest], Awaitable[HttpResponse]],
    clock: Callable[[], float] = perf_counter,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> list[RequestResult]:
    """Send all requests at their times and return the results in order of completion.

    Args:
        requests: requests in order of time.
        send_request: sends one request and returns the response, with its own timeout.
        clock: seconds.
        on_progress: called with a description, the elapsed seconds and the time of the last request.
    """
    results: list[RequestResult] = []
    last = requests[-1].time if requests else 0.0
    began = clock()

    async def send_one(request: ScheduledRequest) -> None:
        sent = clock() - began
        response = await send_request(request)
        error_body = "" if response.is_success else response.body[:_MAX_BODY_CHARS].decode(errors="replace")
        results.append(RequestResult(request, sent, clock() - began, response.status, response.is_success, error_body))
        report_progress()

    def report_progress() -> None:
        on_progress(f"{len(results)} of {len(requests)} responses", min(clock() - began, last), last)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            # Some event loops round to milliseconds and may wake too early, so the time is checked again.
            while (wait := request.time - (clock() - began)) > 0:
                await asyncio.sleep(min(wait, _PROGRESS_SECONDS))
                report_progress()
            group.create_task(send_one(request))
    return results


def raise_file_limit(count: int) -> None:
    """Raise the limit of open files for `count` connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < required:
        limit = required if hard == resource.RLIM_INFINITY else min(required, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
