"""What the engine itself costs: `python -m benchmarks.tick` writes results/tick.json.

Sixteen pictures of all ages and of two tiers wait; the device takes no time. What is left is picking, bookkeeping and
learning. The bar is 200 microseconds a tick.
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
    """A device that takes no time."""

    def begin(self, job: Job) -> None: ...

    def advance(self, jobs: Sequence[Job]) -> None: ...

    def finish(self, job: Job) -> None: ...


def main() -> None:
    """Tick, with sixteen waiting at every moment, by every policy."""
    rows = [{"policy": name, **_percentiles(_tick_seconds(name))} for name in POLICIES]
    for row in rows:
        print(row)
    write_results("tick", {"waiting": _WAITING, "ticks": _TICKS, "rows": rows})


def _tick_seconds(policy: str) -> list[float]:
    """Seconds of each tick."""
    engine = Engine(_NullDevice(), POLICIES[policy], _COST, perf_counter)
    taken, number = [], 0
    for _ in range(_TICKS):
        while len(engine.jobs) < _WAITING:
            steps = 3 + number % 33
            tier = _TIERS[number % 5 == 0]
            engine.submit(Job(str(number), tier, f"key {number % 7}", _GROUP, StepPlan((2,) * steps), NO_REQUEST))
            number += 1
        began = perf_counter()
        engine.step()
        taken.append(perf_counter() - began)
    return taken


def _percentiles(taken: Sequence[float]) -> dict[str, Any]:
    percent = quantiles(taken, n=100)
    return {"p50_us": 1e6 * percent[49], "p99_us": 1e6 * percent[98], "mean_us": 1e6 * sum(taken) / len(taken)}


if __name__ == "__main__":
    main()
