"""Arrivals for policies: tiers, groups and curves that several tests share, and random ones."""

from collections.abc import Sequence

from hypothesis import strategies as st

from stillhouse.serve.engine.arrivals import Arrival, Kind
from stillhouse.serve.engine.cost import Cost, Curve
from stillhouse.serve.engine.job import Group, Tier, Walk

FREE, PRO = Tier("free"), Tier("pro")
QUICK, FULL = Group("quick", 64, 64), Group("full", 64, 64)
FLAT = Cost({QUICK: Curve({1: 1.0, 2: 1.0}), FULL: Curve({1: 1.0, 2: 1.0})})
"""A device on which a guided picture takes a second a step, and two of them take twice as long."""
SERIAL = Cost({group: Curve({1: 1.0}) for group in (QUICK, FULL)})
"""A device on which every row takes a second, so that nothing shares a batch."""
GAINING = Cost({group: Curve({1: 1.0, 2: 1.1, 4: 1.3, 8: 2.0, 16: 4.0}) for group in (QUICK, FULL)})
"""A device on which up to eight rows are cheaper together."""
STEPS = {FREE: 3, PRO: 35}
KINDS = (Kind(0.8, FREE, QUICK, Walk((2,) * STEPS[FREE])), Kind(0.2, PRO, FULL, Walk((2,) * STEPS[PRO])))
"""Four of five pictures take a few steps, the others many."""


def arrival(at: float, tier: Tier = PRO, key: str = "someone", steps: int | None = None, rows: int = 2) -> Arrival:
    """A picture of a tier: a few steps of the one, many of the other."""
    group = QUICK if tier is FREE else FULL
    return Arrival(at, tier, key, group, Walk((rows,) * (steps or STEPS[tier])))


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
        made.append(Arrival(at, tier, draw(st.sampled_from("abc")), group, Walk(tuple(rows))))
    return made
