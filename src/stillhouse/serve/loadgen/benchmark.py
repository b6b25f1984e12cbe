"""Load a server: measure what is alone, plan, send, report."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any, TypeVar

import uvloop

from stillhouse.check import check_choice, check_number
from stillhouse.serve.loadgen.isolated_latency import measure_isolated_latency
from stillhouse.serve.loadgen.load_plan import LoadPlan, mean_seconds, schedule_requests
from stillhouse.serve.loadgen.load_report import LoadReport, make_load_report
from stillhouse.serve.loadgen.protocols import ProtocolName
from stillhouse.serve.loadgen.request_class import Flood, RequestClass, check_request_classes
from stillhouse.serve.loadgen.send import ProgressCallback, RequestResult, raise_file_limit, send_requests
from stillhouse.serve.loadgen.server_state import open_target

T = TypeVar("T")
PROTOCOLS: tuple[ProtocolName, ...] = ("openai", "kserve")


@dataclass(frozen=True, slots=True)
class LoadTest:
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
    classes: tuple[RequestClass, ...]
    protocol: ProtocolName = "openai"
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
    timeout: float = 300.0

    def __post_init__(self) -> None:
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_request_classes(self.classes, self.flood)
        if self.rate is None:
            check_number("load", self.load, 1e-3, 1e3)
        check_number("slo", self.slo, 1, 1e6)
        check_number("patience", self.timeout, 1e-3, 1e5)
        # Everything else is refused here, and not after the pictures that are alone were measured.
        self.plan_at_rate(1.0 if self.rate is None else self.rate)

    def plan_at_rate(self, rate: float) -> LoadPlan:
        """How requests come at that rate."""
        return LoadPlan(rate, self.count, self.seconds, self.burst, self.clients, self.seed)


def run_benchmark(test: LoadTest, on_progress: ProgressCallback = lambda what, done, total: None) -> LoadReport:
    """Measure.

    Raises:
        StillhouseError: nobody answers, or not as the protocol wants it.
        InvalidRequest: the server refuses what is asked for, or the plan has too many requests.
    """
    return _run_in_uvloop(benchmark_server(test, on_progress))


@dataclass(frozen=True, slots=True, eq=False)
class LoadTestResult:
    """What became of every request, and what else is needed to report it; as in `report.Report`.

    `processor` is in seconds.
    """

    results: Sequence[RequestResult]
    rate: float
    load: float
    isolated_seconds: Mapping[str, float]
    cpu_seconds: float


def run_load_test(test: LoadTest, on_progress: ProgressCallback = lambda what, done, total: None) -> LoadTestResult:
    """Measure, and report nothing yet: several measurements of a server can be reported as one, see `in_a_row`.

    Raises:
        StillhouseError, InvalidRequest: as `run`.
    """
    return _run_in_uvloop(_load_server(test, on_progress))


def report_load_tests(test: LoadTest, results: Sequence[LoadTestResult]) -> LoadReport:
    """The report of several measurements of the same server, as if each had begun when the one before had ended."""
    answers: list[RequestResult] = []
    began = 0.0
    for one in results:
        answers += [each.shift(began) for each in one.results]
        began = max((each.ended for each in answers), default=0.0)
    first = results[0]
    return make_load_report(
        answers,
        url=test.url,
        protocol=test.protocol,
        rate=first.rate,
        load=first.load,
        isolated_seconds=first.isolated_seconds,
        slo=test.slo,
        cpu_seconds=sum(one.cpu_seconds for one in results),
    )


async def benchmark_server(
    test: LoadTest, on_progress: ProgressCallback = lambda what, done, total: None
) -> LoadReport:
    """As `run`, in a loop that runs already."""
    return report_load_tests(test, [await _load_server(test, on_progress)])


async def _load_server(test: LoadTest, on_progress: ProgressCallback) -> LoadTestResult:
    server = await open_target(test.url, test.protocol, test.classes, test.keys, test.timeout)
    seconds = await measure_isolated_latency(test.classes, server, test.prompts, on_progress=on_progress)
    mean = mean_seconds(test.classes, seconds)
    rate = (test.load or 0.0) / mean if test.rate is None else test.rate
    shots = schedule_requests(test.classes, seconds, test.plan_at_rate(rate), test.flood, test.prompts)
    raise_file_limit(len(shots))
    before = process_time()
    answers = await send_requests(shots, server.send, on_progress=on_progress)
    return LoadTestResult(answers, rate, rate * mean, seconds, process_time() - before)


def measure_isolated_at(
    url: str, protocol: ProtocolName, classes: Sequence[RequestClass], runs: int
) -> dict[str, float]:
    """Seconds of each kind alone at that server; see `alone.alone`.

    Raises:
        StillhouseError, InvalidRequest: as `run`.
    """

    async def asked() -> dict[str, float]:
        return await measure_isolated_latency(classes, await open_target(url, protocol, classes), runs=runs)

    return _run_in_uvloop(asked())


def _run_in_uvloop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Its result. This loop spends a quarter less of the processor on a request than asyncio's own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)
