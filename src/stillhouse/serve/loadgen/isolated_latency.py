"""What a picture takes when nobody else asks: the measure of all promises."""

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
"""Seconds after which no further turn is begun."""
_MAX_BODY_CHARS = 300


async def measure_isolated_latency(
    classes: Sequence[RequestClass],
    server: TargetServer,
    prompts: Sequence[str] = (),
    runs: int = RUNS,
    clock: Callable[[], float] = perf_counter,
    on_progress: ProgressCallback = lambda what, done, total: None,
) -> dict[str, float]:
    """Seconds of each kind, by name: the median of some requests, one after the other, the kinds in turns.

    One of each that is not counted goes first. Kinds that say their seconds are not asked for.

    Args:
        kinds: what to ask for.
        server: who is asked.
        prompts: taken in turn; none, captions of the embedded model's world.
        runs: of each kind; fewer where they take longer than `LONG` together.
        clock: seconds.
        tell: hears how far it is.

    Raises:
        StillhouseError: nobody answers, or not with a picture.
        InvalidRequest: the server refuses what is asked for.
    """
    seconds: dict[str, list[float]] = {kind.name: [] for kind in classes if kind.isolated_seconds is None}
    asked = [kind for kind in classes if kind.isolated_seconds is None]
    texts = cycle(prompts or random_captions(100, seed=1))
    began = clock()
    for turn in range(1 + runs if asked else 0):
        if turn > 1 and clock() - began > MAX_SECONDS:
            break
        on_progress("pictures that are alone", turn, 1 + runs)
        for kind in asked:
            begun = clock()
            reply = await server.send(ScheduledRequest(0.0, kind, 0, next(texts), kind.name))
            taken = clock() - begun
            _check_response(reply, kind, server)
            if turn:
                seconds[kind.name].append(taken)
    return {
        kind.name: median(seconds[kind.name]) if kind.isolated_seconds is None else kind.isolated_seconds
        for kind in classes
    }


def _check_response(response: HttpResponse, request_class: RequestClass, server: TargetServer) -> None:
    said = check_reachable(server.endpoint, response).body[:_MAX_BODY_CHARS].decode(errors="replace")
    if not response.is_success:
        raise InvalidRequest(f"a request of kind {request_class.name!r} was answered with {response.status}: {said}")
    if not server.protocol.has_image(response.body):
        raise StillhouseError(f"an answer without a picture: {said}", fix="is --protocol right?")
