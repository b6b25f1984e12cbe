"""Load test of a server: measure the latency without load, schedule requests, send them and report the results."""

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
    """Parameters of a load test.

    Args:
        url: URL of the server.
        classes: classes of requests; their shares sum to 1.
        protocol: name of the protocol that the server offers: openai or kserve.
        keys: API keys, assigned in turn to the simulated clients; empty sends none. The flood has a client of its own.
        load: seconds of work that arrive per second. A request counts with its isolated latency (latency without other
            requests). Ignored if `rate` is set.
        rate: requests per second; None derives the rate from `load`.
        count: largest number of requests; None: no limit.
        seconds: time in seconds after which no request is sent; None: no limit, but then `count` is required.
        burst: number of requests that arrive at one time.
        clients: number of simulated clients.
        seed: seed of the random arrival times.
        flood: additional requests that are all sent at one time; None sends none.
        prompts: prompts, used in turn; empty: captions like those that the package's own model was trained on.
        slo: latency target as a multiple of the isolated latency.
        timeout: timeout of a request in seconds.

    Raises:
        InvalidRequest: a parameter is out of range.
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
        check_number("timeout", self.timeout, 1e-3, 1e5)
        # The plan is made only to check its parameters, before time is spent on measuring isolated latencies.
        self.plan_at_rate(1.0 if self.rate is None else self.rate)

    def plan_at_rate(self, rate: float) -> LoadPlan:
        """Return the plan of the arrivals for this test with `rate` requests per second."""
        return LoadPlan(rate, self.count, self.seconds, self.burst, self.clients, self.seed)


def run_benchmark(test: LoadTest, on_progress: ProgressCallback = lambda what, done, total: None) -> LoadReport:
    """Run `benchmark_server`, with the same arguments, result and errors, in an event loop of its own."""
    return _run_in_uvloop(benchmark_server(test, on_progress))


@dataclass(frozen=True, slots=True, eq=False)
class LoadTestResult:
    """Raw results of a load test.

    Args:
        results: result of every request.
        rate: planned requests per second.
        load: planned seconds of work per second, in which each request counts with its isolated latency.
        isolated_seconds: isolated latency (latency without other requests) in seconds, by class name.
        cpu_seconds: CPU time in seconds that the load generator used for sending.
    """

    results: Sequence[RequestResult]
    rate: float
    load: float
    isolated_seconds: Mapping[str, float]
    cpu_seconds: float


def run_load_test(test: LoadTest, on_progress: ProgressCallback = lambda what, done, total: None) -> LoadTestResult:
    """Run a load test and return its raw results, so that `report_load_tests` can combine those of several tests.

    Raises:
        StillhouseError: the server does not answer, or does not conform to the protocol.
        InvalidRequest: the server rejects the requests.
    """
    return _run_in_uvloop(_load_server(test, on_progress))


def report_load_tests(test: LoadTest, results: Sequence[LoadTestResult]) -> LoadReport:
    """Return one report on load tests with the parameters `test`, as if each had started when the previous one ended.
    `results` are in the order of the tests. The reported rate, load and isolated latencies are those of the first test.
    """
    request_results: list[RequestResult] = []
    start = 0.0
    for result in results:
        request_results += [request_result.shift(start) for request_result in result.results]
        start = max((request_result.ended for request_result in request_results), default=0.0)
    first = results[0]
    return make_load_report(
        request_results,
        url=test.url,
        protocol=test.protocol,
        rate=first.rate,
        load=first.load,
        isolated_seconds=first.isolated_seconds,
        slo=test.slo,
        cpu_seconds=sum(result.cpu_seconds for result in results),
    )


async def benchmark_server(
    test: LoadTest, on_progress: ProgressCallback = lambda what, done, total: None
) -> LoadReport:
    """Run a load test in the running event loop, and return the report of its results.

    Args:
        test: parameters of the test.
        on_progress: called with a description, the completed amount and the total.

    Raises:
        StillhouseError: the server does not answer, or does not conform to the protocol.
        InvalidRequest: the server rejects the requests, or the plan has too many of them.
    """
    return report_load_tests(test, [await _load_server(test, on_progress)])


async def _load_server(test: LoadTest, on_progress: ProgressCallback) -> LoadTestResult:
    server = await open_target(test.url, test.protocol, test.classes, test.keys, test.timeout)
    seconds = await measure_isolated_latency(test.classes, server, test.prompts, on_progress=on_progress)
    mean = mean_seconds(test.classes, seconds)
    rate = (test.load or 0.0) / mean if test.rate is None else test.rate
    requests = schedule_requests(test.classes, seconds, test.plan_at_rate(rate), test.flood, test.prompts)
    raise_file_limit(len(requests))
    before = process_time()
    request_results = await send_requests(requests, server.send, on_progress=on_progress)
    return LoadTestResult(request_results, rate, rate * mean, seconds, process_time() - before)


def measure_isolated_at(
    url: str, protocol: ProtocolName, classes: Sequence[RequestClass], runs: int
) -> dict[str, float]:
    """Return the isolated latency (latency without other requests) of each class at a server, in seconds by class name.

    Args:
        url: URL of the server.
        protocol: protocol of the server.
        classes: classes of requests.
        runs: measured requests per class.

    Raises:
        StillhouseError: the server does not answer, or does not conform to the protocol.
        InvalidRequest: the server rejects the requests.
    """

    async def measure() -> dict[str, float]:
        return await measure_isolated_latency(classes, await open_target(url, protocol, classes), runs=runs)

    return _run_in_uvloop(measure())


def _run_in_uvloop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new uvloop event loop and return its result.

    uvloop uses a quarter less CPU time per request than asyncio's own event loop.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)
