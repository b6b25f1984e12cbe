"""Admission: whoever cannot be served in time is told so at once, and when to come back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy

RETRY_SECONDS = 1.0
"""Seconds after which to ask again where nobody waits for a tick, but pictures are being decoded."""
Reason = Literal["queue", "deadline"]
"""queue: as many wait as may. deadline: it would end later than its tier promises."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a job is not admitted, and after how many seconds it would be if nobody else came."""

    reason: Reason
    retry_after: float


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How much may wait.

    Args:
        jobs: at most so many, of all tiers together.
        lateness: times the promised seconds that a job may take as predicted; above it, it is refused. Infinite: all
            that find room are taken.
        margin: times the seconds that it takes alone, which are held back of those: for what a forecast does not see,
            decoding and the network, and for whoever comes after. Under overload everybody who is taken would
            otherwise come at the very last moment, or right after it.
    """

    max_jobs: int = 256
    lateness: float = 1.0
    margin: float = 0.0

    def allowed_seconds(self, job: Job) -> float:
        """Seconds that a job may take as predicted; what it takes alone is always allowed."""
        return max(job.isolated_seconds, self.lateness * job.latency_target - self.margin * job.isolated_seconds)


def check_admission(
    job: Job,
    jobs: Sequence[Job],
    policy: Policy,
    now: float,
    cost: CostModel,
    limits: AdmissionLimits = AdmissionLimits(),
) -> Rejection | None:
    """Whether a job is refused; None admits it. Pure.

    Args:
        job: with `arrived`, `alone` and `tag` as the engine would set them.
        jobs: all that are admitted, in the order of their arrival.
        policy, now, cost: as in `Policy.order`.
        limits: how much may wait.
    """
    if len(jobs) >= limits.max_jobs:
        return Rejection("queue", min(predict_finish_times(jobs, policy, now, cost).values(), default=RETRY_SECONDS))
    late = predict_finish_times([*jobs, job], policy, now, cost)[job] - limits.allowed_seconds(job)
    return Rejection("deadline", late) if late > 0 else None


def predict_finish_times(jobs: Sequence[Job], policy: Policy, now: float, cost: CostModel) -> dict[Job, float]:
    """Seconds until each job ends if nobody else comes: what goes first, as quick as in full batches, and itself."""
    told: dict[Job, float] = {}
    before = 0.0
    for job in policy.order(jobs, now, cost):
        told[job] = before + cost.remaining_seconds(job)
        before += cost.device_seconds(job)
    return told
