"""How long and how fast something learns."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecipe:
    """How long and how fast one stage learns.

    The learning rate warms up, stays, and falls linearly to zero over the last `decay` share of the updates, so
    that a longer run can go on from the point before the fall.
    """

    updates: int
    batch: int
    rate: float
    warm_up: int
    decay: float
    weight_decay: float = 0.0
    average: float = 0.99
    report_every: int = 25
    judge_every: int = 500
