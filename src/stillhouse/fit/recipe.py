"""How long and how fast something learns."""

from dataclasses import dataclass
from typing import Literal

from stillhouse.check import check_choice, check_integer, check_number

Precision = Literal["f32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecipe:
    """How long and how fast one stage learns.

    The learning rate warms up, stays, and falls linearly to zero over the last `decay` share of the updates, so
    that a longer run can go on from the point before the fall.

    Args:
        updates: of the weights.
        batch: examples at once, in each process.
        rate: the highest learning rate.
        warm_up: updates until it is reached.
        decay: share of the updates over which the rate falls.
        weight_decay: of AdamW.
        average: how much of the weights' average each update keeps; 0, there is none but the weights.
        accumulate: batches for each update.
        precision: bf16 computes in bfloat16 where torch holds that to be safe; weights stay float32. On processors
            without matrix units for it, it is slower: measure before a long run.
        patience: judgements in a row without a better score after which a stage ends, with the weights of the best
            one; 0, it never ends early.
        report_every, judge_every: updates.

    Raises:
        InvalidRequest: a number outside its range.
    """

    updates: int
    batch_size: int
    learning_rate: float
    warmup_updates: int
    decay_fraction: float
    weight_decay: float = 0.0
    ema_decay: float = 0.99
    accumulation_steps: int = 1
    precision: Precision = "f32"
    patience: int = 0
    report_every: int = 25
    eval_every: int = 500

    def __post_init__(self) -> None:
        for name, least in (("updates", 1), ("batch", 1), ("warm_up", 1), ("accumulate", 1), ("patience", 0)):
            check_integer(name, getattr(self, name), least, 10**9)
        for name in ("report_every", "judge_every"):
            check_integer(name, getattr(self, name), 1, 10**9)
        check_number("rate", self.learning_rate, 1e-12, 10)
        check_number("decay", self.decay_fraction, 0, 1)
        check_number("average", self.ema_decay, 0, 0.999999)
        check_number("weight_decay", self.weight_decay, 0, 10)
        check_choice("precision", self.precision, ("f32", "bf16"))
