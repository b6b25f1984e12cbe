"""Load report: latency percentiles and goodput (share of requests answered in time) per class of requests."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.serve.loadgen.http_client import ResponseStatus
from stillhouse.serve.loadgen.load_plan import ScheduledRequest
from stillhouse.serve.loadgen.send import RequestResult

ALL = "all"
REJECTED = (429, 503)
MAX_SEND_DELAY = 0.010
"""Mean time in seconds between planned and actual sending above which the report contains a warning."""
MAX_CPU_SHARE = 0.5
"""Share of one CPU core above which the report warns that the load generator used too much of the CPU."""


@dataclass(frozen=True, slots=True)
class LoadReportRow:
    """Results of one class of requests.

    Args:
        request_class: name of the class; "NAME, flood" for a flood (additional requests at one time) of the class, and
            "all" for all requests.
        sent: number of requests.
        answered: number of successful responses.
        rejected: number of responses with status 429 or 503.
        errors: number of unsuccessful requests by status, rejected ones included.
        p50, p90, p99, mean: latency of successful requests in seconds; None if there are none.
        latency_target: seconds within which a response counts in goodput; None if the requests have different targets.
        goodput: share of the sent requests that were answered within the latency target.
        goodput_per_second: number of requests answered within the latency target, divided by the seconds from the start
            of the test until its last response.
    """

    request_class: str
    sent: int
    answered: int
    rejected: int
    errors: Mapping[str, int]
    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None
    latency_target: float | None
    goodput: float
    goodput_per_second: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Results of a load test.

    Args:
        url: URL of the server.
        protocol: protocol of the server.
        rate: planned requests per second.
        load: planned seconds of work per second, in which each request counts with its isolated latency.
        isolated_seconds: isolated latency (latency without other requests) in seconds, by class name.
        seconds: seconds from the start until the last response.
        rows: one row per class, one for a flood (additional requests at one time), and one for all requests.
        error_bodies: start of the body of the first unsuccessful response with each status, by status.
        send_delay_mean, send_delay_max: seconds between the planned and the actual time of sending.
        cpu_share: share of one core used by the load generator.
        warnings: texts that say why the measurement may be wrong; empty if no reason is known.
    """

    url: str
    protocol: str
    rate: float
    load: float
    isolated_seconds: Mapping[str, float]
    seconds: float
    rows: tuple[LoadReportRow, ...]
    error_bodies: Mapping[str, str]
    send_delay_mean: float
    send_delay_max: float
    cpu_share: float
    warnings: tuple[str, ...]


def summarize_by_class(
    results: Sequence[RequestResult], isolated_seconds: Mapping[str, float], slo: float
) -> tuple[LoadReportRow, ...]:
    """Return the rows of a report: one per class of requests or flood in order of names, then one for all requests.

    Args:
        results: results of all requests, in any order.
        isolated_seconds: isolated latency (latency without other requests) in seconds, by class name.
        slo: latency target as a multiple of the isolated latency.
    """
    seconds = max((result.ended for result in results), default=0.0)
    names = sorted({result.request.report_row for result in results})
    rows = [
        _summarize(
            name, [result for result in results if result.request.report_row == name], isolated_seconds, slo, seconds
        )
        for name in names
    ]
    return (*rows, _summarize(ALL, results, isolated_seconds, slo, seconds))


def find_warnings(send_delay: float, cpu_share: float) -> tuple[str, ...]:
    """Return texts that say why the measurement of a load test may be wrong; empty if no reason is found.

    Args:
        send_delay: mean time in seconds between planned and actual sending.
        cpu_share: share of one core used by the load generator.
    """
    warnings = []
    if send_delay > MAX_SEND_DELAY:
        warnings.append(
            f"requests were sent {1000 * send_delay:.0f} ms late on average: the reported latencies are too short"
        )
    if cpu_share > MAX_CPU_SHARE:
        warnings.append(f"sending took {cpu_share:.0%} of a core, which was not available to the server")
    return tuple(warnings)


def make_load_report(
    results: Sequence[RequestResult],
    *,
    url: str,
    protocol: str,
    rate: float,
    load: float,
    isolated_seconds: Mapping[str, float],
    slo: float,
    cpu_seconds: float,
) -> LoadReport:
    """Return the report of a load test.

    Args:
        results: results of all requests, in any order.
        url, protocol: URL of the server, and name of its protocol.
        rate, load: planned requests per second, and planned seconds of work per second.
        isolated_seconds: isolated latency (latency without other requests) in seconds, by class name.
        slo: latency target as a multiple of the isolated latency.
        cpu_seconds: CPU time in seconds that the load generator used for sending.
    """
    rows = summarize_by_class(results, isolated_seconds, slo)
    seconds = max((result.ended for result in results), default=0.0)
    delays = [result.send_delay for result in results] or [0.0]
    cpu_share = cpu_seconds / seconds if seconds else 0.0
    error_bodies: dict[str, str] = {}
    for result in sorted(results, key=lambda result: result.ended):
        if not result.is_success:
            error_bodies.setdefault(str(result.status), result.error_body)
    mean = float(np.mean(delays))
    warnings = find_warnings(mean, cpu_share)
    return LoadReport(
        url, protocol, rate, load, isolated_seconds, seconds, rows, error_bodies, mean, max(delays), cpu_share, warnings
    )


def _summarize(
    name: str, results: Sequence[RequestResult], isolated_seconds: Mapping[str, float], slo: float, seconds: float
) -> LoadReportRow:
    latencies = [result.seconds for result in results if result.is_success]
    good = sum(
        result.is_success and result.seconds <= slo * _isolated_seconds(result.request, isolated_seconds)
        for result in results
    )
    errors: Counter[ResponseStatus] = Counter(result.status for result in results if not result.is_success)
    p50, p90, p99 = (float(value) for value in np.quantile(latencies, (0.5, 0.9, 0.99))) if latencies else (None,) * 3
    targets = {slo * _isolated_seconds(result.request, isolated_seconds) for result in results}
    return LoadReportRow(
        request_class=name,
        sent=len(results),
        answered=len(latencies),
        rejected=sum(errors[status] for status in REJECTED),
        errors={str(status): count for status, count in sorted(errors.items(), key=str)},
        p50=p50,
        p90=p90,
        p99=p99,
        mean=float(np.mean(latencies)) if latencies else None,
        latency_target=targets.pop() if len(targets) == 1 else None,
        goodput=good / len(results) if results else 0.0,
        goodput_per_second=good / seconds if seconds else 0.0,
    )


def _isolated_seconds(request: ScheduledRequest, isolated_seconds: Mapping[str, float]) -> float:
    return isolated_seconds[request.request_class.name]
