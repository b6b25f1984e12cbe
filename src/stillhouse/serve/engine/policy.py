"""Scheduling policies, which order jobs by priority; the choice of a step's batch and the admission of new jobs.

Policies have no state and no side effects, so the server, the tests and the simulator share the same objects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Literal, Protocol

from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job

RETRY_SECONDS = 1.0
"""Seconds of a rejected job's Retry-After where no job waits for a step, so that no finish time can be predicted."""
Reason = Literal["queue", "deadline"]
"""Why a job is rejected: "queue": too many jobs are unfinished; "deadline": its predicted latency is too long."""


class Policy(Protocol):
    """A scheduling policy: it orders jobs by priority."""

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """Return all jobs, the highest priority first.

        Args:
            jobs: unfinished jobs in order of arrival.
            now: current time on the clock of `Job.arrived`, in seconds.
            cost: latency model.
        """


def select_batch(policy: Policy, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
    """Return the jobs of the next step: the job with the highest priority, and further jobs that fit in its batch.

    Further jobs are taken by priority and have the same batch key. The batch has at most the saturation rows of the key
    (more rows gain almost no throughput), unless its first job alone has more. If batches are padded to fixed sizes,
    the last jobs are left out where `cost`, the latency model, gives a smaller batch a higher throughput. The result is
    empty only if there are no jobs. `jobs` are the unfinished jobs in order of arrival; `policy` orders them by
    priority. `now` is the current time in seconds, on the clock of `Job.arrived`.
    """
    if not jobs:
        return []
    lead, *others = policy.order(jobs, now, cost)
    batch, free_rows = [lead], cost.saturation_rows(lead.batch_key) - lead.rows
    for job in others:
        if free_rows <= 0:
            break
        if job.batch_key == lead.batch_key and job.rows <= free_rows:
            batch.append(job)
            free_rows -= job.rows
    return batch[: _best_batch_size(batch, cost)] if cost.is_bucketed(lead.batch_key) else batch


def _best_batch_size(batch: Sequence[Job], cost: CostModel) -> int:
    """Return how many jobs of `batch`, counted from its first, run together give the most rows per second.

    The latency model `cost` predicts the rows per second.
    """
    sums = accumulate(job.rows for job in batch)
    rates = [(rows / cost.step_seconds(batch[0].batch_key, rows), count) for count, rows in enumerate(sums, 1)]
    return max(rates)[1]


@dataclass(frozen=True, slots=True)
class Rejection:
    """The answer to a job that is not admitted.

    Args:
        reason: why the job is rejected.
        retry_after: seconds until the job would be admitted if no other job arrived.
    """

    reason: Reason
    retry_after: float


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Limits above which a new job is rejected.

    Args:
        max_jobs: largest number of unfinished jobs, of all service tiers together.
        max_lateness: largest predicted latency as a multiple of the latency target; infinite admits every job.
        margin: reserve that is subtracted from the largest predicted latency, as a multiple of the isolated latency
            (the latency without other jobs). The reserve covers decoding, the network and later arrivals, which the
            prediction does not contain. Without a reserve, every job admitted under overload would finish at the last
            moment or just after it.
    """

    max_jobs: int = 256
    max_lateness: float = 1.0
    margin: float = 0.0

    def allowed_seconds(self, job: Job) -> float:
        """Return the largest predicted latency in seconds with which a job is admitted.

        The result is never less than the job's isolated latency (the latency without other jobs).
        """
        return max(job.isolated_seconds, self.max_lateness * job.latency_target - self.margin * job.isolated_seconds)


def check_admission(
    job: Job,
    jobs: Sequence[Job],
    policy: Policy,
    now: float,
    cost: CostModel,
    limits: AdmissionLimits = AdmissionLimits(),
) -> Rejection | None:
    """Return why a new job is rejected, or None where it is admitted. The arguments are not changed.

    Args:
        job: the new job, whose `arrived`, `isolated_seconds` and `tag` were set by `RequestPool.estimate`.
        jobs: admitted and unfinished jobs in order of arrival; `policy` orders them by priority.
        now: current time in seconds, on the clock of `Job.arrived`.
        cost, limits: latency model; largest number of jobs and largest predicted latency.
    """
    if len(jobs) >= limits.max_jobs:
        return Rejection("queue", min(predict_finish_times(jobs, policy, now, cost).values(), default=RETRY_SECONDS))
    excess = predict_finish_times([*jobs, job], policy, now, cost)[job] - limits.allowed_seconds(job)
    return Rejection("deadline", excess) if excess > 0 else None


def predict_finish_times(jobs: Sequence[Job], policy: Policy, now: float, cost: CostModel) -> dict[Job, float]:
    """Predict the seconds from `now` until each job finishes if no other job arrives.

    The prediction for a job assumes that the jobs before it in the policy's order run first, in full batches, and that
    the job itself then runs alone.

    Args:
        jobs: unfinished jobs in order of arrival.
        policy: scheduling policy, which orders the jobs by priority.
        now: current time in seconds, on the clock of `Job.arrived`.
        cost: latency model.
    """
    seconds: dict[Job, float] = {}
    queued_seconds = 0.0
    for job in policy.order(jobs, now, cost):
        seconds[job] = queued_seconds + cost.remaining_seconds(job)
        queued_seconds += cost.device_seconds(job)
    return seconds


@dataclass(frozen=True, slots=True)
class SortedPolicy:
    """Policy that sorts all jobs by one value.

    Args:
        sort_key: takes a job, the time in seconds and the latency model; returns the value to sort by. The job with the
            smallest value has the highest priority.
    """

    sort_key: Callable[[Job, float, CostModel], Any]

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """Return all jobs by rising `sort_key`, the highest priority first."""
        return sorted(jobs, key=lambda job: self.sort_key(job, now, cost))


@dataclass(frozen=True, slots=True)
class SlackPolicy:
    """Default policy: weighted shortest remaining time first, and a bounded delay for jobs that miss their target.

    Feasible jobs, which can still meet their latency target, precede late jobs, which cannot. Feasible and late jobs
    are each sorted by remaining seconds divided by the service tier's weight (Smith's rule, 1956): short jobs preempt
    long jobs, which lose little. Within a tier, the start tags of `FairQueue` are added to the remaining seconds, so
    that a job queues behind earlier work of its own API key. A job that has waited `overdue_factor` times its latency
    target is overdue, and sorted as if feasible.

    The earliest late job receives the slack of the feasible jobs (slack stealing, Lehoczky and Ramos-Thuel, RTSS 1992):
    the late job gets one of every `late_interval` steps if all feasible jobs still meet their targets with `margin` to
    spare.

    Starvation is impossible: the first overdue job gets at least one of every `overdue_interval` steps. The job
    therefore finishes within `overdue_interval` times the steps that the job itself and all earlier jobs still need.

    Args:
        overdue_factor: multiple of the latency target after which a job is overdue; at least 1.
        late_interval: steps between two steps of the earliest late job, at least 1. Smaller values delay short jobs
            more.
        margin: time by which feasible jobs must still finish early when a late job gets a step, as a multiple of their
            isolated latency (the latency without other jobs). Larger values keep more targets and delay late jobs more.
        overdue_interval: steps between two guaranteed steps of the first overdue job, at least 2. Smaller values bound
            the delay more tightly and miss more targets.
    """

    overdue_factor: float = 4 / 3
    late_interval: int = 2
    margin: float = 0.5
    overdue_interval: int = 8

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """Return all jobs, the highest priority first.

        Jobs that can still meet their latency target precede late jobs. One late job may be put before all other jobs,
        so that its delay is bounded.
        """
        first: dict[str, float] = {}
        for job in jobs:
            first[job.tier.name] = min(job.tag, first.get(job.tier.name, job.tag))
        ranked, late = [], []
        for job in jobs:
            remaining = cost.remaining_seconds(job)
            is_late = job.latency_target < now - job.arrived + remaining
            if is_late:
                late.append(job)
            is_infeasible = is_late and not self._is_overdue(job, now)
            ranked.append(
                (is_infeasible, (job.tag - first[job.tier.name] + remaining) / job.tier.weight, job.arrived, job)
            )
        ranked.sort(key=lambda entry: entry[:3])
        order = [job for *_, job in ranked]
        late_job = self._select_late(order, late, now, cost)
        if late_job is not None:
            order.remove(late_job)
            order.insert(0, late_job)
        return order

    def _select_late(self, order: Sequence[Job], late: Sequence[Job], now: float, cost: CostModel) -> Job | None:
        overdue = next((job for job in late if self._is_overdue(job, now)), None)
        if overdue is not None and overdue.steps_skipped >= self.overdue_interval - 1:
            return overdue
        if (
            late
            and late[0].steps_skipped >= self.late_interval - 1
            and can_yield_step(order, late[0], now, cost, self.margin)
        ):
            return late[0]
        return None

    def _is_overdue(self, job: Job, now: float) -> bool:
        return now - job.arrived > self.overdue_factor * job.latency_target


def can_yield_step(order: Sequence[Job], candidate: Job, now: float, cost: CostModel, margin: float = 0.0) -> bool:
    """Return whether a late job can take one step without making another job miss its latency target.

    The other jobs are assumed to run one by one in the given order. Jobs that miss their target anyway do not count.

    Args:
        order: all jobs by priority.
        candidate: job of `order` that would take the step.
        now: current time in seconds, on the clock of `Job.arrived`.
        cost: latency model.
        margin: time by which the other jobs must still finish early, as a multiple of their isolated latency.
    """
    step_seconds = cost.step_seconds(candidate.batch_key, candidate.rows)
    ends = now
    for job in order:
        if job is not candidate:
            ends += cost.remaining_seconds(job)
            if ends <= job.deadline < ends + step_seconds + margin * job.isolated_seconds:
                return False
    return True


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "slack": SlackPolicy(),
        "fcfs": SortedPolicy(lambda job, now, cost: job.arrived),
        "sjf": SortedPolicy(lambda job, now, cost: (cost.remaining_seconds(job), job.arrived)),
        "edf": SortedPolicy(lambda job, now, cost: (job.deadline, job.arrived)),
    }
)
"""Policies by name: slack, first come first served, shortest job first, earliest deadline first."""
