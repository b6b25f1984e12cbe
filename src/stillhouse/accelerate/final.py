"""The final: candidates whose intervals overlap the fastest one's are timed once more, all in the same rounds."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from stillhouse.accelerate.attempt import Bench, Reference, lap_of
from stillhouse.accelerate.choose import best_of
from stillhouse.accelerate.race import LAP_SECONDS, Lap, calls_for
from stillhouse.accelerate.subject import Subject, SubjectFailed
from stillhouse.accelerate.trial import Trial
from stillhouse.measure.clock import alternate, paired_ratio, summarise

MOST = 3
ROUNDS = 12
SECONDS = 120.0
"""A final of slow networks has as many rounds as fit into this, and no fewer than `_FEWEST`."""
_FEWEST = 3


def finalists(trials: Sequence[Trial], memory: int | None = None) -> list[Trial]:
    """Accepted trials that may be the fastest, as far as their intervals tell; no more than fit into the memory."""
    best = best_of(trials, "latency")
    if best is None or best.ratio is None:
        return []
    near = [
        trial
        for trial in trials
        if trial.status == "accepted"
        and trial.ratio
        and trial.ratio.high >= min(best.ratio.low, 0.95 * best.ratio.value)
    ]
    near = sorted(near, key=lambda trial: -(trial.ratio.value if trial.ratio else 0.0))[:MOST]
    if memory is not None:
        while len(near) > 1 and sum(trial.peak_bytes or 0 for trial in near) > memory:
            near.pop()
    return near


def final(trials: Sequence[Trial], bench: Bench, reference: Reference, rounds: int = ROUNDS) -> list[Trial]:
    """The finalists' trials with ratios that were taken side by side; none where there is nothing to decide."""
    near = finalists(trials, None if bench.memory is None else bench.memory - reference.subject.taken)
    if len(near) < 2:
        return []
    with ExitStack() as stack:
        laps = {"": lap_of(reference.subject, bench.limit)}
        for trial in near:
            if trial.candidate == reference.subject.task.candidate:
                continue
            try:
                subject = stack.enter_context(Subject(bench.task(trial.candidate), bench.memory, (reference.subject,)))
                if trial.artefact and trial.graph:
                    subject.ask("use", str(bench.root / trial.graph), limit=bench.limit)
                subject.ask("open", limit=bench.limit)
            except SubjectFailed:
                continue
            laps[trial.candidate.key] = lap_of(subject, bench.limit)
        slow = sum(trial.seconds.median for trial in near if trial.seconds) * (1 + len(near)) / len(near)
        rounds = min(rounds, max(_FEWEST, int(SECONDS / max(slow, LAP_SECONDS))))
        try:
            calls = {key: calls_for(lap) for key, lap in laps.items()}
            seconds = alternate({key: partial(_one, lap, calls[key]) for key, lap in laps.items()}, rounds)
        except SubjectFailed:
            return []
    return [
        replace(
            trial,
            seconds=summarise(seconds[trial.candidate.key]),
            ratio=paired_ratio(seconds[""], seconds[trial.candidate.key]),
        )
        for trial in near
        if trial.candidate.key in seconds
    ]


def _one(lap: Lap, calls: int) -> float:
    return lap(calls) / calls
