"""Arrivals for policies: tiers, groups and curves that several tests share, and random ones."""

from collections.abc import Sequence

from hypothesis import strategies as st

from stillhouse.serve.engine.arrivals import Arrival, ArrivalClass
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.job import BatchKey, StepPlan, Tier

FREE, PRO = Tier("free"), Tier("pro")
QUICK, FULL = BatchKey("quick", 64, 64), BatchKey("full", 64, 64)
FLAT = CostModel({QUICK: LatencyCurve({1: 1.0, 2: 1.0}), FULL: LatencyCurve({1: 1.0, 2: 1.0})})
"""A device on which a guided picture takes a second a step, and two of them take twice as long."""
SERIAL = CostModel({group: LatencyCurve({1: 1.0}) for group in (QUICK, FULL)})
"""A device on which every row takes a second, so that nothing shares a batch."""
GAINING = CostModel({group: LatencyCurve({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 4.0}) for group in (QUICK, FULL)})
"""A device on which up to eight rows are cheaper together."""
STEPS = {FREE: 3, PRO: 35}
KINDS = (
    ArrivalClass(0.8, FREE, QUICK, StepPlan((2,) * STEPS[FREE])),
    ArrivalClass(0.2, PRO, FULL, StepPlan((2,) * STEPS[PRO])),
)
"""Four of five pictures take a few steps, the others many."""


def make_arrival(at: float, tier: Tier = PRO, key: str = "someone", steps: int | None = None, rows: int = 2) -> Arrival:
    """A picture of a tier: a few steps of the one, many of the other."""
    group = QUICK if tier is FREE else FULL
    return Arrival(at, tier, key, group, StepPlan((rows,) * (steps or STEPS[tier])))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which so large a share lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@st.composite
def arrivals(draw: st.DrawFn, most: int = 25) -> list[Arrival]:
    """A handful of pictures of all kinds, some at the same moment."""
    at, made = 0.0, []
    for _ in range(draw(st.integers(1, most))):
        at += draw(st.sampled_from((0.0, 0.0, 0.5, 3.0, 40.0)))
        tier = draw(st.sampled_from((FREE, PRO)))
        rows = draw(st.lists(st.sampled_from((1, 2)), min_size=1, max_size=40))
        group = draw(st.sampled_from((QUICK, FULL)))
        made.append(Arrival(at, tier, draw(st.sampled_from("abc")), group, StepPlan(tuple(rows))))
    return made
