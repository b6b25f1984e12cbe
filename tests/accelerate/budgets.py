"""Limits of timing for sweeps whose tests do not depend on the precision of the timings."""

from stillhouse.accelerate.evaluation.latency import TimingBudget

QUICK = TimingBudget(min_rounds=5, max_rounds=5, round_seconds=0.005)
"""Five rounds, the least with which an interval means something."""
QUICK_FINAL = QUICK
"""The same for the timing that decides between the fastest candidates, which are opened once for it and not thrice."""
