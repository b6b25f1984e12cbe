"""Hyper-parameters for the training of one network."""

from dataclasses import dataclass
from typing import Literal

from stillhouse.check import check_choice, check_integer, check_number

Precision = Literal["f32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecipe:
    """Hyper-parameters for the training of one network: updates, batch size, learning rate schedule and evaluation.

    The learning rate warms up, stays constant, and decays linearly to zero over the last `decay_fraction` of the
    updates. A later run with more updates resumes from the checkpoint that was saved before the decay.

    Args:
        updates: number of optimizer steps.
        batch_size: number of examples in each batch of each process.
        learning_rate: learning rate between warm-up and decay.
        warmup_updates: number of updates over which the learning rate rises linearly to its constant value.
        decay_fraction: share of the updates over which the learning rate decays, 0 to 1.
        weight_decay: weight decay of the optimizer AdamW.
        ema_decay: decay of the exponential moving average of the weights, below 1; 0: the average equals the weights.
        accumulation_steps: number of batches whose gradients are averaged for one update.
        precision: bf16 computes in bfloat16 by torch.autocast, with weights in float32; on CPUs without bf16 matrix
            units bf16 is slower than f32.
        patience: number of consecutive evaluations without a better score after which the training stops early. The
            result then has the weights of the best evaluation. 0: never stop early.
        report_every: number of updates between two progress reports.
        eval_every: number of updates between two evaluations.

    Raises:
        InvalidRequest: a number is outside its range.
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
        for name in ("updates", "batch_size", "warmup_updates", "accumulation_steps", "report_every", "eval_every"):
            check_integer(name, getattr(self, name), 1, 10**9)
        check_integer("patience", self.patience, 0, 10**9)
        check_number("learning_rate", self.learning_rate, 1e-12, 10)
        check_number("decay_fraction", self.decay_fraction, 0, 1)
        check_number("ema_decay", self.ema_decay, 0, 0.999999)
        check_number("weight_decay", self.weight_decay, 0, 10)
        check_choice("precision", self.precision, ("f32", "bf16"))
