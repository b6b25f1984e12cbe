"""What a picture takes when nobody else asks: the measure of all promises."""

from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import median
from time import perf_counter

from stillhouse.errors import InvalidRequest, StillhouseError
from stillhouse.serve.loadgen.http_client import Reply
from stillhouse.serve.loadgen.load_plan import Shot
from stillhouse.serve.loadgen.request_class import Kind
from stillhouse.serve.loadgen.send import Tell
from stillhouse.serve.loadgen.server_state import Server, reached
from stillhouse.shapes.caption import captions

RUNS = 9
LONG = 60.0
"""Seconds after which no further turn is begun."""
_SAID = 300


async def alone(
    kinds: Sequence[Kind],
    server: Server,
    prompts: Sequence[str] = (),
    runs: int = RUNS,
    clock: Callable[[], float] = perf_counter,
    tell: Tell = lambda what, done, total: None,
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
    seconds: dict[str, list[float]] = {kind.name: [] for kind in kinds if kind.alone is None}
    asked = [kind for kind in kinds if kind.alone is None]
    texts = cycle(prompts or captions(100, seed=1))
    began = clock()
    for turn in range(1 + runs if asked else 0):
        if turn > 1 and clock() - began > LONG:
            break
        tell("pictures that are alone", turn, 1 + runs)
        for kind in asked:
            begun = clock()
            reply = await server.ask(Shot(0.0, kind, 0, next(texts), kind.name))
            taken = clock() - begun
            _check(reply, kind, server)
            if turn:
                seconds[kind.name].append(taken)
    return {kind.name: median(seconds[kind.name]) if kind.alone is None else kind.alone for kind in kinds}


def _check(reply: Reply, kind: Kind, server: Server) -> None:
    said = reached(server.place, reply).body[:_SAID].decode(errors="replace")
    if not reply.is_good:
        raise InvalidRequest(f"a request of kind {kind.name!r} was answered with {reply.status}: {said}")
    if not server.dialect.has_picture(reply.body):
        raise StillhouseError(f"an answer without a picture: {said}", fix="is --protocol right?")
