"""The report: how long the answers took, and how many came as soon as they should. Pure."""

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
"""Seconds that requests may be sent late in the mean before the measurement is in doubt."""
MAX_CPU_SHARE = 0.5
"""Of a core, what whoever sends may use before the measurement is in doubt."""


@dataclass(frozen=True, slots=True)
class LoadReportRow:
    """What became of the requests of one kind.

    Args:
        kind: its name; those that came as a flood have a row of their own.
        sent, answered: requests, and those that got what they asked for.
        rejected: answered with 429 or 503.
        errors: of all that did not get it, how many by status.
        p50, p90, p99, mean: seconds of those that were answered; None where there are none.
        promise: seconds within which an answer is a good one; None where kinds differ.
        goodput: of all that were sent, the share that was answered within the promise.
        good_per_second: as many a second, from the beginning to the last answer of all.
    """

    kind: str
    sent: int
    answered: int
    rejected: int
    errors: Mapping[str, int]
    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None
    promise: float | None
    goodput: float
    good_per_second: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a server made of a plan.

    Args:
        url, protocol: which server.
        rate: requests in a second that were planned.
        load: seconds of work that arrive in a second, each picture as if it were alone.
        alone: seconds of each kind alone.
        seconds: from the beginning to the last answer.
        rows: by kind, floods, and last all together.
        said: the first answer of every status that is not a good one.
        late_mean, late_most: seconds between the moments when requests were due and when they were sent.
        processor: of one core, the share that sending used.
        doubts: what is wrong with the measurement itself.
    """

    url: str
    protocol: str
    rate: float
    load: float
    alone: Mapping[str, float]
    seconds: float
    rows: tuple[LoadReportRow, ...]
    said: Mapping[str, str]
    late_mean: float
    late_most: float
    processor: float
    doubts: tuple[str, ...]


def summarize_by_class(
    results: Sequence[RequestResult], isolated_seconds: Mapping[str, float], slo: float
) -> tuple[LoadReportRow, ...]:
    """A row for each kind in the order of names, and one of all.

    Args:
        answers: in any order.
        alone: seconds of each kind alone.
        slo: times those seconds, within which an answer is a good one.
    """
    seconds = max((answer.ended for answer in results), default=0.0)
    names = sorted({answer.request.report_row for answer in results})
    rows = [
        _summarize(name, [one for one in results if one.request.report_row == name], isolated_seconds, slo, seconds)
        for name in names
    ]
    return (*rows, _summarize(ALL, results, isolated_seconds, slo, seconds))


def find_doubts(send_delay: float, cpu_share: float) -> tuple[str, ...]:
    """What is wrong with a measurement whose requests were that late in the mean, and took so much of a core."""
    found = []
    if send_delay > MAX_SEND_DELAY:
        found.append(
            f"requests were sent {1000 * send_delay:.0f} ms late in the mean: the waits are longer than they show"
        )
    if cpu_share > MAX_CPU_SHARE:
        found.append(f"sending took {cpu_share:.0%} of a core, which the server may have lacked")
    return tuple(found)


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
    """Everything about these answers; arguments as in `Report`, `processor` in seconds."""
    rows = summarize_by_class(results, isolated_seconds, slo)
    seconds = max((answer.ended for answer in results), default=0.0)
    late = [answer.send_delay for answer in results] or [0.0]
    share = cpu_seconds / seconds if seconds else 0.0
    said: dict[str, str] = {}
    for answer in sorted(results, key=lambda one: one.ended):
        if not answer.is_success:
            said.setdefault(str(answer.status), answer.error_body)
    mean = float(np.mean(late))
    doubts = find_doubts(mean, share)
    return LoadReport(url, protocol, rate, load, isolated_seconds, seconds, rows, said, mean, max(late), share, doubts)


def _summarize(
    name: str, results: Sequence[RequestResult], isolated_seconds: Mapping[str, float], slo: float, seconds: float
) -> LoadReportRow:
    taken = [answer.seconds for answer in results if answer.is_success]
    good = sum(
        one.is_success and one.seconds <= slo * _isolated_seconds(one.request, isolated_seconds) for one in results
    )
    errors: Counter[ResponseStatus] = Counter(answer.status for answer in results if not answer.is_success)
    p50, p90, p99 = (float(value) for value in np.quantile(taken, (0.5, 0.9, 0.99))) if taken else (None,) * 3
    promises = {slo * _isolated_seconds(answer.request, isolated_seconds) for answer in results}
    return LoadReportRow(
        kind=name,
        sent=len(results),
        answered=len(taken),
        rejected=sum(errors[status] for status in REJECTED),
        errors={str(status): count for status, count in sorted(errors.items(), key=str)},
        p50=p50,
        p90=p90,
        p99=p99,
        mean=float(np.mean(taken)) if taken else None,
        promise=promises.pop() if len(promises) == 1 else None,
        goodput=good / len(results) if results else 0.0,
        good_per_second=good / seconds if seconds else 0.0,
    )


def _isolated_seconds(request: ScheduledRequest, isolated_seconds: Mapping[str, float]) -> float:
    return isolated_seconds[request.request_class.name]
