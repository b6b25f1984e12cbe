"""Admission control: reject a request whose predicted completion is too late, and compute Retry-After."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job
from stillhouse.serve.engine.policy import Policy

RETRY_SECONDS = 1.0
"""Retry-After in seconds when no job waits for a step but images are being decoded."""
Reason = Literal["queue", "deadline"]
""""queue": too many unfinished jobs. "deadline": the predicted completion exceeds the allowed latency."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected job.

    Args:
        reason: why the job is rejected.
        retry_after: seconds until the job would be admitted if no other job arrived.
    """

    reason: Reason
    retry_after: float


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Limits of admission.

    Args:
        max_jobs: largest number of unfinished jobs of all tiers.
        max_lateness: largest predicted latency as a multiple of the latency target; infinite admits every job.
        margin: reserve as a multiple of the isolated latency, subtracted from the limit. The reserve covers decoding,
            the network and later arrivals, which the prediction does not contain. Without a reserve, every job admitted
            under overload would finish at the last moment or just after it.
    """

    max_jobs: int = 256
    max_lateness: float = 1.0
    margin: float = 0.0

    def allowed_seconds(self, job: Job) -> float:
        """Return the largest predicted latency in seconds for a job; at least its isolated latency."""
        return max(job.isolated_seconds, self.max_lateness * job.latency_target - self.margin * job.isolated_seconds)


def check_admission(
    job: Job,
    jobs: Sequence[Job],
    policy: Policy,
    now: float,
    cost: CostModel,
    limits: AdmissionLimits = AdmissionLimits(),
) -> Rejection | None:
    """Return why a job is rejected, or None to admit it. The arguments are not changed.

    Args:
        job: job with `arrived`, `isolated_seconds` and `tag` set as by `RequestPool.estimate`.
        jobs: admitted jobs in order of arrival.
        policy: scheduling policy.
        now: current time in seconds.
        cost: latency model.
        limits: limits of admission.
    """
    if len(jobs) >= limits.max_jobs:
        return Rejection("queue", min(predict_finish_times(jobs, policy, now, cost).values(), default=RETRY_SECONDS))
    excess = predict_finish_times([*jobs, job], policy, now, cost)[job] - limits.allowed_seconds(job)
    return Rejection("deadline", excess) if excess > 0 else None


def predict_finish_times(jobs: Sequence[Job], policy: Policy, now: float, cost: CostModel) -> dict[Job, float]:
    """Predict the seconds until each job finishes if no other job arrives.

    The prediction assumes that jobs earlier in the policy's order run in full batches, and that the job itself runs
    alone.
    """
    seconds: dict[Job, float] = {}
    queued_seconds = 0.0
    for job in policy.order(jobs, now, cost):
        seconds[job] = queued_seconds + cost.remaining_seconds(job)
        queued_seconds += cost.device_seconds(job)
    return seconds
