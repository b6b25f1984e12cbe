"""Policies: which jobs are in the next tick. Pure: no clock, no thread, no memory of their own.

So the same object decides in the server, in the tests and in the simulator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Protocol

from stillhouse.serve.engine.cost import CostModel
from stillhouse.serve.engine.job import Job


class Policy(Protocol):
    """Says who goes first."""

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """All jobs, the one that matters most first.

        Args:
            jobs: all that are admitted and have not ended, in the order of their arrival.
            now: seconds on the clock that `Job.arrived` was read from.
            cost: what ticks cost.
        """


def select_batch(policy: Policy, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
    """The jobs to move by one evaluation: the first in the policy's order, and whoever of its group still fits in.

    Their rows together are no more than the group's cap, unless one job alone has more. Where a batch is filled up to a
    size that was measured, the last ones stay out if more is done in a second without them. None only where nobody
    waits.
    """
    if not jobs:
        return []
    lead, *others = policy.order(jobs, now, cost)
    picked, room = [lead], cost.saturation_rows(lead.batch_key) - lead.rows
    for job in others:
        if room <= 0:
            break
        if job.batch_key == lead.batch_key and job.rows <= room:
            picked.append(job)
            room -= job.rows
    return picked[: _best_batch_size(picked, cost)] if cost.is_bucketed(lead.batch_key) else picked


def _best_batch_size(picked: Sequence[Job], cost: CostModel) -> int:
    """How many of these, from the first, make the most rows in a second."""
    sums = accumulate(job.rows for job in picked)
    rates = [(rows / cost.step_seconds(picked[0].batch_key, rows), count) for count, rows in enumerate(sums, 1)]
    return max(rates)[1]


@dataclass(frozen=True, slots=True)
class SortedPolicy:
    """First in some order goes first; nothing else counts."""

    sort_key: Callable[[Job, float, CostModel], Any]

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """See `Policy`."""
        return sorted(jobs, key=lambda job: self.sort_key(job, now, cost))


@dataclass(frozen=True, slots=True)
class SlackPolicy:
    """The default: the shortest job first, as long as it can keep its promise, and nobody for ever behind the others.

    Whoever can still end in time goes before whoever cannot, since the promise to the second is broken whatever is
    done. Among those, the one with the least left to do goes first, its seconds divided by its tier's weight (Smith's
    rule, 1956): so pictures of a few steps preempt long ones, which lose little by it. In its tier a job stands behind
    the work of its own key that was in line when it arrived, see `fair`. A job that has waited for `overdue` of its
    promise stands among the others again as if it could keep it: it is late, but it must not become much later.

    Of those that cannot keep their promise, the first that arrived takes the others' slack (Lehoczky and Ramos-Thuel,
    RTSS 1992): one of `spare` ticks, as long as every other promise that would be kept is kept all the same, with some
    `margin`, since others are still to come.

    Nobody starves: of `turn` ticks in a row one goes to the first that is overdue in any case, if it was in none of the
    others. From the moment when it is overdue, a job thus ends within `turn` times the ticks that it and all that
    arrived before it still need.

    Args:
        overdue: of the promised seconds; 1 and more.
        spare: 1 and more; the smaller, the longer do short jobs wait within what they are promised.
        margin: of the seconds that another one takes alone; the larger, the more promises are kept, and the longer do
            those wait to whom it was broken.
        turn: 2 and more; the smaller, the less may be delayed, and the more promises do long jobs break.
    """

    overdue_factor: float = 4 / 3
    late_interval: int = 2
    margin: float = 0.5
    overdue_interval: int = 8

    def order(self, jobs: Sequence[Job], now: float, cost: CostModel) -> list[Job]:
        """See `Policy`."""
        first: dict[str, float] = {}
        for job in jobs:
            first[job.tier.name] = min(job.tag, first.get(job.tier.name, job.tag))
        ranked, late = [], []
        for job in jobs:
            left = cost.remaining_seconds(job)
            is_late = job.latency_target < now - job.arrived + left
            if is_late:
                late.append(job)
            is_lost = is_late and not self._is_overdue(job, now)
            ranked.append((is_lost, (job.tag - first[job.tier.name] + left) / job.tier.weight, job.arrived, job))
        ranked.sort(key=lambda one: one[:3])
        order = [job for *_, job in ranked]
        chosen = self._select_late(order, late, now, cost)
        if chosen is not None:
            order.remove(chosen)
            order.insert(0, chosen)
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
    """Whether a tick for this one breaks no promise that is kept where the others go one after the other in this order.

    Args:
        order: all jobs.
        one: among them.
        now, cost: as in `Policy.order`.
        margin: see `Slack`.
    """
    tick = cost.step_seconds(candidate.batch_key, candidate.rows)
    ends = now
    for job in order:
        if job is not candidate:
            ends += cost.remaining_seconds(job)
            if ends <= job.deadline < ends + tick + margin * job.isolated_seconds:
                return False
    return True


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "slack": SlackPolicy(),
        "fifo": SortedPolicy(lambda job, now, cost: job.arrived),
        "shortest": SortedPolicy(lambda job, now, cost: (cost.remaining_seconds(job), job.arrived)),
        "deadline": SortedPolicy(lambda job, now, cost: (job.deadline, job.arrived)),
    }
)
"""Every policy by name."""
