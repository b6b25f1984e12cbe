"""Load a server: measure what is alone, plan, send, report."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any, TypeVar

import uvloop

from stillhouse.check import check_choice, check_number
from stillhouse.serve.loadgen.isolated_latency import alone
from stillhouse.serve.loadgen.load_plan import Course, mean_seconds, plan
from stillhouse.serve.loadgen.load_report import Report, report_of
from stillhouse.serve.loadgen.protocols import Name
from stillhouse.serve.loadgen.request_class import Flood, Kind, check_kinds
from stillhouse.serve.loadgen.send import Answer, Tell, allow_files, send
from stillhouse.serve.loadgen.server_state import server_of

T = TypeVar("T")
PROTOCOLS: tuple[Name, ...] = ("openai", "kserve")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, of which server.

    Args:
        url: of the server.
        kinds: what is asked for; their shares add up to 1.
        protocol: that the server speaks.
        keys: API keys; clients take them in turn, and the one who floods is the client after the last.
        load: seconds of work that arrive in a second, each picture as if it were alone; None where a rate is told.
        rate: requests in a second.
        count, seconds, burst, clients, seed: as in `plan.Course`.
        flood: that many more at one moment.
        prompts: taken in turn; none, captions of the embedded model's world.
        slo: times the seconds alone, within which an answer is a good one.
        patience: seconds that one request may take.

    Raises:
        InvalidRequest: what cannot be measured.
    """

    url: str
    kinds: tuple[Kind, ...]
    protocol: Name = "openai"
    keys: tuple[str, ...] = ()
    load: float | None = 0.7
    rate: float | None = None
    count: int | None = None
    seconds: float | None = 60.0
    burst: int = 1
    clients: int = 20
    seed: int = 0
    flood: Flood | None = None
    prompts: tuple[str, ...] = ()
    slo: float = 3.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_kinds(self.kinds, self.flood)
        if self.rate is None:
            check_number("load", self.load, 1e-3, 1e3)
        check_number("slo", self.slo, 1, 1e6)
        check_number("patience", self.patience, 1e-3, 1e5)
        # Everything else is refused here, and not after the pictures that are alone were measured.
        self.course(1.0 if self.rate is None else self.rate)

    def course(self, rate: float) -> Course:
        """How requests come at that rate."""
        return Course(rate, self.count, self.seconds, self.burst, self.clients, self.seed)


def run(asked: Asked, tell: Tell = lambda what, done, total: None) -> Report:
    """Measure.

    Raises:
        StillhouseError: nobody answers, or not as the protocol wants it.
        InvalidRequest: the server refuses what is asked for, or the plan has too many requests.
    """
    return _done(measured(asked, tell))


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What became of every request, and what else is needed to report it; as in `report.Report`.

    `processor` is in seconds.
    """

    answers: Sequence[Answer]
    rate: float
    load: float
    alone: Mapping[str, float]
    processor: float


def answered(asked: Asked, tell: Tell = lambda what, done, total: None) -> Answered:
    """Measure, and report nothing yet: several measurements of a server can be reported as one, see `in_a_row`.

    Raises:
        StillhouseError, InvalidRequest: as `run`.
    """
    return _done(_answered(asked, tell))


def in_a_row(asked: Asked, measured: Sequence[Answered]) -> Report:
    """The report of several measurements of the same server, as if each had begun when the one before had ended."""
    answers: list[Answer] = []
    began = 0.0
    for one in measured:
        answers += [each.later(began) for each in one.answers]
        began = max((each.ended for each in answers), default=0.0)
    first = measured[0]
    return report_of(
        answers,
        url=asked.url,
        protocol=asked.protocol,
        rate=first.rate,
        load=first.load,
        alone=first.alone,
        slo=asked.slo,
        processor=sum(one.processor for one in measured),
    )


async def measured(asked: Asked, tell: Tell = lambda what, done, total: None) -> Report:
    """As `run`, in a loop that runs already."""
    return in_a_row(asked, [await _answered(asked, tell)])


async def _answered(asked: Asked, tell: Tell) -> Answered:
    server = await server_of(asked.url, asked.protocol, asked.kinds, asked.keys, asked.patience)
    seconds = await alone(asked.kinds, server, asked.prompts, tell=tell)
    mean = mean_seconds(asked.kinds, seconds)
    rate = (asked.load or 0.0) / mean if asked.rate is None else asked.rate
    shots = plan(asked.kinds, seconds, asked.course(rate), asked.flood, asked.prompts)
    allow_files(len(shots))
    before = process_time()
    answers = await send(shots, server.ask, tell=tell)
    return Answered(answers, rate, rate * mean, seconds, process_time() - before)


def seconds_alone(url: str, protocol: Name, kinds: Sequence[Kind], runs: int) -> dict[str, float]:
    """Seconds of each kind alone at that server; see `alone.alone`.

    Raises:
        StillhouseError, InvalidRequest: as `run`.
    """

    async def asked() -> dict[str, float]:
        return await alone(kinds, await server_of(url, protocol, kinds), runs=runs)

    return _done(asked())


def _done(work: Coroutine[Any, Any, T]) -> T:
    """Its result. This loop spends a quarter less of the processor on a request than asyncio's own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
