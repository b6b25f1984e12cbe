"""Tiers, batch keys, latency curves and random arrivals for several tests."""

from collections.abc import Sequence

from hypothesis import strategies as st

from stillhouse.serve.engine.arrivals import Arrival, ArrivalClass
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier

FREE, PRO = Tier("free"), Tier("pro")
QUICK, FULL = BatchKey("quick", 64, 64), BatchKey("full", 64, 64)
FLAT = CostModel({QUICK: LatencyCurve({1: 1.0, 2: 1.0}), FULL: LatencyCurve({1: 1.0, 2: 1.0})})
"""Device where one or two rows take a second, so a guided image per step; larger batches gain nothing."""
SERIAL = CostModel({batch_key: LatencyCurve({1: 1.0}) for batch_key in (QUICK, FULL)})
"""Device where every row takes a second, so no batch is shared."""
GAINING = CostModel({batch_key: LatencyCurve({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 4.0}) for batch_key in (QUICK, FULL)})
"""Device where batches of up to eight rows raise the throughput."""
STEPS = {FREE: 3, PRO: 35}
KINDS = (
    ArrivalClass(0.8, FREE, QUICK, StepPlan((2,) * STEPS[FREE])),
    ArrivalClass(0.2, PRO, FULL, StepPlan((2,) * STEPS[PRO])),
)
"""Four of five requests have few steps, the others many."""


def make_arrival(at: float, tier: Tier = PRO, key: str = "someone", steps: int | None = None, rows: int = 2) -> Arrival:
    """Return an arrival of a tier with its usual number of steps."""
    batch_key = QUICK if tier is FREE else FULL
    return Arrival(at, tier, key, batch_key, StepPlan((rows,) * (steps or STEPS[tier])))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@st.composite
def arrivals(draw: st.DrawFn, most: int = 25) -> list[Arrival]:
    """Draw some arrivals of all kinds, some at the same time."""
    at, made = 0.0, []
    for _ in range(draw(st.integers(1, most))):
        at += draw(st.sampled_from((0.0, 0.0, 0.5, 3.0, 40.0)))
        tier = draw(st.sampled_from((FREE, PRO)))
        rows = draw(st.lists(st.sampled_from((1, 2)), min_size=1, max_size=40))
        batch_key = draw(st.sampled_from((QUICK, FULL)))
        made.append(Arrival(at, tier, draw(st.sampled_from("abc")), batch_key, StepPlan(tuple(rows))))
    return made
