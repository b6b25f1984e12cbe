"""Sending of scheduled requests. The load is open-loop: no request waits for the response to an earlier one."""

import asyncio
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from stillhouse.serve.loadgen.http_client import HttpResponse, ResponseStatus
from stillhouse.serve.loadgen.load_plan import ScheduledRequest

ProgressCallback: TypeAlias = Callable[[str, float, float], None]
"""Function that is called with a description of the work, the completed amount and the total amount."""
_MAX_BODY_CHARS = 200
_SPARE_FILES = 256
_PROGRESS_SECONDS = 0.5
"""Longest interval in seconds between two progress reports."""


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Result of a request. Times are in seconds from the start of the load test.

    Args:
        request: the scheduled request.
        sent: actual time of sending.
        ended: time at which the response was complete, or the request had failed.
        status: HTTP status, or the name of a failure.
        is_success: whether the status is 200 to 299.
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
        """Return the latency in seconds from the scheduled time of sending, even if the request was sent later."""
        return self.ended - self.request.time

    def shift(self, seconds: float) -> "RequestResult":
        """Return a copy whose times, the scheduled time included, are later by `seconds`."""
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
    """Send all requests at their scheduled times, and return the results in the order in which the requests ended.

    Args:
        requests: requests in order of time.
        send_request: sends one request and returns the response; it must apply a timeout.
        clock: returns the current time in seconds.
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
            # The time is checked again after each sleep, because some event loops round to milliseconds and wake early.
            while (wait := request.time - (clock() - began)) > 0:
                await asyncio.sleep(min(wait, _PROGRESS_SECONDS))
                report_progress()
            group.create_task(send_one(request))
    return results


def raise_file_limit(count: int) -> None:
    """Raise this process's limit of open files so that `count` connections fit, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < required:
        limit = required if hard == resource.RLIM_INFINITY else min(required, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
