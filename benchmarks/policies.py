"""What policies make of the same requests: `python -m benchmarks.policies` writes results/policies.json.

Nothing is drawn: the engine of the server runs on a virtual clock. Four of five pictures take 3 evaluations, the others
35; an evaluation takes a second and shares its batch with nobody, as on a processor that gains nothing from batches.
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
    """Serve the same traces by every policy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="pictures in each of the traces")
    arguments = parser.parse_args()
    rows = []
    for name, traces in _traces(arguments.count).items():
        for policy in POLICIES:
            served = [one for trace in traces for one in simulate(trace, POLICIES[policy], _COST)]
            rows.append({"trace": name, "policy": policy, **_latency_percentiles(served)})
            print(rows[-1])
    write_results("policies", {"count": arguments.count, "seeds": _SEEDS, "rows": rows})


def _traces(count: int) -> Mapping[str, list[list[Arrival]]]:
    found = {
        f"{100 * load:.0f} % load": [poisson_arrivals(_KINDS, load, count, _COST, seed=seed) for seed in range(_SEEDS)]
        for load in _LOADS
    }
    calm = found[f"{100 * _LOADS[0]:.0f} % load"]
    found[f"{100 * _LOADS[0]:.0f} % load, {_FLOOD} pro pictures at once"] = [
        add_flood(trace, _KINDS[1], trace[count // 2].time, _FLOOD) for trace in calm
    ]
    return found


def _latency_percentiles(served: Sequence[SimulatedJob]) -> dict[str, float]:
    told = {"kept": sum(one.is_in_time for one in served) / len(served)}
    for kind in _KINDS:
        # The one who floods waits for itself, which tells nothing of a policy.
        own = [one for one in served if one.job.tier == kind.tier and one.job.key != "flood"]
        percent = quantiles([one.seconds / one.job.isolated_seconds for one in own], n=100)
        name = kind.tier.name
        told |= {f"{name}_p50": percent[49], f"{name}_p99": percent[98]}
        told[f"{name}_kept"] = sum(one.is_in_time for one in own) / len(own)
    return told


if __name__ == "__main__":
    main()
