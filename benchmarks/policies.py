"""Simulation of all policies on the same arrivals: `python -m benchmarks.policies` writes results/policies.json.

No images are generated: the server's engine runs on a virtual clock. Four of five requests take 3 evaluations, the
others 35. An evaluation takes a second and has a batch of one request, as on a processor that gains nothing from
batching.
"""

import argparse
from collections.abc import Mapping, Sequence
from statistics import quantiles

from benchmarks.record import write_results
from stillhouse.serve.engine.arrivals import Arrival, ArrivalClass, add_flood, poisson_arrivals
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.engine.simulate import SimulatedJob, simulate

_QUICK, _FULL = BatchKey("quick", 64, 64), BatchKey("full", 64, 64)
_COST = CostModel({group: LatencyCurve({2: 1.0}) for group in (_QUICK, _FULL)})
_KINDS = (
    ArrivalClass(0.8, Tier("free"), _QUICK, StepPlan((2,) * 3)),
    ArrivalClass(0.2, Tier("pro"), _FULL, StepPlan((2,) * 35)),
)
_LOADS = (0.55, 0.78, 0.95)
_FLOOD = 20
_SEEDS = 5


def main() -> None:
    """Serve the same arrivals by every policy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="requests per trace")
    arguments = parser.parse_args()
    rows = []
    for name, traces in _traces(arguments.count).items():
        for policy in POLICIES:
            jobs = [job for trace in traces for job in simulate(trace, POLICIES[policy], _COST)]
            rows.append({"trace": name, "policy": policy, **_latency_percentiles(jobs)})
            print(rows[-1])
    write_results("policies", {"count": arguments.count, "seeds": _SEEDS, "rows": rows})


def _traces(count: int) -> Mapping[str, list[list[Arrival]]]:
    traces = {
        f"{100 * load:.0f} % load": [poisson_arrivals(_KINDS, load, count, _COST, seed=seed) for seed in range(_SEEDS)]
        for load in _LOADS
    }
    calm = traces[f"{100 * _LOADS[0]:.0f} % load"]
    traces[f"{100 * _LOADS[0]:.0f} % load, {_FLOOD} pro pictures at once"] = [
        add_flood(trace, _KINDS[1], trace[count // 2].time, _FLOOD) for trace in calm
    ]
    return traces


def _latency_percentiles(jobs: Sequence[SimulatedJob]) -> dict[str, float]:
    metrics = {"kept": sum(job.is_in_time for job in jobs) / len(jobs)}
    for arrival_class in _KINDS:
        # The flooding client waits for its own requests, which says nothing about a policy.
        tier_jobs = [job for job in jobs if job.job.tier == arrival_class.tier and job.job.key != "flood"]
        percent = quantiles([job.seconds / job.job.isolated_seconds for job in tier_jobs], n=100)
        name = arrival_class.tier.name
        metrics |= {f"{name}_p50": percent[49], f"{name}_p99": percent[98]}
        metrics[f"{name}_kept"] = sum(job.is_in_time for job in tier_jobs) / len(tier_jobs)
    return metrics


if __name__ == "__main__":
    main()
