"""Measurement of isolated latency: the latency of a request without concurrent requests."""

from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median
from time import perf_counter

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import HttpResponse
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.request_class import RequestClass
from stillhouse.serve.loadgen.send import ProgressCallback
from stillhouse.serve.loadgen.server_state import TargetServer, check_reachable
from stillhouse.shapes.caption import random_captions

RUNS = 9
MAX_SECONDS = 60.0
"""Seconds after which no further round (one request of each class) is started."""
_MAX_BODY_CHARS = 300


async def measure_isolated_latency(
    classes: Sequence[RequestClass],
    server: TargetServer,
    prompts: Sequence[str] = (),
    runs: int = RUNS,
    clock: Callable[[], float] = perf_counter,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> dict[str, float]:
    """Return the isolated latency of each class of requests, in seconds by class name.

    The isolated latency is the median latency of requests that are sent without other requests.

    Requests are sent one at a time, in rounds of one request of each class. The first round is a warm-up and not
    counted. A class that sets `isolated_seconds` is not measured; its own value is returned.

    Args:
        classes: classes of requests.
        server: server to which the requests are sent.
        prompts: prompts, used in turn; empty: captions like those that the package's own model was trained on.
        runs: measured requests per class; fewer if they take longer than `MAX_SECONDS`.
        clock: returns the current time in seconds.
        on_progress: called with a description, the number of completed rounds and the number of all rounds.

    Raises:
        StillhouseError: the server does not answer, or answers without an image.
        InvalidRequest: the server rejects a request.
    """
    seconds: dict[str, list[float]] = {
        request_class.name: [] for request_class in classes if request_class.isolated_seconds is None
    }
    measured = [request_class for request_class in classes if request_class.isolated_seconds is None]
    texts = cycle(prompts or random_captions(100, seed=1))
    began = clock()
    for turn in range(1 + runs if measured else 0):
        if turn > 1 and clock() - began > MAX_SECONDS:
            break
        on_progress("isolated latency", turn, 1 + runs)
        for request_class in measured:
            sent = clock()
            response = await server.send(ScheduledRequest(0.0, request_class, 0, next(texts), request_class.name))
            duration = clock() - sent
            _check_response(response, request_class, server)
            if turn:
                seconds[request_class.name].append(duration)
    return {
        request_class.name: median(seconds[request_class.name])
        if request_class.isolated_seconds is None
        else request_class.isolated_seconds
        for request_class in classes
    }


def _check_response(response: HttpResponse, request_class: RequestClass, server: TargetServer) -> None:
    body = check_reachable(server.endpoint, response).body[:_MAX_BODY_CHARS].decode(errors="replace")
    if not response.is_success:
        raise InvalidRequest(f"a request of class {request_class.name!r} was answered with {response.status}: {body}")
    if not server.protocol.has_image(response.body):
        fix = "check that --protocol names the protocol of the server"
        raise StillhouseError(f"the response has no image: {body}", fix=fix)
