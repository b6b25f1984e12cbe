"""The report: how long the answers took, and how many came as soon as they should. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.serve.loadgen.http_client import Status
from stillhouse.serve.loadgen.load_plan import Shot
from stillhouse.serve.loadgen.send import Answer

ALL = "all"
REJECTED = (429, 503)
LATE = 0.010
"""Seconds that requests may be sent late in the mean before the measurement is in doubt."""
BUSY = 0.5
"""Of a core, what whoever sends may use before the measurement is in doubt."""


@dataclass(frozen=True, slots=True)
class Row:
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
class Report:
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
    rows: tuple[Row, ...]
    said: Mapping[str, str]
    late_mean: float
    late_most: float
    processor: float
    doubts: tuple[str, ...]


def rows_of(answers: Sequence[Answer], alone: Mapping[str, float], slo: float) -> tuple[Row, ...]:
    """A row for each kind in the order of names, and one of all.

    Args:
        answers: in any order.
        alone: seconds of each kind alone.
        slo: times those seconds, within which an answer is a good one.
    """
    seconds = max((answer.ended for answer in answers), default=0.0)
    names = sorted({answer.shot.row for answer in answers})
    rows = [_row(name, [one for one in answers if one.shot.row == name], alone, slo, seconds) for name in names]
    return (*rows, _row(ALL, answers, alone, slo, seconds))


def doubts_of(late: float, processor: float) -> tuple[str, ...]:
    """What is wrong with a measurement whose requests were that late in the mean, and took so much of a core."""
    found = []
    if late > LATE:
        found.append(f"requests were sent {1000 * late:.0f} ms late in the mean: the waits are longer than they show")
    if processor > BUSY:
        found.append(f"sending took {processor:.0%} of a core, which the server may have lacked")
    return tuple(found)


def report_of(
    answers: Sequence[Answer],
    *,
    url: str,
    protocol: str,
    rate: float,
    load: float,
    alone: Mapping[str, float],
    slo: float,
    processor: float,
) -> Report:
    """Everything about these answers; arguments as in `Report`, `processor` in seconds."""
    rows = rows_of(answers, alone, slo)
    seconds = max((answer.ended for answer in answers), default=0.0)
    late = [answer.late for answer in answers] or [0.0]
    share = processor / seconds if seconds else 0.0
    said: dict[str, str] = {}
    for answer in sorted(answers, key=lambda one: one.ended):
        if not answer.is_good:
            said.setdefault(str(answer.status), answer.said)
    mean = float(np.mean(late))
    doubts = doubts_of(mean, share)
    return Report(url, protocol, rate, load, alone, seconds, rows, said, mean, max(late), share, doubts)


def _row(name: str, answers: Sequence[Answer], alone: Mapping[str, float], slo: float, seconds: float) -> Row:
    taken = [answer.seconds for answer in answers if answer.is_good]
    good = sum(one.is_good and one.seconds <= slo * _alone(one.shot, alone) for one in answers)
    errors: Counter[Status] = Counter(answer.status for answer in answers if not answer.is_good)
    p50, p90, p99 = (float(value) for value in np.quantile(taken, (0.5, 0.9, 0.99))) if taken else (None,) * 3
    promises = {slo * _alone(answer.shot, alone) for answer in answers}
    return Row(
        kind=name,
        sent=len(answers),
        answered=len(taken),
        rejected=sum(errors[status] for status in REJECTED),
        errors={str(status): count for status, count in sorted(errors.items(), key=str)},
        p50=p50,
        p90=p90,
        p99=p99,
        mean=float(np.mean(taken)) if taken else None,
        promise=promises.pop() if len(promises) == 1 else None,
        goodput=good / len(answers) if answers else 0.0,
        good_per_second=good / seconds if seconds else 0.0,
    )


def _alone(shot: Shot, alone: Mapping[str, float]) -> float:
    return alone[shot.kind.name]
