"""Overhead of an engine step: `python -m benchmarks.tick` writes results/tick.json.

Sixteen requests of two tiers and all ages wait; the executor takes no time. The rest is batch selection, bookkeeping
and the latency model. The target is 200 microseconds per step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Any

from benchmarks.record import write_results
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.job import BatchKey, Job, StepPlan, Tier
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.engine.simulate import NO_REQUEST

_GROUP = BatchKey("model", 64, 64)
_COST = CostModel({_GROUP: LatencyCurve({1: 1e-3, 2: 1.9e-3, 4: 3.6e-3, 8: 7.0e-3})})
_TIERS = (Tier("free"), Tier("pro", 2.0))
_WAITING = 16
_TICKS = 20_000


@dataclass
class _NullDevice:
    """Executor that takes no time."""

    def begin(self, job: Job) -> None: ...

    def advance(self, jobs: Sequence[Job]) -> None: ...

    def finish(self, job: Job) -> None: ...


def main() -> None:
    """Measure a step with sixteen waiting requests by every policy."""
    rows = [{"policy": name, **_percentiles(_tick_seconds(name))} for name in POLICIES]
    for row in rows:
        print(row)
    write_results("tick", {"waiting": _WAITING, "ticks": _TICKS, "rows": rows})


def _tick_seconds(policy: str) -> list[float]:
    """Return the seconds of each step."""
    engine = Engine(_NullDevice(), POLICIES[policy], _COST, perf_counter)
    seconds, number = [], 0
    for _ in range(_TICKS):
        while len(engine.jobs) < _WAITING:
            steps = 3 + number % 33
            tier = _TIERS[number % 5 == 0]
            engine.submit(Job(str(number), tier, f"key {number % 7}", _GROUP, StepPlan((2,) * steps), NO_REQUEST))
            number += 1
        began = perf_counter()
        engine.step()
        seconds.append(perf_counter() - began)
    return seconds


def _percentiles(seconds: Sequence[float]) -> dict[str, Any]:
    percent = quantiles(seconds, n=100)
    return {"p50_us": 1e6 * percent[49], "p99_us": 1e6 * percent[98], "mean_us": 1e6 * sum(seconds) / len(seconds)}


if __name__ == "__main__":
    main()
